"""Timing: seconds that a device really worked, by its own events where it has them."""

from collections.abc import Callable

import torch

__all__ = ["Timer"]


class Timer:
    """Begins when it is made.

    Args:
        device: Who works; on CUDA its own events are read, elsewhere the clock.
        clock: Seconds.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        if device.type == "cuda":
            self._events = (
                torch.cuda.Event(enable_timing=True),
                torch.cuda.Event(enable_timing=True),
            )
            self._events[0].record(torch.cuda.current_stream(device))
        self._began = clock()

    def stop(self) -> float:
        """Wait until the device has done what it was given; return seconds."""
        if self._events is None:
            return self._clock() - self._began
        begin, end = self._events
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000.0
