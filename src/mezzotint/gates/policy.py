"""Policy: what verdicts mean for an attempt; pure, without tensors.

A gate only measures. Whether a picture is kept, tried again with another seed,
or refused is decided here, from all attempts so far, so the decision can be
tested without a picture and told to the user as it was made.

Rules:
    A gate that *blocks* (NSFW) ends the image at once when it fails: a refused
    picture is never retried until something slips through.
    ``first_pass`` keeps the first attempt that passes everything; ``best``
    makes all attempts and keeps the one with the largest margin.
    When attempts run out without a pass, the best one is kept and marked as not
    accepted: a quality threshold costs a warning, not the picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mezzotint.types import Verdict

__all__ = [
    "Accept",
    "Decision",
    "GatePolicy",
    "GateRule",
    "Reject",
    "Retry",
    "Spent",
    "decide",
    "margin",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRule:
    """How one gate of a request is applied.

    Args:
        gate: Name of the gate.
        threshold: Score at which the answer changes; the gate's own scale.
        passes_below: True if low scores are good (NSFW probability, BRISQUE).
        spread: A typical difference between a good and a bad score, > 0; makes
            margins of different gates comparable.
        blocks: Whether failing ends the image without another attempt.
        on_error: What an error inside the gate means: ``open`` passes.
        preview_at: Share of the steps at which a preview is judged too, or None.
    """

    gate: str
    threshold: float
    passes_below: bool = True
    spread: float = 1.0
    blocks: bool = False
    on_error: Literal["open", "closed"] = "closed"
    preview_at: float | None = None

    def abstain(self, reason: str) -> Verdict:
        """Return a verdict that says nothing: no score, passed."""
        return Verdict(
            gate=self.gate, score=math.nan, threshold=self.threshold, passed=True, reason=reason
        )

    def judge(self, score: float, reason: str = "") -> Verdict:
        """Turn a score into a verdict; a score that is not finite fails."""
        low_enough = score <= self.threshold if self.passes_below else score >= self.threshold
        return Verdict(
            gate=self.gate,
            score=score,
            threshold=self.threshold,
            passed=bool(math.isfinite(score) and low_enough),
            reason=reason,
        )

    def judge_error(self, reason: str) -> Verdict:
        """Turn an error inside the gate into a verdict, open or closed."""
        return Verdict(
            gate=self.gate,
            score=math.nan,
            threshold=self.threshold,
            passed=self.on_error == "open",
            reason=f"the gate failed and is {self.on_error}: {reason}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatePolicy:
    """The rules of a request, in order, and how attempts are spent.

    Args:
        rules: One per gate.
        max_attempts: Attempts at one image, at most.
        keep: Which attempt is kept.
        budget_s: Seconds that the attempts at one image may take together, or None.
        budget_calls: Model calls that they may take together, or None.
    """

    rules: tuple[GateRule, ...]
    max_attempts: int = 1
    keep: Literal["first_pass", "best"] = "first_pass"
    budget_s: float | None = None
    budget_calls: int | None = None

    def allows(self, attempts: int, spent: "Spent") -> bool:
        """Whether another attempt, as long as those before, stays within the budgets."""
        calls = spent.model_calls + spent.next_calls
        if self.budget_calls is not None and calls > self.budget_calls:
            return False
        if self.budget_s is None:
            return True
        return spent.seconds + spent.seconds / max(attempts, 1) <= self.budget_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What the attempts at an image took so far, and the calls of one more."""

    seconds: float = 0.0
    model_calls: int = 0
    next_calls: int = 0


@dataclass(frozen=True, slots=True)
class Accept:
    """Keep the attempt with this number, counted from 0; ``is_spent`` if a budget ended them."""

    attempt: int
    passed: bool
    is_spent: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Make attempt number ``attempt`` with a derived seed."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Reject:
    """Withhold the image; ``reason`` names the gate and the scores."""

    reason: str


Decision = Accept | Retry | Reject


def margin(verdicts: Sequence[Verdict], policy: GatePolicy) -> float:
    """Return how far an attempt is on the good side of its worst gate.

    Args:
        verdicts: One per rule, in the order of the rules.
        policy: The rules, for their directions and spreads.

    Returns:
        The smallest distance to a threshold in units of the gate's spread;
        positive if all pass. A gate that failed open counts as 0, closed as -inf.
    """
    smallest = math.inf
    for verdict, rule in zip(verdicts, policy.rules, strict=True):
        if math.isnan(verdict.score):
            distance = 0.0 if verdict.passed else -math.inf
        else:
            distance = (verdict.score - verdict.threshold) / rule.spread
            distance = -distance if rule.passes_below else distance
        smallest = min(smallest, distance)
    return smallest


def decide(
    attempts: Sequence[Sequence[Verdict]],
    policy: GatePolicy,
    *,
    spent: Spent | None = None,
    pictures: Sequence[bool] | None = None,
) -> Decision:
    """Decide what happens after the latest attempt at one image.

    Args:
        attempts: The verdicts of every attempt so far, oldest first, at least
            one; each holds one verdict per rule, in order.
        policy: The rules of the request.
        spent: What the attempts took, for the budgets.
        pictures: Which attempts came to a picture; all if None. One that was given up
            at a preview has none.

    Returns:
        :class:`Reject` if a blocking gate failed on the latest attempt or no attempt
        came to a picture,
        :class:`Accept` if an attempt is to be kept, else :class:`Retry`.
    """
    latest = attempts[-1]
    for verdict, rule in zip(latest, policy.rules, strict=True):
        if rule.blocks and not verdict.passed:
            return Reject(
                f"gate {verdict.gate} blocked the picture: score {verdict.score:.3g}, "
                f"allowed {'at most' if rule.passes_below else 'at least'} "
                f"{verdict.threshold:.3g}{'; ' + verdict.reason if verdict.reason else ''}"
            )
    if policy.keep == "first_pass" and all(v.passed for v in latest):
        return Accept(len(attempts) - 1, passed=True)
    is_spent = not policy.allows(len(attempts), spent or Spent())
    if len(attempts) < policy.max_attempts and not is_spent:
        return Retry(len(attempts))
    there = [k for k in range(len(attempts)) if pictures is None or pictures[k]]
    if not there:
        reason = next(v for v in latest if not v.passed)
        return Reject(
            f"all {len(attempts)} attempts were given up at a preview; the last by gate "
            f"{reason.gate}: score {reason.score:.3g}, threshold {reason.threshold:.3g}"
        )
    ranked = [(all(v.passed for v in attempts[k]), margin(attempts[k], policy), -k) for k in there]
    passed, _, negative_index = max(ranked)
    ended = is_spent and len(attempts) < policy.max_attempts
    return Accept(-negative_index, passed=passed, is_spent=ended)
