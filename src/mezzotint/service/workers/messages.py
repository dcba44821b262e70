"""Messages: all that a supervisor and its worker say to each other.

Each direction is one closed union; what is in neither is refused when it is read.
Nothing is ever unpickled: messages are MessagePack, read into the types named here.
"""

from dataclasses import replace
from typing import Any

from msgspec import Struct

from mezzotint.service.descriptions import describe_error, read_error
from mezzotint.types import (
    Cancelled,
    Event,
    Failed,
    Finished,
    GenerationResult,
    ImageFinished,
    ImageOutput,
    Queued,
    Started,
    Stepped,
)

__all__ = [
    "Answered",
    "CallFailed",
    "CallMethod",
    "Cancel",
    "EventMessage",
    "FromWorker",
    "Greeting",
    "Hello",
    "Ready",
    "Refused",
    "StreamEnded",
    "StreamRequest",
    "ToWorker",
    "read_event",
    "write_event",
]


class _Message(Struct, frozen=True, kw_only=True, tag=True):
    """A message; its class's name travels with it."""


class Hello(_Message, frozen=True, kw_only=True, tag=True):
    """The first message to a worker: which service to build, and how.

    Args:
        factory: ``module:function``.
        options: What it is called with.
        log: A :class:`~mezzotint.observe.config.LogConfig` as plain data.
        cores: CPU cores it may use; empty is all of them.
    """

    factory: str
    options: dict[str, Any]
    log: dict[str, Any]
    cores: list[int]


class StreamRequest(_Message, frozen=True, kw_only=True, tag=True):
    """Run a request and tell its events; the arguments are those of the service port.

    Args:
        call: Number that every message about it carries.
        request: The request's canonical JSON.
        ending_only: Whether its ending is enough, where the worker writes down what it is at
            (:mod:`mezzotint.service.workers.recorder`).
        trace: Headers that say to which trace it belongs, if anybody traces.
    """

    call: int
    request: str
    request_id: str
    client: str
    use_cache: bool
    preview_every: int
    quiet: bool
    ending_only: bool = False
    trace: dict[str, str] = {}


class CallMethod(_Message, frozen=True, kw_only=True, tag=True):
    """Call one method of the service with plain arguments."""

    call: int
    method: str
    arguments: dict[str, Any]


class Cancel(_Message, frozen=True, kw_only=True, tag=True):
    """Nobody waits for a stream or a call any more."""

    call: int


class Ready(_Message, frozen=True, kw_only=True, tag=True):
    """The service stands."""

    pid: int


class Refused(_Message, frozen=True, kw_only=True, tag=True):
    """There is no service, and why."""

    error: dict[str, Any]


class Answered(_Message, frozen=True, kw_only=True, tag=True):
    """What a method returned, as plain data."""

    call: int
    value: Any


class CallFailed(_Message, frozen=True, kw_only=True, tag=True):
    """What a method or a stream raised."""

    call: int
    error: dict[str, Any]


class StreamEnded(_Message, frozen=True, kw_only=True, tag=True):
    """A stream has no more events."""

    call: int


class QueuedMessage(_Message, frozen=True, kw_only=True, tag=True):
    """A request waits."""

    call: int
    event: Queued


class StartedMessage(_Message, frozen=True, kw_only=True, tag=True):
    """A request is worked on."""

    call: int
    event: Started


class SteppedMessage(_Message, frozen=True, kw_only=True, tag=True):
    """An image took a step."""

    call: int
    event: Stepped


class ImageFinishedMessage(_Message, frozen=True, kw_only=True, tag=True):
    """An image is done."""

    call: int
    event: ImageFinished


class FinishedMessage(_Message, frozen=True, kw_only=True, tag=True):
    """A request is done.

    Args:
        result: Its result, without the bytes and recipes of the pictures in ``sent``.
        sent: Indices of pictures that earlier messages carried.
    """

    call: int
    result: GenerationResult
    sent: list[int]


class FailedMessage(_Message, frozen=True, kw_only=True, tag=True):
    """A request failed."""

    call: int
    id: str
    error: dict[str, Any]


class CancelledMessage(_Message, frozen=True, kw_only=True, tag=True):
    """A request was cancelled."""

    call: int
    event: Cancelled


EventMessage = (
    QueuedMessage
    | StartedMessage
    | SteppedMessage
    | ImageFinishedMessage
    | FinishedMessage
    | FailedMessage
    | CancelledMessage
)
ToWorker = StreamRequest | CallMethod | Cancel
Greeting = Ready | Refused
FromWorker = Answered | CallFailed | StreamEnded | EventMessage


def write_event(
    call: int, event: Event, sent: dict[int, ImageOutput] | None = None
) -> EventMessage:
    """Return an event as a message.

    Args:
        call: Number of its stream.
        event: What happened.
        sent: Pictures by index that earlier events carried; of those a ``Finished``
            sends no bytes again.
    """
    if isinstance(event, Finished):
        known = sent or {}
        again = [i.index for i in event.result.images if known.get(i.index) is i]
        images = tuple(
            replace(i, data=b"", recipe={}, pixels=None) if i.index in again else _sendable(i)
            for i in event.result.images
        )
        result = replace(event.result, images=images)
        return FinishedMessage(call=call, result=result, sent=again)
    if isinstance(event, Failed):
        return FailedMessage(call=call, id=event.id, error=describe_error(event.error))
    if isinstance(event, ImageFinished):
        event = replace(event, image=_sendable(event.image))
        return ImageFinishedMessage(call=call, event=event)
    if isinstance(event, Stepped):
        return SteppedMessage(call=call, event=event)
    if isinstance(event, Queued):
        return QueuedMessage(call=call, event=event)
    if isinstance(event, Started):
        return StartedMessage(call=call, event=event)
    return CancelledMessage(call=call, event=event)


def read_event(message: EventMessage, sent: dict[int, ImageOutput] | None = None) -> Event:
    """Read what :func:`write_event` wrote, given the pictures that earlier events carried."""
    if isinstance(message, FinishedMessage):
        known = sent or {}
        images = tuple(
            known[i.index] if i.index in message.sent else i for i in message.result.images
        )
        return Finished(id=message.result.id, result=replace(message.result, images=images))
    if isinstance(message, FailedMessage):
        return Failed(id=message.id, error=read_error(message.error))
    return message.event


def _sendable(image: ImageOutput) -> ImageOutput:
    """Leave the pixels on this side."""
    return image if image.pixels is None else replace(image, pixels=None)
