"""Bodies: what a server's native door says, as the types that Python knows in process.

Nothing here speaks to anybody, so that the client that waits and the one of asyncio read
alike. Errors come back as the classes that were raised behind the door.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, cast

from mezzotint import errors
from mezzotint.errors import InvalidRequest, MezzotintError, Overloaded, UnknownName, WorkFailed
from mezzotint.plain import read
from mezzotint.serve import errors as door_errors
from mezzotint.serve.errors import TABLE, DoorError
from mezzotint.service.descriptions import read_error
from mezzotint.types import (
    Attempt,
    Cancelled,
    Event,
    Failed,
    Finished,
    GenerationResult,
    ImageFinished,
    ImageOutput,
    Queued,
    StageTimings,
    Started,
    Stepped,
)

__all__ = [
    "read_event",
    "read_failure",
    "read_image",
    "read_problem",
    "read_result",
]

_BY_CODE = {code: cls for cls, (_, code) in reversed(list(TABLE.items()))}
_KIND = re.compile(r"unknown (.+?) ['\"]")


def read_problem(body: Mapping[str, Any], retry_after_s: float | None = None) -> MezzotintError:
    """Read problem details (RFC 9457) as the error that was raised at the server.

    Args:
        body: The problem; its member ``error`` names the class.
        retry_after_s: What the answer's ``Retry-After`` says, if it says anything.
    """
    detail = str(body.get("detail", body.get("title", "the server says no more")))
    code = str(body.get("type", "")).rpartition(":")[2]
    name = str(body.get("error", ""))
    cls = getattr(errors, name, None) or getattr(door_errors, name, None)
    if not (isinstance(cls, type) and issubclass(cls, MezzotintError)):
        cls = _BY_CODE.get(code, WorkFailed)
    about = {key: body.get(key) for key in ("field", "value", "allowed")}
    if issubclass(cls, DoorError):
        return cls(detail, **about)
    if issubclass(cls, UnknownName):
        return _unknown_name(detail, about)
    if cls.__module__ == errors.__name__:
        part: dict[str, Any] = {"type": cls.__name__, "message": detail, **about}
        if retry_after_s is not None:
            part["retry_after_s"] = retry_after_s
        return read_error(part)
    if issubclass(cls, Overloaded):
        return cls(detail, retry_after_s=retry_after_s or 1.0)
    return cls(detail, **about) if issubclass(cls, InvalidRequest) else WorkFailed(detail)


def _unknown_name(detail: str, about: Mapping[str, Any]) -> UnknownName:
    """Read an unknown name, whose message is made of its parts."""
    kind = _KIND.match(detail)
    known = [name for name in str(about["allowed"] or "").split(", ") if name not in ("", "none")]
    error = UnknownName(
        kind[1] if kind else "name", str(about["value"] or ""), known, field=about["field"]
    )
    error.args = (detail,)  # a name too long to be repeated was cut on its way
    return error


def read_failure(status: int, headers: Mapping[str, str], body: bytes) -> MezzotintError:
    """Read the answer of a request that did not succeed.

    Args:
        status: HTTP status, 400 or more.
        headers: Of the answer, names in lower case.
        body: Its body.
    """
    text = headers.get("retry-after", "")
    retry_after_s = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):
        return WorkFailed(f"the server answered {status}: {body[:200].decode(errors='replace')}")
    return read_problem(cast("dict[str, Any]", problem), retry_after_s)


def read_image(about: Mapping[str, Any], data: bytes) -> ImageOutput:
    """Return a picture with its pixels (not of an animation) and the recipe in its file.

    Args:
        about: What the server says of it.
        data: The file.
    """
    from mezzotint.images.codec import decode_image
    from mezzotint.images.metadata import read_recipe

    recipe = read_recipe(data) or {"digest": about.get("recipe_digest", "")}
    frames = int(about.get("frames", 1))
    return ImageOutput(
        index=int(about["index"]),
        seed=int(about["seed"]),
        data=data,
        format=about["format"],
        width=int(about["width"]),
        height=int(about["height"]),
        frames=frames,
        recipe=recipe,
        warnings=tuple(about.get("warnings", ())),
        attempts=tuple(read(Attempt, attempt) for attempt in about.get("attempts", ())),
        timings=read(StageTimings, about.get("timings", {})),
        pixels=decode_image(data) if frames == 1 else None,
    )


def read_result(
    body: Mapping[str, Any], images: tuple[ImageOutput, ...] | None = None
) -> GenerationResult:
    """Return a result.

    Args:
        body: A result, or a job that succeeded.
        images: The pictures, where the body has only their addresses.
    """
    if images is None:
        images = tuple(read_image(i, base64.b64decode(i["b64"])) for i in body["images"])
    return GenerationResult(
        id=str(body["id"]),
        images=images,
        plan=body.get("plan") or {},
        cache="hit" if body.get("cache") == "hit" else "miss",
        warnings=tuple(body.get("warnings", ())),
    )


def read_event(
    kind: str,
    data: Mapping[str, Any],
    id_: str,
    images: tuple[ImageOutput, ...] | None = None,
) -> Event:
    """Return an event of a run.

    Args:
        kind: Its name on the wire.
        data: Its data.
        id_: The request's id.
        images: The pictures of an ``image`` or of a ``finished``, where the data has only
            their addresses.

    Raises:
        WorkFailed: If there is no such event.
    """
    if kind == "queued":
        return Queued(id=id_, position=int(data.get("position", 0)), eta_s=data.get("eta_s"))
    if kind == "started":
        return Started(id=id_)
    if kind == "step":
        preview = base64.b64decode(data["preview"]) if data.get("preview") else None
        numbers = {name: int(data[name]) for name in ("image", "step", "steps")}
        return Stepped(id=id_, preview=preview, **numbers)
    if kind == "image":
        image = images[0] if images else read_image(data, base64.b64decode(data["b64"]))
        return ImageFinished(id=id_, image=image)
    if kind == "finished":
        return Finished(id=id_, result=read_result(data, images))
    if kind == "failed":
        return Failed(id=id_, error=read_problem(data["error"]))
    if kind == "cancelled":
        return Cancelled(id=id_)
    raise WorkFailed(f"the server sent the event {kind[:80]!r}, which this client does not know")
