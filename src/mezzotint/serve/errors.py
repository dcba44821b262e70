"""Errors at the door: one table from exception to status and code.

Dialects turn a :class:`Problem` into the body their clients expect; nothing
else in the server decides on a status.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mezzotint import errors

__all__ = [
    "TABLE",
    "BodyTooSlow",
    "ClientGone",
    "Conflict",
    "DoorError",
    "Forbidden",
    "Gone",
    "Malformed",
    "MethodNotAllowed",
    "NotFound",
    "NothingHere",
    "Problem",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unsupported",
    "UnsupportedMedia",
    "WrongField",
    "WrongForeignField",
    "describe",
]


class DoorError(errors.MezzotintError):
    """Something that is wrong with the HTTP exchange itself."""

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        allowed: str | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.allowed = allowed


class Malformed(DoorError):
    """A body or header that cannot be read."""


class Unauthorized(DoorError):
    """No API key, or one that is not in the keys file."""


class Forbidden(DoorError):
    """A key without the scope, or a page of another origin."""


class NotFound(DoorError):
    """No such path, job or file."""


class NothingHere(NotFound):
    """No endpoint of any dialect has this path."""


class MethodNotAllowed(DoorError):
    """The path exists, the method does not."""


class BodyTooSlow(DoorError):
    """The client took too long to send its body."""


class Conflict(DoorError):
    """The idempotency key was used with another body, or the thing exists already."""


class Gone(DoorError):
    """It was there, and is not any more."""


class TooLarge(DoorError):
    """More bytes, pixels, steps or pictures than one request may ask for."""


class UnsupportedMedia(DoorError):
    """A content type the endpoint does not read."""


class WrongField(errors.InvalidRequest):
    """A field is wrong, and is named in the dialect's own words already."""


class WrongForeignField(errors.InvalidField):
    """A field is wrong by itself, and is named in the dialect's own words already."""


class TooManyRequests(errors.Overloaded):
    """A rate limit or a concurrency limit of this key is reached."""


class ClientGone(DoorError):
    """The client closed the connection before the answer; logged, never sent."""


class Unsupported(DoorError):
    """The protocol has it, Mezzotint does not."""


TABLE: Mapping[type[Exception], tuple[int, str]] = {
    errors.MezzotintError: (500, "internal_error"),
    errors.InvalidRequest: (422, "invalid_request"),
    errors.InvalidField: (422, "invalid_request"),
    errors.UnknownName: (422, "unknown_name"),
    errors.ImageError: (422, "unreadable_image"),
    errors.PictureTooLarge: (413, "too_large"),
    errors.ShapeError: (422, "invalid_shape"),
    errors.Refused: (403, "refused"),
    errors.GateRejected: (422, "gate_rejected"),
    errors.ModelNotAllowed: (403, "model_not_allowed"),
    errors.Overloaded: (429, "overloaded"),
    errors.QueueFull: (429, "queue_full"),
    errors.OutOfMemory: (503, "out_of_memory"),
    errors.NotReady: (503, "not_ready"),
    errors.InUse: (409, "in_use"),
    errors.Cancelled: (499, "cancelled"),
    errors.DeadlineExceeded: (504, "deadline_exceeded"),
    errors.WorkFailed: (500, "work_failed"),
    errors.ModelError: (422, "model_error"),
    errors.ArchiveError: (422, "unsafe_or_broken_archive"),
    errors.WeightsError: (422, "weights_error"),
    errors.CardError: (422, "card_error"),
    WrongField: (422, "invalid_request"),
    WrongForeignField: (422, "invalid_request"),
    DoorError: (400, "malformed"),
    Malformed: (400, "malformed"),
    Unauthorized: (401, "unauthorized"),
    Forbidden: (403, "forbidden"),
    NotFound: (404, "not_found"),
    MethodNotAllowed: (405, "method_not_allowed"),
    BodyTooSlow: (408, "body_too_slow"),
    Conflict: (409, "conflict"),
    Gone: (410, "gone"),
    TooLarge: (413, "too_large"),
    UnsupportedMedia: (415, "unsupported_media_type"),
    TooManyRequests: (429, "too_many_requests"),
    ClientGone: (499, "client_gone"),
    Unsupported: (501, "not_implemented"),
}

_KINDS_OF_404 = frozenset({"model", "version", "job"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """An error as the dialects see it.

    Args:
        status: HTTP status.
        code: The error's name in snake case, stable.
        detail: One sentence for people.
        field: The field at fault in the dialect's own vocabulary, or None.
        value: What came, as a short text, or None.
        allowed: What is allowed, or None.
        retry_after_s: Seconds after which trying again is sensible, or None.
        cause: Name of the exception class.
        kind: What was not found (``"model"``, ``"job"``), or None.
    """

    status: int
    code: str
    detail: str
    field: str | None = None
    value: str | None = None
    allowed: str | None = None
    retry_after_s: float | None = None
    cause: str = ""
    kind: str | None = None

    def renamed(self, names: Mapping[str, str]) -> "Problem":
        """Return the same with the request's field names in a dialect's words.

        Args:
            names: Our field -> the dialect's, e.g. ``guidance_scale`` -> ``cfg_scale``, or
                ``output.format`` -> ``output_format``.
        """
        if self.field is None or self.cause in ("WrongField", "WrongForeignField"):
            return self
        root, rest = (self.field, "") if self.field in names else _split(self.field)
        theirs = names.get(root)
        if theirs is None:
            return self
        detail = re.sub(rf"\b{re.escape(root)}\b", theirs, self.detail, count=1)
        return dataclasses.replace(self, field=theirs + rest, detail=detail)


def _split(field: str) -> tuple[str, str]:
    """Split ``regions[1].weight`` into its first name and the rest."""
    found = re.match(r"\w+", field)
    end = found.end() if found else len(field)
    return field[:end], field[end:]


def describe(error: BaseException) -> Problem:
    """Look an exception up in the table; the nearest class in its tree counts."""
    for cls in type(error).__mro__:
        if cls in TABLE:
            status, code = TABLE[cls]
            break
    else:
        return Problem(
            status=500,
            code="internal_error",
            detail="something went wrong inside; the request id names it in the log",
            cause="InternalError",
        )
    kind = getattr(error, "kind", None)
    if isinstance(error, errors.UnknownName) and kind in _KINDS_OF_404:
        status, code = 404, f"{kind}_not_found"
    value = getattr(error, "value", None)
    retry_after_s = getattr(error, "retry_after_s", None)
    return Problem(
        status=status,
        code=code,
        detail=str(error) or code.replace("_", " "),
        field=getattr(error, "field", None),
        value=None if value is None else str(value)[:200],
        allowed=getattr(error, "allowed", None),
        retry_after_s=1.0 if retry_after_s is None and status in (429, 503) else retry_after_s,
        cause=type(error).__name__,
        kind=kind if isinstance(kind, str) else None,
    )
