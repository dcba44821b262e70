"""Wire: events, results and errors as JSON and byte strings, and back.

What crosses the border to the worker process or into the job store is plain
data only; nothing is ever unpickled. Byte strings travel beside the JSON: where
one stood there is ``{"$blob": k}``.
"""

import struct
from collections.abc import Mapping
from typing import Any

import orjson

from mezzotint import errors, types
from mezzotint.errors import (
    InvalidRequest,
    MezzotintError,
    ModelError,
    Overloaded,
    UnknownName,
    WorkFailed,
)
from mezzotint.types import (
    Attempt,
    Event,
    GenerationResult,
    ImageOutput,
    StageTimings,
    Verdict,
)

__all__ = [
    "MAX_MESSAGE_BYTES",
    "describe_attempt",
    "describe_error",
    "describe_image",
    "describe_timings",
    "pack",
    "read_error",
    "read_event",
    "read_image",
    "unpack",
    "write_event",
    "write_image",
]

MAX_MESSAGE_BYTES = 2 << 30
_EVENTS = {
    cls.__name__: cls
    for cls in (
        types.Queued,
        types.Started,
        types.Stepped,
        types.ImageFinished,
        types.Finished,
        types.Failed,
        types.Cancelled,
    )
}


def pack(head: Mapping[str, Any]) -> bytes:
    """Write one message: total length, length of the JSON, JSON, byte strings.

    Lengths are unsigned 64-bit big-endian. Byte strings anywhere inside ``head``
    move behind the JSON, each with its own length.
    """
    blobs: list[bytes] = []

    def lift(value: Any) -> Any:
        """Stand for what JSON has no words for."""
        if isinstance(value, bytes):
            blobs.append(value)
            return {"$blob": len(blobs) - 1}
        if isinstance(value, Mapping):
            return dict(value)
        raise TypeError(f"{type(value).__name__} cannot be sent")

    text = orjson.dumps(head, default=lift, option=orjson.OPT_NON_STR_KEYS)
    parts = [struct.pack(">Q", len(text)), text]
    for blob in blobs:
        parts += [struct.pack(">Q", len(blob)), blob]
    body = b"".join(parts)
    return struct.pack(">Q", len(body)) + body


def unpack(body: bytes) -> dict[str, Any]:
    """Read a message without its total length.

    Raises:
        ValueError: If lengths do not fit.
    """
    blobs: list[bytes] = []
    (size,) = struct.unpack_from(">Q", body)
    at = 8 + size
    text = body[8:at]
    while at < len(body):
        (size,) = struct.unpack_from(">Q", body, at)
        if at + 8 + size > len(body):
            raise ValueError("a byte string is longer than its message")
        blobs.append(body[at + 8 : at + 8 + size])
        at += 8 + size
    head = orjson.loads(text)
    return _lower(head, blobs) if blobs else head


def _lower(value: Any, blobs: list[bytes]) -> Any:
    """Put byte strings back, in place."""
    if isinstance(value, dict):
        if len(value) == 1 and "$blob" in value:
            return blobs[value["$blob"]]
        for key, item in value.items():
            if isinstance(item, dict | list):
                value[key] = _lower(item, blobs)
        return value
    for place, item in enumerate(value):
        if isinstance(item, dict | list):
            value[place] = _lower(item, blobs)
    return value


def describe_timings(timings: StageTimings) -> dict[str, Any]:
    """Return the stages as plain data."""
    names = ("queue_s", "encode_s", "denoise_s", "decode_s", "gate_s", "write_s", "model_calls")
    return {name: getattr(timings, name) for name in names}


def describe_attempt(attempt: Attempt) -> dict[str, Any]:
    """Return one try and its verdicts as plain data."""
    names = ("gate", "score", "threshold", "passed", "reason")
    return {
        "number": attempt.number,
        "seed": attempt.seed,
        "accepted": attempt.accepted,
        "verdicts": [{n: getattr(v, n) for n in names} for v in attempt.verdicts],
    }


def describe_image(image: ImageOutput) -> dict[str, Any]:
    """Return everything about a picture but its bytes, as the native dialect shows it."""
    return {
        "index": image.index,
        "seed": image.seed,
        "format": image.format,
        "width": image.width,
        "height": image.height,
        **({"frames": image.frames} if image.frames > 1 else {}),
        "recipe_digest": image.recipe_digest,
        "warnings": list(image.warnings),
        "attempts": [describe_attempt(a) for a in image.attempts],
        "timings": describe_timings(image.timings),
    }


