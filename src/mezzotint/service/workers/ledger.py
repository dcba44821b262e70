"""Ledger: what a worker has under way, and what its deaths mean to it.

One ledger for every transport: a process on this machine and a replica in a cluster
lose work in the same way. Pure: it posts messages and hands on answers, and knows no
socket, no clock and no event loop.

Who was being planned or drawn when the worker died may be why it died: after two deaths a
request is sent alone among its like, so that the one that kills dies alone and those
beside it live; after ``max_crashes`` it fails. A plain call, such as reading a
stranger's picture, is sent again after one death and refused after the second: unlike a
picture half made, there is little to lose, and nothing that could run it alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from mezzotint.errors import MezzotintError, NotReady, WorkFailed
from mezzotint.service.descriptions import read_error
from mezzotint.service.workers.messages import (
    Answered,
    CallFailed,
    CallMethod,
    Cancel,
    EventMessage,
    FromWorker,
    StreamEnded,
    StreamRequest,
    ToWorker,
    read_event,
)
from mezzotint.service.workers.recorder import Recorded
from mezzotint.types import Cancelled, Event, ImageFinished, ImageOutput, Queued, Started

__all__ = ["Call", "Ledger", "Stream"]

_SUSPECT = 2  # who was there at so many deaths goes on alone among its like
_MOST_DEATHS = 2  # at which a plain call may be there
_WITH_DATA = ("inspect", "preprocess", "upscale", "grid", "handle", "plan")


@dataclass(slots=True, eq=False)
class Call:
    """One plain call under way.

    Args:
        message: What is sent.
        hear: Told the answer as plain data, or the error, once.
    """

    message: CallMethod
    hear: Callable[[Any], None]
    deaths: int = 0


@dataclass(slots=True, eq=False)
class Stream:
    """One request under way, who works on it, and what its client has seen.

    Args:
        request_id: Its id.
        message: What is sent to the worker.
        hear: Told each event once, however often the request is run; an error is the last.
    """

    request_id: str
    message: StreamRequest
    hear: Callable[[Event | MezzotintError], None]
    ledger: "Ledger | None" = None
    crashes: int = 0
    is_held: bool = False
    is_sent: bool = False  # these three are about the run that is under way
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

    def leave(self, ended: bool) -> None:
        """Nobody listens any more; another ledger than the first may have it by now."""
        if self.ledger is not None:
            self.ledger.leave(self, ended)

    def take(self, message: CallFailed | StreamEnded | EventMessage) -> None:
        """Hand on what the worker said, unless a run before its death did so already."""
        if isinstance(message, CallFailed):
            self.hear(read_error(message.error))
        elif isinstance(message, StreamEnded):
            self.hear(WorkFailed("the request ended without an ending"))
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
            self.hear(event)

    def learn(self, recorded: Recorded) -> None:
        """Take in what a worker that tells only endings wrote down of the run before it died."""
        if self.is_sent and self.message.ending_only:
            self.is_started = self.is_started or self.message.call in recorded.drawn
            self.is_accepted = self.is_accepted or self.message.call not in recorded.planning

    def survive(self) -> None:
        """Count a death of the worker if this request may have been why."""
        if self.is_started or (self.is_sent and not self.is_accepted):
            self.crashes += 1
            self.was_drawn_at_death |= self.is_started
            self.message = replace(self.message, ending_only=False)  # all is told of suspects
        self.forget_run()

    def forget_run(self) -> None:
        """Begin again, wherever it goes next."""
        self.is_sent = self.is_accepted = self.is_started = False


class Ledger:
    """What one worker has under way, by the number of its call.

    Args:
        post: Sends a message to the worker; called only while the ledger is up.
        max_crashes: Deaths after which a request that was there fails.
    """

    def __init__(self, post: Callable[[ToWorker], None], *, max_crashes: int) -> None:
        self._post = post
        self._max_crashes = max_crashes
        self._streams: dict[int, Stream] = {}
        self._calls: dict[int, Call] = {}
        self._next = 0
        self.is_up = False

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._streams.values()))

    def number(self) -> int:
        """Return a number that no call of this worker has had."""
        self._next += 1
        return self._next

    def open(self, stream: Stream) -> None:
        """Take a request in, from its client or from another ledger, and send it if it may go."""
        call = self.number()
        stream.ledger = self
        stream.message = replace(stream.message, call=call)
        stream.forget_run()
        stream.is_held = stream.is_suspect
        self._streams[call] = stream
        if stream.is_held:
            self._send_suspects()
        else:
            self._send(stream)

    def leave(self, stream: Stream, ended: bool) -> None:
        """Forget a request to which nobody listens any more; the worker stops one not ended."""
        is_there = self._streams.pop(stream.message.call, None) is not None
        if is_there and not ended and self.is_up and stream.is_sent:
            self._post(Cancel(call=stream.message.call))
        self._send_suspects()

    def move(self, stream: Stream, other: "Ledger") -> None:
        """Let another worker have a request; this one stops it."""
        self.leave(stream, ended=False)
        other.open(stream)

    def release(self) -> list[Stream]:
        """Forget every request of a worker that died, and return them for others to open."""
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.ledger = None
        return streams

    def cancel(self, request_id: str) -> bool | None:
        """Cancel a request that the worker does not have.

        Returns:
            True if it was cancelled, False if there is none, None if the worker has it and
            has to be asked.
        """
        for stream in self._streams.values():
            if stream.request_id == request_id:
                if self.is_up and not stream.is_held:
                    return None
                self._streams.pop(stream.message.call)
                stream.hear(Cancelled(id=request_id))
                return True
        return False

    def ask(self, method: str, arguments: dict[str, Any], hear: Callable[[Any], None]) -> Call:
        """Open a plain call, and send it if the worker is up."""
        message = CallMethod(call=self.number(), method=method, arguments=arguments)
        call = self._calls[message.call] = Call(message, hear)
        if self.is_up:
            self._post(message)
        return call

    def forget(self, call: Call, *, stop: bool = False) -> None:
        """Forget a plain call; with ``stop`` the worker is told that nobody waits for it."""
        if self._calls.pop(call.message.call, None) is not None and stop and self.is_up:
            self._post(Cancel(call=call.message.call))

    def begin(self) -> None:
        """Send everything that is under way to a fresh worker; of suspects one at a time."""
        self.is_up = True
        for stream in self:
            stream.is_held = stream.is_suspect
            if not stream.is_held:
                self._send(stream)
        self._send_suspects()
        # last those with a client's data, any of which may kill
        for call in sorted(self._calls.values(), key=lambda c: c.message.method in _WITH_DATA):
            self._post(call.message)

    def lose(self, *, blame: bool = True, recorded: Recorded | None = None) -> None:
        """Note that the worker is gone.

        Args:
            blame: Whether what it had may be why; a machine that lost its power is not.
            recorded: What it wrote down, if it writes.
        """
        self.is_up = False
        for stream in self:
            if recorded is not None:
                stream.learn(recorded)
            if blame:
                stream.survive()
            else:
                stream.forget_run()
            if stream.crashes >= self._max_crashes:
                del self._streams[stream.message.call]
                reason = f"the engine died {stream.crashes} times while it ran this request"
                stream.hear(WorkFailed(reason))
        for call in list(self._calls.values()) if blame else ():
            call.deaths += 1
            if call.deaths >= _MOST_DEATHS:
                del self._calls[call.message.call]
                method = call.message.method
                reason = f"the engine died {call.deaths} times while it answered {method}"
                call.hear(WorkFailed(reason))

    def take(self, message: FromWorker) -> None:
        """Give a message of the worker to whoever waits for it; nobody may."""
        call = self._calls.get(message.call)
        if call is not None:
            if isinstance(message, Answered | CallFailed):
                del self._calls[message.call]
                is_good = isinstance(message, Answered)
                call.hear(message.value if is_good else read_error(message.error))
            return
        stream = self._streams.get(message.call)
        if stream is not None and not isinstance(message, Answered):
            stream.take(message)
            if stream.is_suspect:
                self._send_suspects()

    def refuse(self, reason: str) -> None:
        """Refuse everything that is under way."""
        self.is_up = False
        for stream in self:
            stream.hear(NotReady(reason))
        for call in list(self._calls.values()):
            call.hear(NotReady(reason))
        self._calls.clear()

    def _send(self, stream: Stream) -> None:
        if self.is_up:
            stream.is_sent = True
            self._post(stream.message)

    def _send_suspects(self) -> None:
        """Let go of the next request that is held, if no other one may cause a death now."""
        if not self.is_up:
            return
        suspects = [stream for stream in self._streams.values() if stream.is_suspect]
        for stream in suspects:
            if any(other.keeps_others_waiting for other in suspects):
                return
            if stream.is_held:
                stream.is_held = False
                self._send(stream)
