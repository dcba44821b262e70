"""Autoscaler: how many replicas a deployment should have, from its measured backlog.

Pure: seconds of work in, a number out. It goes up at once, to as many as would begin with
what came last within ``backlog_s``; and down only to the most that was wanted in the last
``idle_s``, so that a pause does not end what loads for minutes. To zero it goes only where
nothing at all was under way for as long.
"""

import math
from collections import deque
from dataclasses import dataclass

__all__ = ["Autoscaler", "Scale"]

_HYSTERESIS = 0.1  # of a replica, that a backlog may be over before another is started


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Between which numbers, and how eagerly.

    Args:
        least: Replicas at least, may be 0.
        most: Replicas at most, >= 1.
        backlog_s: Seconds of work before one replica that are worth another.
        idle_s: Seconds that a replica stays after it was last needed.
    """

    least: int
    most: int
    backlog_s: float
    idle_s: float


class Autoscaler:
    """The wishes of one deployment over time.

    Args:
        scale: Its bounds.
    """

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._wishes: deque[tuple[float, int]] = deque()  # times, and numbers that fall

    def want(self, now_s: float, *, backlog_s: float, requests: int) -> int:
        """Return how many replicas there should be.

        Args:
            now_s: Time, rising.
            backlog_s: Seconds of work under way and waiting, on one replica.
            requests: How many requests that are.
        """
        scale = self.scale
        wish = math.ceil(backlog_s / scale.backlog_s - _HYSTERESIS) if requests else 0
        wish = min(max(wish, scale.least, 1 if requests else 0), scale.most)
        if requests:
            wish = min(wish, max(requests, scale.least))  # one request has one device
        while self._wishes and self._wishes[-1][1] <= wish:
            self._wishes.pop()
        self._wishes.append((now_s, wish))
        while len(self._wishes) > 1 and self._wishes[0][0] < now_s - scale.idle_s:
            self._wishes.popleft()
        return self._wishes[0][1]
