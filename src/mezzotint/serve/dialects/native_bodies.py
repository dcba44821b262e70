"""Native bodies: requests, results and problems as our own JSON."""

import base64
from dataclasses import replace
from typing import Any, cast

from starlette.requests import Request

from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.request import Animation, GenerationRequest
from mezzotint.serve.accept import Choice, choose
from mezzotint.serve.errors import Problem
from mezzotint.serve.forms import form_body, read_parts
from mezzotint.serve.schema import request_schema
from mezzotint.serve.wire import CONTENT_TYPES, MULTIPART, Body, media_type, read_json
from mezzotint.service.descriptions import describe_image
from mezzotint.types import GenerationResult, ImageOutput

__all__ = [
    "EVENTS",
    "FORMATS",
    "REQUEST",
    "b64",
    "from_result",
    "problem_body",
    "read_request",
    "to_request",
    "wanted",
    "wanted_format",
    "with_bytes",
]

_MOVING = ("gif", "apng", "mp4")
EVENTS, JSON = "text/event-stream", "application/json"
FORMATS = {kind: name for name, kind in CONTENT_TYPES.items()}
_JSON = Body("GenerationRequest", request_schema)
REQUEST = form_body(_JSON, request=_JSON.reference)
"""A request as JSON, or as a form, whose part ``request`` holds what has no part."""


def to_request(body: dict[str, Any]) -> GenerationRequest:
    """Read a native request body."""
    return GenerationRequest.from_dict(body)


def from_result(result: GenerationResult) -> dict[str, Any]:
    """Write a result with its pictures as base64."""
    return {
        "id": result.id,
        "status": "succeeded",
        "images": [with_bytes(image) for image in result.images],
        "plan": dict(result.plan),
        "cache": result.cache,
        "warnings": list(result.warnings),
    }


def problem_body(problem: Problem, request_id: str = "") -> dict[str, Any]:
    """Write an error as RFC 9457 problem details."""
    body: dict[str, Any] = {
        "type": f"urn:mezzotint:error:{problem.code}",
        "title": problem.code.replace("_", " "),
        "status": problem.status,
        "detail": problem.detail,
        "error": problem.cause,
    }
    if request_id:
        body["instance"] = f"urn:mezzotint:request:{request_id}"
    extra = {"field": problem.field, "value": problem.value, "allowed": problem.allowed}
    return body | {name: value for name, value in extra.items() if value is not None}


def with_bytes(image: ImageOutput) -> dict[str, Any]:
    """Write a picture with its file as base64."""
    return {**describe_image(image), "b64": b64(image.data)}


def b64(data: bytes) -> str:
    """Write bytes as base64 text."""
    return base64.b64encode(data).decode("ascii")


async def read_request(http: Request) -> GenerationRequest:
    """Read the request, JSON or a form with uploads; ``Accept: image/...`` picks a format."""
    if media_type(http) == MULTIPART:
        body = await _read_upload(http)
    else:
        body = await read_json(http)
    request = to_request(body)
    asked = wanted_format(http)
    if asked is not None and (asked in _MOVING or request.output.animation is not None):
        return _animated(request, asked)
    if asked is not None and request.output.format != asked:
        if "output" in body and "format" in body["output"]:
            raise InvalidRequest(
                f"output.format is {request.output.format} but Accept asks for image/{asked}",
                field="output.format",
                value=request.output.format,
                allowed=asked,
            )
        request = replace(request, output=replace(request.output, format=asked))
    return request


def _animated(request: GenerationRequest, wanted: Any) -> GenerationRequest:
    """Let ``Accept`` choose the kind of animation where the request did not."""
    animation = request.output.animation
    if animation is None:
        output = replace(request.output, animation=Animation(format=wanted))
        return replace(request, output=output)
    if animation.format != wanted:
        raise InvalidRequest(
            f"output.animation.format is {animation.format} but Accept asks for "
            f"{CONTENT_TYPES[wanted]}",
            field="output.animation.format",
            value=animation.format,
            allowed=wanted,
        )
    return request


async def _read_upload(http: Request) -> dict[str, Any]:
    """Read a form: ``request`` holds JSON, the other parts are fields beside it."""
    body = await read_parts(http, REQUEST)
    whole = body.pop("request", {})
    if not isinstance(whole, dict):
        raise InvalidField("the part named request must be a JSON object", field="request")
    fields = cast("dict[str, Any]", whole)
    for name in body.keys() & fields.keys():
        raise InvalidRequest(f"{name} is given twice", field=name)
    return fields | body


def wanted(http: Request) -> Choice | None:
    """Return what ``Accept`` would rather have: events, JSON or a picture; None if neither."""
    accept = http.headers.get("accept", "")
    choice = choose(accept, (EVENTS, JSON, *FORMATS), only_named=(EVENTS,))
    if choice == (JSON, True) or choice is None or not choice.is_named:
        return choice
    if choice.media in FORMATS and _ties_with_json(accept, choice.media):
        return Choice(JSON, is_named=True)
    return choice


def _ties_with_json(accept: str, media: str) -> bool:
    """Tell whether JSON is named with the quality of a picture: it holds every picture."""
    return choose(accept, (JSON, media), only_named=(JSON,)) == (JSON, True)


def wanted_format(http: Request) -> Any:
    """Return the file format that ``Accept`` asks for by name, or None."""
    choice = wanted(http)
    return FORMATS.get(choice.media) if choice is not None and choice.is_named else None
