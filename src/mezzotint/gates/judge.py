"""Judge: builds the policy of a request and measures pictures for it.

The service asks the judge twice: once for the policy, before any work (an
unknown gate is refused then), and once per finished picture.
"""

import threading
from pathlib import Path
from typing import Any

from mezzotint.errors import NotReady
from mezzotint.gates.base import Gate
from mezzotint.gates.policy import GatePolicy, GateRule
from mezzotint.gates.registry import GATES
from mezzotint.request import Gates
from mezzotint.types import Verdict

__all__ = ["OWN_WEIGHTS", "GateJudge"]

OWN_WEIGHTS = ("aesthetic", "safety_checker")
"""Gates that take weights of the user's own from a folder of their name."""


class GateJudge:
    """Keeps the gates that were used, loaded once each.

    Args:
        folder: Holds folders with weights of the user's own: ``aesthetic``,
            ``safety_checker``; None for none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._gates: dict[str, Gate] = {}
        self._lock = threading.Lock()

    def policy(self, gates: Gates) -> GatePolicy:
        """Resolve the gates of a request: thresholds, directions, order.

        Raises:
            UnknownName: If a gate does not exist.
            NotReady: If a gate's weights are not installed.
        """
        return GatePolicy(
            rules=tuple(self._rule(name, settings) for name, settings in gates.gates),
            max_attempts=gates.max_attempts,
            keep=gates.keep,
            budget_s=gates.budget_s,
            budget_calls=gates.budget_calls,
        )

    def judge(self, pixels: Any, policy: GatePolicy) -> tuple[Verdict, ...]:
        """Measure one picture with every rule, in order.

        Args:
            pixels: uint8 array of shape (H, W, 3).
            policy: What :meth:`policy` returned.

        Returns:
            One verdict per rule; an error inside a gate is a verdict, open or
            closed as the request says.
        """
        verdicts: list[Verdict] = []
        for rule in policy.rules:
            try:
                score = self._gate(rule.gate).score(pixels)
            except Exception as error:  # a gate may be a plug-in; policy decides open or closed
                verdicts.append(rule.judge_error(f"{type(error).__name__}: {error}"))
            else:
                verdicts.append(rule.judge(score.value, score.reason))
        return tuple(verdicts)

    def _rule(self, name: str, settings: Any) -> GateRule:
        info = self._gate(name).info
        threshold = info.default_threshold if settings.threshold is None else settings.threshold
        return GateRule(
            gate=name,
            threshold=threshold,
            passes_below=info.passes_below,
            spread=info.spread,
            blocks=info.blocks,
            on_error=settings.on_error,
            preview_at=settings.preview_at,
        )

    def names(self) -> tuple[str, ...]:
        """Return the gates a request may name, sorted."""
        own = {name for name in OWN_WEIGHTS if self._has(name)}
        return tuple(sorted({*GATES.names(), *own}))

    def _has(self, name: str) -> bool:
        return self._folder is not None and (self._folder / name).is_dir()

    def _own(self, name: str) -> Gate | None:
        """Load a gate whose weights the user brought; None where the built-in one serves.

        Raises:
            NotReady: If its folder is not there and none is built in.
            WeightsError: If its folder is incomplete.
        """
        if name not in OWN_WEIGHTS:
            return None
        if self._folder is None or not self._has(name):
            if name in GATES.names():
                return None
            where = self._folder / name if self._folder is not None else f"gates/{name}"
            raise NotReady(
                f"the gate {name} needs weights of your own in the folder {where}: put a Stable "
                "Diffusion safety checker as diffusers saves it there"
            )
        if name == "aesthetic":
            from mezzotint.gates.aesthetic import AestheticGate

            return AestheticGate(self._folder / name)
        from mezzotint.gates.safety_checker import SafetyCheckerGate

        return SafetyCheckerGate(self._folder / name)

    def _gate(self, name: str) -> Gate:
        with self._lock:
            if name not in self._gates:
                own = self._own(name)
                self._gates[name] = own if own is not None else GATES[name]()
            return self._gates[name]