def write_image(image: ImageOutput) -> dict[str, Any]:
    """Return a picture as a message part."""
    return {**describe_image(image), "data": image.data, "recipe": dict(image.recipe)}


def read_image(part: Mapping[str, Any]) -> ImageOutput:
    """Read what :func:`write_image` wrote."""
    attempts = tuple(
        Attempt(
            number=a["number"],
            seed=a["seed"],
            accepted=a["accepted"],
            verdicts=tuple(Verdict(**v) for v in a["verdicts"]),
        )
        for a in part["attempts"]
    )
    return ImageOutput(
        index=part["index"],
        seed=part["seed"],
        data=part["data"],
        format=part["format"],
        width=part["width"],
        height=part["height"],
        recipe=part["recipe"],
        warnings=tuple(part["warnings"]),
        attempts=attempts,
        timings=StageTimings(**part["timings"]),
        frames=part.get("frames", 1),
    )


def write_event(event: Event, sent: Mapping[int, ImageOutput] | None = None) -> dict[str, Any]:
    """Return an event as a message part.

    Args:
        event: What happened.
        sent: Pictures by index that earlier events carried; a ``Finished`` names them
            only, and carries the others.
    """
    sent = sent or {}
    part: dict[str, Any] = {"event": type(event).__name__, "id": event.id}
    if isinstance(event, types.Queued):
        part |= {"position": event.position, "eta_s": event.eta_s}
    elif isinstance(event, types.Stepped):
        part |= {
            "image": event.image,
            "step": event.step,
            "steps": event.steps,
            "preview": event.preview,
        }
    elif isinstance(event, types.ImageFinished):
        part["image"] = write_image(event.image)
    elif isinstance(event, types.Finished):
        result = event.result
        part["result"] = {
            "id": result.id,
            "images": [
                {"sent": i.index} if sent.get(i.index) is i else write_image(i)
                for i in result.images
            ],
            "plan": dict(result.plan),
            "cache": result.cache,
            "warnings": list(result.warnings),
        }
    elif isinstance(event, types.Failed):
        part["error"] = describe_error(event.error)
    return part


def read_event(part: Mapping[str, Any], sent: Mapping[int, ImageOutput] | None = None) -> Event:
    """Read what :func:`write_event` wrote, given the pictures that earlier events carried."""
    sent = sent or {}
    cls = _EVENTS[part["event"]]
    values = {k: v for k, v in part.items() if k != "event"}
    if cls is types.ImageFinished:
        values["image"] = read_image(part["image"])
    elif cls is types.Finished:
        result = part["result"]
        values["result"] = GenerationResult(
            id=result["id"],
            images=tuple(
                sent[i["sent"]] if "sent" in i else read_image(i) for i in result["images"]
            ),
            plan=result["plan"],
            cache=result["cache"],
            warnings=tuple(result["warnings"]),
        )
    elif cls is types.Failed:
        values["error"] = read_error(part["error"])
    return cls(**values)


INTERNAL = "something went wrong inside; the server's log says what"
"""All that is said of an error that nobody foresaw: its own words may name anything."""


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an error as plain data; of an unexpected one only that the log tells of it."""
    if not isinstance(error, MezzotintError):
        return {"type": "WorkFailed", "message": INTERNAL}
    part: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    if isinstance(error, UnknownName):
        part |= {"kind": error.kind, "name": error.name, "known": list(error.known)}
    if isinstance(error, InvalidRequest):
        value = error.value
        if value is not None and not isinstance(value, str | int | float | bool):
            value = str(value)[:200]
        part |= {"field": error.field, "value": value, "allowed": error.allowed}
    if isinstance(error, ModelError):
        part["field"] = error.field
    if isinstance(error, Overloaded):
        part["retry_after_s"] = error.retry_after_s
    return part


def read_error(part: Mapping[str, Any]) -> MezzotintError:
    """Read what :func:`describe_error` wrote."""
    cls = getattr(errors, str(part.get("type")), WorkFailed)
    if not (isinstance(cls, type) and issubclass(cls, MezzotintError)):
        cls = WorkFailed
    message = str(part.get("message", ""))
    if cls is UnknownName:
        field = part.get("field")
        return UnknownName(part["kind"], part["name"], part["known"], field=field)
    if issubclass(cls, InvalidRequest):
        return cls(
            message, field=part.get("field"), value=part.get("value"), allowed=part.get("allowed")
        )
    if issubclass(cls, ModelError):
        return cls(message, field=part.get("field"))
    if issubclass(cls, Overloaded):
        return cls(message, retry_after_s=float(part.get("retry_after_s", 1.0)))
    return cls(message)
