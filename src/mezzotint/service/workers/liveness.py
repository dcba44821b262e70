"""Liveness: whether a worker process gets on with its work, or hangs.

Three signs, each of them measured, never guessed:

- The call that its device thread is in takes many times what such calls take.
- It answers nothing and uses no processor time either (stopped, or deadlocked). A
  process that loads or compiles may be silent as well, but works or waits for its disk.
- It answers nothing for ``silence_s``, whatever else it does.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mezzotint.service.config import WorkerConfig

__all__ = ["Activity", "Liveness", "read_activity"]

_AWAY_S = 3.0
"""A longer pause between two looks: it was us who stood still."""
_DOUBT = 0.5
"""Share of the patience after which a process is not called ready any more."""

Activity = tuple[int, bool]
"""Ticks of processor time and page faults so far; whether it waits for a disk."""


def read_activity(pid: int) -> Activity | None:
    """Return what a process has used up to now, None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        faults, used = int(fields[7]) + int(fields[9]), int(fields[11]) + int(fields[12])
        return faults + used, fields[0] == "D"
    return None


class Liveness:
    """The signs of life of one process.

    Args:
        config: How patient to be.
        activity: Says what the process has used so far.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        config: WorkerConfig,
        activity: Callable[[], Activity | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._activity = activity
        self._clock = clock
        self._call: Mapping[str, Any] | None = None
        self._heard = self._worked = self._looked = clock()
        self._used = activity()

    def hear(self, health: Mapping[str, Any] | None = None) -> None:
        """Note that the process said something: how it is, or anything else."""
        self._heard = self._clock()
        if health is not None:
            call = health.get("call")
            self._call = call if isinstance(call, Mapping) else None

    def look(self) -> None:
        """Note what the process has used since the last look."""
        now = self._clock()
        if now - self._looked > _AWAY_S:
            self._heard = now
        self._looked = now
        used = self._activity()
        if used is None or used[1] or used != self._used:
            self._worked = now
        self._used = used

    @property
    def is_doubtful(self) -> bool:
        """Whether half of the patience is used up."""
        return self._share() >= _DOUBT

    @property
    def trouble(self) -> str:
        """Why the process counts as hung, "" if it does not."""
        now = self._clock()
        if self._share() < 1:
            return ""
        if (seconds := now - self._heard) >= self._config.silence_s:
            return f"it answered nothing for {seconds:.0f} s"
        if self._share_of_call() >= 1 and self._call is not None:
            kind, expected = self._call["kind"], float(self._call["expected_s"])
            return f"a {kind} that takes {expected:.3g} s is not done after {self._seconds():.0f} s"
        return f"it neither answered nor worked for {now - max(self._heard, self._worked):.0f} s"

    def _share(self) -> float:
        """Return how much of the patience is used up; 1 is all of it."""
        now, config = self._clock(), self._config
        silent = (now - self._heard) / config.silence_s
        still = (now - max(self._heard, self._worked)) / config.hang_s
        return max(silent, still, self._share_of_call())

    def _share_of_call(self) -> float:
        """Return how much of what it may take the call under way has taken."""
        if self._call is None or self._call.get("expected_s") is None:
            return 0.0
        config = self._config
        least = config.silence_s if self._call.get("is_first") else config.hang_s
        return self._seconds() / max(config.hang_factor * float(self._call["expected_s"]), least)

    def _seconds(self) -> float:
        """Return the seconds that the call had taken when the process last told of it."""
        return float(self._call["seconds"]) if self._call is not None else 0.0
