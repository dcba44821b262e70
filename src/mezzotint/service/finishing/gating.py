"""Gating: what gates say about the attempts at an image, and what comes of it.

Lives in the writer thread, which takes one thing after the other: a preview is always
judged before the picture of the same attempt, so the same request has the same attempts
whether the engine was stopped in time or not.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mezzotint.engine.state import ImageId
from mezzotint.errors import GateRejected
from mezzotint.gates.policy import Accept, GatePolicy, Reject, Retry, Spent, decide
from mezzotint.images.codec import to_pixels
from mezzotint.images.resize import fit
from mezzotint.observe import metrics
from mezzotint.planning.plan import Plan
from mezzotint.service.requests import Attempted, Judge
from mezzotint.types import Attempt, StageTimings, Verdict

__all__ = ["Gating", "Kept", "preview_steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The attempt that is kept, and the log of all."""

    plan: Plan
    pixels: Any
    timings: StageTimings
    warnings: tuple[str, ...]
    attempts: tuple[Attempt, ...]


def preview_steps(plan: Plan, policy: GatePolicy | None) -> tuple[int, ...]:
    """Return the steps, from 1, whose previews gates want to see; none after the last."""
    if policy is None or plan.num_steps < 2:
        return ()
    return tuple(sorted({_step(rule.preview_at, plan) for rule in policy.rules if rule.preview_at}))


def _step(place: float | None, plan: Plan) -> int:
    return min(max(round((place or 0.0) * plan.num_steps), 1), plan.num_steps - 1)


class Gating:
    """Judges previews and pictures for one dispatcher.

    Args:
        judge: Measures pixels, or None if there are no gates.
    """

    def __init__(self, judge: Judge | None) -> None:
        self._judge = judge
        self._seen: set[ImageId] = set()
        self._given_up: dict[ImageId, tuple[tuple[Verdict, ...], int]] = {}

    def judge_preview(
        self, image: ImageId, preview: np.ndarray, step: int, plan: Plan, policy: GatePolicy
    ) -> bool:
        """Judge a preview with the gates that asked for it at this step.

        Args:
            image: Whose preview.
            preview: Shape (3, h, w), in [-1, 1].
            step: Steps done.
            plan: What is made.
            policy: The gates of the request.

        Returns:
            Whether the attempt is to be given up.
        """
        if self._judge is None or image in self._given_up:
            return image in self._given_up
        self._seen.add(image)
        early = tuple(r for r in policy.rules if r.preview_at and _step(r.preview_at, plan) == step)
        pixels = fit(to_pixels(np.clip(preview, -1, 1)), plan.size)
        verdicts = self._judge.judge(pixels, replace(policy, rules=early))
        if all(verdict.passed for verdict in verdicts):
            return False
        said = {v.gate: replace(v, reason=_at(v.reason, step, plan)) for v in verdicts}
        unasked = f"not asked: the attempt was given up at step {step}"
        verdicts = tuple(said.get(rule.gate) or rule.abstain(unasked) for rule in policy.rules)
        pairs = zip(plan.rows, plan.steps, strict=True)
        calls = sum(rows for rows, of_step in pairs if of_step <= step)
        self._given_up[image] = (verdicts, calls)
        return True

    def judge_attempt(
        self,
        image: ImageId,
        attempt: Attempted,
        policy: GatePolicy | None,
        attempts: list[Attempted],
    ) -> Kept | Retry:
        """Judge an attempt and decide about its image.

        Args:
            image: Which attempt at which image.
            attempt: What was made; no pixels where it was given up.
            policy: The gates of the request, or None.
            attempts: Those before; the new one is added.

        Returns:
            What is kept, or that another attempt is needed.

        Raises:
            GateRejected: If the image is refused.
        """
        seen, early = image in self._seen, self._given_up.pop(image, None)
        self._seen.discard(image)
        if policy is None or self._judge is None:
            return _kept(attempt, ())
        if early is not None:
            # Whether the engine stopped in time or not, the attempt is worth the same.
            timings = replace(StageTimings(), model_calls=early[1])
            attempt = replace(attempt, verdicts=early[0], pixels=None, timings=timings, warnings=())
        else:
            attempt = self._judged(attempt, policy, seen=seen)
        attempts.append(attempt)
        accepted = str(all(v.passed for v in attempt.verdicts)).lower()
        metrics.count("mezzotint_attempts_total", model=attempt.plan.model, accepted=accepted)
        decision = decide(
            [a.verdicts for a in attempts],
            policy,
            spent=_spent(attempts),
            pictures=[a.pixels is not None for a in attempts],
        )
        if isinstance(decision, Retry):
            return decision
        if isinstance(decision, Reject):
            raise GateRejected(decision.reason)
        kept = attempts[decision.attempt]
        notes = kept.warnings
        if decision.is_spent:
            notes += (f"the budget of the gates was spent after {len(attempts)} attempts",)
        if not decision.passed:
            notes += ("no attempt passed every gate; the best one was kept",)
        return _kept(replace(kept, warnings=notes), _records(attempts, decision))

    def _judged(self, attempt: Attempted, policy: GatePolicy, *, seen: bool) -> Attempted:
        """Let every gate see the finished picture."""
        assert self._judge is not None  # noqa: S101 - the caller saw to it
        began = time.monotonic()
        verdicts = self._judge.judge(attempt.pixels, policy)
        timings = replace(attempt.timings, gate_s=time.monotonic() - began)
        warnings = attempt.warnings
        if not seen and any(rule.preview_at for rule in policy.rules):
            warnings += ("no preview was judged: there was none; only the finished picture was",)
        return replace(attempt, verdicts=verdicts, timings=timings, warnings=warnings)


def _at(reason: str, step: int, plan: Plan) -> str:
    place = f"preview at step {step} of {plan.num_steps}"
    return f"{place}: {reason}" if reason else place


def _kept(attempt: Attempted, records: tuple[Attempt, ...]) -> Kept:
    return Kept(
        plan=attempt.plan,
        pixels=attempt.pixels,
        timings=attempt.timings,
        warnings=attempt.warnings,
        attempts=records,
    )


def _spent(attempts: Sequence[Attempted]) -> Spent:
    """Return what the attempts took; the device's seconds and the gates' own."""
    timings = [a.timings for a in attempts]
    return Spent(
        seconds=sum(t.encode_s + t.denoise_s + t.decode_s + t.gate_s for t in timings),
        model_calls=sum(t.model_calls for t in timings),
        next_calls=max(a.plan.model_calls for a in attempts),
    )


def _records(attempts: Sequence[Attempted], decision: Accept) -> tuple[Attempt, ...]:
    """Return the attempt log of an image."""
    return tuple(
        Attempt(
            number=number,
            seed=attempt.plan.seed,
            verdicts=attempt.verdicts,
            accepted=number == decision.attempt and decision.passed,
        )
        for number, attempt in enumerate(attempts)
    )
