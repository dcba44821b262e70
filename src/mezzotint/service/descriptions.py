"""Descriptions: pictures, tries and errors as plain data, and errors back.

What a door shows, a job keeps and a worker sends of an ending is this.
"""

from collections.abc import Mapping
from typing import Any

from mezzotint import errors
from mezzotint.errors import (
    InvalidRequest,
    MezzotintError,
    ModelError,
    Overloaded,
    UnknownName,
    WorkFailed,
)
from mezzotint.types import Attempt, ImageOutput, StageTimings

__all__ = [
    "INTERNAL",
    "describe_attempt",
    "describe_error",
    "describe_image",
    "describe_timings",
    "read_error",
]


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
