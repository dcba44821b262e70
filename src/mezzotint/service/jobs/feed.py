"""Feed: a job's events, from the store and from memory, to everybody who listens."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.service.jobs.rows import Lease, StoredEvent

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
    """What is known of a job that runs here beyond its row.

    Args:
        lease: What every write of it shows.
        request_id: What the service knows it by.
        next_id: Id of its next event.
        told: Id of the last step that other servers were told of.
        latest: The step to tell them of next: the latest, or the latest with a preview.
        is_lost: Whether another server has the job, so that this run counts for nothing.
    """

    lease: Lease
    request_id: str
    next_id: int
    told: int = 0
    latest: JobEvent | None = None
    is_lost: bool = False
    events: deque[JobEvent] = field(default_factory=lambda: deque[JobEvent](maxlen=_STEPS_KEPT))
    images: set[int] = field(default_factory=set[int])
    step: int = 0
    steps: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def owes_a_preview(self) -> bool:
        """Whether the latest step has a preview that other servers have not got yet."""
        latest = self.latest
        return latest is not None and latest.preview is not None and latest.id > self.told


class JobFeed:
    """Brings events to listeners.

    Args:
        running: The jobs that run, by id.
        kept: Gives the stored events of a job with ids above a number, in order.
        has_ended: Tells whether a job has ended.
        step: Gives the latest step of a job that runs on another server, or None.
    """

    def __init__(
        self,
        running: Mapping[str, RunningJob],
        kept: Callable[[str, int], Awaitable[list[StoredEvent]]],
        has_ended: Callable[[str], Awaitable[bool]],
        step: Callable[[str], Awaitable[JobEvent | None]],
    ) -> None:
        self._running = running
        self._kept = kept
        self._has_ended = has_ended
        self._step = step
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
                # read before what is kept: a step that is written has those before it written
                step = await self._step(id_) if running is None else None
                if step is not None and step.id > after:
                    recent.append(step)
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
        event = JobEvent(id=running.next_id, kind=kind, data=data, preview=preview)
        running.events.append(event)
        running.next_id += 1
        if kind == "step" and (preview is not None or not running.owes_a_preview):
            running.latest = event
        self.announce(id_)

    def announce(self, id_: str) -> None:
        """Wake everybody who waits for an event of this job."""
        for bell in self._bells.get(id_, ()):
            bell.set()

    def announce_all(self) -> None:
        """Wake everybody: something may have been missed."""
        for id_ in list(self._bells):
            self.announce(id_)
