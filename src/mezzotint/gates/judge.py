"""Judge: builds the policy of a request and measures pictures for it.

The service asks the judge twice: once for the policy, before any work (an
unknown gate is refused then), and once per finished picture.
"""

import threading
from typing import Any

from mezzotint.gates.base import GATES, Gate
from mezzotint.gates.policy import GatePolicy, GateRule
from mezzotint.request import Gates
from mezzotint.types import Verdict

__all__ = ["GateJudge"]


class GateJudge:
    """Keeps the gates that were used, loaded once each."""

    def __init__(self) -> None:
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
            except Exception as error:
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
        )

    def _gate(self, name: str) -> Gate:
        with self._lock:
            if name not in self._gates:
                self._gates[name] = GATES[name]()
            return self._gates[name]
