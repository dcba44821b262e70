"""How the time of a function grows with the size of what it is given."""

import time
from collections.abc import Callable
from typing import TypeVar

_FLOOR_S = 0.02  # below it a clock and the allocator say more than the function does
_TRIES = 3

T = TypeVar("T")


def assert_linear(
    read: Callable[[T], object], make: Callable[[int], T], size: int, *, doublings: int = 2
) -> None:
    """Fail where ``doublings`` doublings of the input cost far more than as many of the time.

    Four times the input takes four times as long in a linear reader and sixteen times in a
    quadratic one; ten lies between them with room for noise on both sides. Time of this
    thread, not of the clock, so that what else runs on the machine does not count.
    """

    def seconds(given: T) -> float:
        began = time.thread_time()
        read(given)
        return time.thread_time() - began

    small, large = make(size), make(size << doublings)
    limit = 2.5 * (1 << doublings)
    ratio = 0.0
    for _ in range(_TRIES):
        ratio = seconds(large) / max(seconds(small), _FLOOR_S)
        if ratio < limit:
            return
    raise AssertionError(f"{1 << doublings} times the input took {ratio:.1f} times as long")
