"""Promises: an ETA corrected by what became of the ETAs before it.

The cost table knows what a picture costs alone. What a queue really takes depends on
how well its pictures share calls and on who else uses the machine; that is learnt
here, as the ratio of seconds taken to seconds predicted, by how full it was.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Promises"]

_WEIGHT = 0.15  # of the newest ratio in the running mean
_MARGIN = 1.0  # mean deviations that are promised on top: late is worse than early
_LOWEST, _HIGHEST = 0.02, 50.0


@dataclass(slots=True)
class _Level:
    """What was learnt at one level of load."""

    mean: float = 1.0
    deviation: float = 0.0
    count: int = 0

    def learn(self, ratio: float) -> None:
        if not self.count:
            self.mean = ratio
        weight = max(_WEIGHT, 1 / (self.count + 1))
        self.deviation += weight * (abs(ratio - self.mean) - self.deviation)
        self.mean += weight * (ratio - self.mean)
        self.count += 1


class Promises:
    """Corrects predictions by experience; used from one thread.

    Args:
        clock: Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._levels: dict[int, _Level] = {}
        self._open: dict[str, tuple[float, float, int]] = {}

    def factor(self, images: int) -> float:
        """Return what a prediction should be multiplied with.

        Args:
            images: Images that are held already, >= 0.
        """
        level = images.bit_length()
        known = self._levels.get(level)
        if known is None:
            near = sorted(self._levels, key=lambda other: abs(other - level))
            known = self._levels[near[0]] if near else _Level()
        learnt = known.mean + _MARGIN * known.deviation
        now = self._clock()
        overdue = [(now - began) / predicted for began, predicted, _ in self._open.values()]
        if len(overdue) >= 4:  # what is late already is known before it ends
            learnt = max(learnt, statistics.median(overdue))
        return min(max(learnt, _LOWEST), _HIGHEST)

    def give(self, order: str, predicted_s: float, images: int) -> None:
        """Remember an order that was accepted.

        Args:
            order: Its id.
            predicted_s: Seconds predicted, not corrected.
            images: Images that were held before it.
        """
        if predicted_s > 0:
            self._open[order] = (self._clock(), predicted_s, images.bit_length())

    def keep(self, order: str) -> None:
        """Learn from an order that was done."""
        began, predicted, level = self._open.pop(order, (0.0, 0.0, 0))
        if predicted > 0:
            ratio = (self._clock() - began) / predicted
            self._levels.setdefault(level, _Level()).learn(ratio)

    def forget(self, order: str) -> None:
        """Learn nothing from an order that failed or was cancelled."""
        self._open.pop(order, None)
