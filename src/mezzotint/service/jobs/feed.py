"""Feed: a job's events, from the store and from memory, to everybody who listens."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.service.jobs.store import StoredEvent

__all__ = ["JobEvent", "JobFeed", "RunningJob"]

_STEPS_KEPT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One event of a job as a client sees it; ``preview`` is an encoded picture."""

    id: int
    kind: str
    data: Mapping[str, Any]
    preview: bytes | None = field(default=None, repr=False)

    @property
    def is_ending(self) -> bool:
        """Whether nothing comes after it."""
        return self.kind in ("finished", "failed", "cancelled")


@dataclass(slots=True)
class RunningJob:
    """What is known of a running job beyond its row."""

    request_id: str
    next_id: int
    events: deque[JobEvent] = field(default_factory=lambda: deque[JobEvent](maxlen=_STEPS_KEPT))
    images: set[int] = field(default_factory=set[int])
    step: int = 0
    steps: int = 0
    task: asyncio.Task[None] | None = None


class JobFeed:
    """Brings events to listeners.

    Args:
        running: The jobs that run, by id.
        kept: Gives the stored events of a job with ids above a number, in order.
        has_ended: Tells whether a job has ended.
    """

    def __init__(
        self,
        running: Mapping[str, RunningJob],
        kept: Callable[[str, int], Awaitable[list[StoredEvent]]],
        has_ended: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._running = running
        self._kept = kept
        self._has_ended = has_ended
        self._bells: dict[str, list[asyncio.Event]] = {}

    async def events(self, id_: str, after: int) -> AsyncIterator[JobEvent]:
        """Yield the events of a job with ids above ``after``, up to its ending."""
        bell = asyncio.Event()
        self._bells.setdefault(id_, []).append(bell)
        try:
            while True:
                bell.clear()
                running = self._running.get(id_)
                recent = [e for e in running.events if e.id > after] if running is not None else []
                first = running.events[0].id if running is not None and running.events else None
                if first is None or after + 1 < first:
                    recent += [
                        JobEvent(id=e.id, kind=e.kind, data=e.data)
                        for e in await self._kept(id_, after)
                        if first is None or e.id < first
                    ]
                for event in sorted(recent, key=lambda e: e.id):
                    after = event.id
                    yield event
                    if event.is_ending:
                        return
                is_quiet = running is None and not recent
                if is_quiet and await self._has_ended(id_) and not bell.is_set():
                    return
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(bell.wait(), 1.0)
        finally:
            self._bells[id_].remove(bell)
            if not self._bells[id_]:
                del self._bells[id_]

    def publish(
        self,
        id_: str,
        running: RunningJob,
        kind: str,
        data: Mapping[str, Any],
        preview: bytes | None = None,
    ) -> None:
        """Give a running job its next event."""
        running.events.append(JobEvent(id=running.next_id, kind=kind, data=data, preview=preview))
        running.next_id += 1
        self.announce(id_)

    def announce(self, id_: str) -> None:
        """Wake everybody who waits for an event of this job."""
        for bell in self._bells.get(id_, ()):
            bell.set()
