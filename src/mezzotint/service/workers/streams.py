"""Streams: the requests that a worker process has under way, and what its deaths mean to them.

Who was being planned or drawn when the process died may be why it died: after two
deaths a request is sent alone among its like, so that the one that kills dies alone and
those beside it live; after ``max_crashes`` it fails.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from mezzotint.errors import MezzotintError, NotReady, WorkFailed
from mezzotint.service.descriptions import read_error
from mezzotint.service.workers.messages import (
    CallFailed,
    EventMessage,
    StreamEnded,
    StreamRequest,
    read_event,
)
from mezzotint.types import Cancelled, Event, ImageFinished, ImageOutput, Queued, Started

__all__ = ["Stream", "Streams"]

_SUSPECT = 2  # who was there at so many deaths goes on alone among its like


@dataclass(slots=True, eq=False)
class Stream:
    """One request under way, who works on it, and what its client has seen.

    Args:
        streams: Those of the worker that has it now.
        request_id: Its id.
        message: What is sent to the process.
    """

    streams: "Streams"
    request_id: str
    message: StreamRequest
    events: "asyncio.Queue[Event | MezzotintError]" = field(default_factory=asyncio.Queue)
    crashes: int = 0
    is_held: bool = False
    is_sent: bool = False  # these three are about the process that runs now
    is_accepted: bool = False
    is_started: bool = False
    was_drawn_at_death: bool = False
    was_queued: bool = False
    was_started: bool = False
    images: dict[int, ImageOutput] = field(default_factory=dict[int, ImageOutput])

    @property
    def is_suspect(self) -> bool:
        """Whether it was there at so many deaths that it is sent alone."""
        return self.crashes >= _SUSPECT

    @property
    def keeps_others_waiting(self) -> bool:
        """Whether what it was suspected of may still happen."""
        return not self.is_held and (self.was_drawn_at_death or not self.is_accepted)

    def take(self, message: CallFailed | StreamEnded | EventMessage) -> None:
        """Hand on what the process said, unless a run before its death did so already."""
        if isinstance(message, CallFailed):
            self.events.put_nowait(read_error(message.error))
        elif isinstance(message, StreamEnded):
            self.events.put_nowait(WorkFailed("the request ended without an ending"))
        else:
            self._deliver(read_event(message, self.images))

    def _deliver(self, event: Event) -> None:
        self.is_accepted = True
        was_told = False
        if isinstance(event, Queued):
            was_told, self.was_queued = self.was_queued, True
        elif isinstance(event, Started):
            self.is_started = True
            was_told, self.was_started = self.was_started, True
        elif isinstance(event, ImageFinished):
            was_told = event.image.index in self.images
            self.images[event.image.index] = event.image
        if not was_told:
            self.events.put_nowait(event)

    def survive(self) -> None:
        """Count a death of the process if this request may have been why."""
        if self.is_started or (self.is_sent and not self.is_accepted):
            self.crashes += 1
            self.was_drawn_at_death |= self.is_started
        self.is_sent = self.is_accepted = self.is_started = False


class Streams:
    """The requests under way at one worker, by the number of their call.

    Args:
        max_crashes: Deaths after which a request that was there fails.
        leave: Called by whoever listened to a request, with whether it had ended.
    """

    def __init__(self, max_crashes: int, leave: Callable[[Stream, bool], Awaitable[None]]) -> None:
        self._max_crashes = max_crashes
        self.leave = leave
        self._open: dict[int, Stream] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._open.values()))

    def add(self, stream: Stream, number: int) -> None:
        """Take a request in under a number of this worker's."""
        stream.streams = self
        stream.message = replace(stream.message, call=number)
        self._open[number] = stream

    def find(self, number: int) -> Stream | None:
        """Return the request of a call, None if it is over."""
        return self._open.get(number)

    def remove(self, stream: Stream) -> None:
        """Forget a request; one that is gone is no error."""
        self._open.pop(stream.message.call, None)

    def take_all(self) -> list[Stream]:
        """Forget every request and return them."""
        streams = list(self._open.values())
        self._open.clear()
        return streams

    def hold_suspects(self) -> list[Stream]:
        """Return what may be sent to a fresh process at once; hold the others back."""
        for stream in self:
            stream.is_held = stream.is_suspect
        return [stream for stream in self if not stream.is_held]

    def next_suspect(self) -> Stream | None:
        """Let go of the next request that is held, if no other one may cause a death now."""
        suspects = [stream for stream in self if stream.is_suspect]
        if any(stream.keeps_others_waiting for stream in suspects):
            return None
        held = next((stream for stream in suspects if stream.is_held), None)
        if held is not None:
            held.is_held = False
        return held

    def count_death(self) -> None:
        """Count a death of the process; fail who was there at too many."""
        for stream in self:
            stream.survive()
            if stream.crashes >= self._max_crashes:
                self.remove(stream)
                reason = f"the engine died {stream.crashes} times while it ran this request"
                stream.events.put_nowait(WorkFailed(reason))

    def cancel(self, stream: Stream) -> None:
        """End a request that the process does not have."""
        self.remove(stream)
        stream.events.put_nowait(Cancelled(id=stream.request_id))

    def refuse(self, reason: str) -> None:
        """Refuse every request that is under way."""
        for stream in self:
            stream.events.put_nowait(NotReady(reason))
