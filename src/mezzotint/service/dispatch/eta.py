"""ETA: predicted seconds, corrected by what became of the predictions before.

The cost table knows what a picture costs alone. What a queue really takes depends on
how well its pictures share calls and on who else uses the machine; that is learnt
here, as the ratio of seconds taken to seconds predicted: quickly what holds now, slowly
how it depends on how full it is.
"""

import math
import statistics
from collections.abc import Callable

__all__ = ["EtaCorrection"]

_NOW = 0.15  # weight of the newest ratio in what holds at any load
_LEVEL = 0.1  # and in how one level of load differs from that
_MARGIN = 1.5  # mean deviations that are added: late is worse than early
_LOWEST, _HIGHEST = 0.02, 50.0


class EtaCorrection:
    """Corrects predictions by experience; used from one thread.

    Args:
        clock: Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._now = 0.0  # mean logarithm of seconds taken / seconds predicted
        self._levels: dict[int, float] = {}
        self._deviation = 0.0
        self._count = 0
        self._open: dict[str, tuple[float, float, int]] = {}

    def factor(self, images: int) -> float:
        """Return what a prediction should be multiplied with.

        Args:
            images: Images that are held already, >= 0.
        """
        level = images.bit_length()
        near = min(self._levels, key=lambda other: abs(other - level), default=None)
        offset = self._levels[near] if near is not None else 0.0
        learnt = math.exp(min(self._now + offset + _MARGIN * self._deviation, 10.0))
        now = self._clock()
        overdue = [(now - began) / predicted for began, predicted, _ in self._open.values()]
        if len(overdue) >= 4:  # what is late already is known before it ends
            learnt = max(learnt, statistics.median(overdue))
        return min(max(learnt, _LOWEST), _HIGHEST)

    def begin(self, request_id: str, predicted_s: float, images: int) -> None:
        """Remember a request that was accepted.

        Args:
            request_id: Its id.
            predicted_s: Seconds predicted, not corrected.
            images: Images that were held before it.
        """
        if predicted_s > 0:
            self._open[request_id] = (self._clock(), predicted_s, images.bit_length())

    def learn(self, request_id: str) -> None:
        """Learn from a request that was done."""
        began, predicted, level = self._open.pop(request_id, (0.0, 0.0, 0))
        if predicted <= 0:
            return
        ratio = max((self._clock() - began) / predicted, 1e-4)
        error = math.log(ratio) - self._now - self._levels.get(level, 0.0)
        self._count += 1
        haste = 1 / self._count  # the first ones are all there is to know
        self._now += max(_NOW, haste) * error
        self._levels[level] = self._levels.get(level, 0.0) + _LEVEL * error
        if self._count > 1:
            self._deviation += max(_NOW, haste) * (abs(error) - self._deviation)

    def forget(self, request_id: str) -> None:
        """Learn nothing from a request that failed or was cancelled."""
        self._open.pop(request_id, None)
