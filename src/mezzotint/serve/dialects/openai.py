"""OpenAI: the Images API as the ``openai`` package speaks it (WIRE, OpenAI Images API).

Our own request fields are accepted as extra top-level fields beside the
standard ones (``extra_body`` in the package). A partial image is a real preview
of the picture in the making. Errors are ``{"error": {message, type, param, code}}``.
"""

import base64
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, MezzotintError, UnknownName, WorkFailed
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.openai_bodies import BODIES, Answer, Kind, to_request
from mezzotint.serve.errors import Conflict, NotFound, Problem, TooManyRequests, describe
from mezzotint.serve.forms import read_parts
from mezzotint.serve.front import Front
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.streaming import EventStream, sse
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    MULTIPART,
    Dialect,
    Endpoint,
    json_response,
    media_type,
    read_json,
)
from mezzotint.types import (
    Cancelled,
    Event,
    Failed,
    Finished,
    GenerationResult,
    ImageOutput,
    Stepped,
)

__all__ = ["DIALECT", "Answer", "error_body", "from_result", "to_request"]

_NAMES = {
    "num_images": "n",
    "width": "size",
    "height": "size",
    "output": "output_format",
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
_URL_SECONDS = 3600


def from_result(
    result: GenerationResult, answer: Answer, urls: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Write a result; ``urls`` replace the base64 where the client asked for them."""
    data: list[dict[str, Any]] = []
    for image in result.images:
        entry: dict[str, Any] = {"seed": image.seed, "revised_prompt": None}
        if urls is not None:
            entry["url"] = urls[image.index]
        else:
            entry["b64_json"] = _b64(image.data)
        data.append(entry)
    return {
        "created": int(time.time()),
        "data": data,
        **_about(result.images[0], answer),
        "usage": _usage(result),
        "warnings": [*result.warnings, *(w for i in result.images for w in i.warnings)],
    }


def _about(image: ImageOutput, answer: Answer) -> dict[str, Any]:
    return {
        "background": "opaque",
        "output_format": image.format,
        "quality": answer.quality,
        "size": f"{image.width}x{image.height}",
    }


def _usage(result: GenerationResult) -> dict[str, Any]:
    """Count as OpenAI does, where the plan knows its tokens; network calls are the output."""
    text = int(result.plan.get("prompt_tokens", 0) or 0)
    calls = sum(image.timings.model_calls for image in result.images)
    return {
        "input_tokens": text,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": text},
        "output_tokens": calls,
        "total_tokens": text + calls,
    }


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def error_body(problem: Problem) -> dict[str, Any]:
    """Write an error as OpenAI does."""
    theirs = problem.renamed(_NAMES)
    code = "model_not_found" if problem.kind == "model" else problem.code
    code = "invalid_api_key" if problem.status == 401 else code
    return {
        "error": {
            "message": theirs.detail,
            "type": _TYPES.get(problem.status, "invalid_request_error"),
            "param": theirs.field,
            "code": code,
        }
    }


def _render(problem: Problem, request_id: str) -> Response:
    return json_response(error_body(problem), problem.status)


async def _read(http: Request, kind: Kind) -> tuple[GenerationRequest, Answer]:
    """Read JSON or a form."""
    if media_type(http) != MULTIPART:
        return to_request(await read_json(http), kind)
    body = await read_parts(http, BODIES[kind])
    images: list[Any] = body.get("image", []) if kind == "edit" else []
    if images:
        body["image"] = images[0]
        body["image_references"] = [*images[1:], *body.get("image_references", ())]
    return to_request(body, kind)


async def _as_references(front: Front, request: GenerationRequest) -> GenerationRequest:
    """Hand the one picture of an edit to a model that edits pictures as it takes them."""
    if request.image is None or request.mask is not None or request.image_references:
        return request
    name, _, version = request.model.partition("@")
    for model in await front.service.models():
        is_it = model["version"] == version if version else model["default"]
        if model["name"] == name and is_it and model.get("image_references", (0, 0))[1]:
            return replace(request, image=None, image_references=(request.image,))
    return request


async def _answer(front: Front, http: Request, kind: Kind) -> Any:
    request, answer = await _read(http, kind)
    if kind == "edit":
        request = await _as_references(front, request)
    if answer.stream:
        return await _stream(front, http, request, answer)
    result = await front.generate(http, request)
    if not result.images:
        raise WorkFailed("no picture came of it")
    urls = await _urls(front, http, result) if answer.as_url else None
    return json_response(from_result(result, answer, urls))


async def _urls(front: Front, http: Request, result: GenerationResult) -> dict[int, str]:
    """Keep the pictures for a while and name them by digest."""
    if front.jobs is None:
        raise InvalidRequest(
            'response_format "url" needs a place to keep pictures; ask for "b64_json"',
            field="response_format",
        )
    kept = front.memory.setdefault("openai_files", {})
    now = time.time()
    for digest in [d for d, (_, until) in kept.items() if until < now]:
        del kept[digest]
    urls: dict[int, str] = {}
    for image in result.images:
        digest = front.jobs.results.put(image.data)
        kept[digest] = (image.format, now + _URL_SECONDS)
        urls[image.index] = str(http.url.replace(path=f"/v1/images/files/{digest}", query=""))
    return urls


async def image_file(front: Front, http: Request) -> Response:
    """Return a picture that was answered as a URL; the digest is the permission."""
    kept = front.memory.get("openai_files", {})
    format_, until = kept.get(http.path_params["digest"], ("png", 0.0))
    data = None
    if front.jobs is not None and until > time.time():
        data = front.jobs.results.get(http.path_params["digest"])
    if data is None:
        raise NotFound("there is no such picture, or its hour is over")
    return Response(data, media_type=CONTENT_TYPES[format_])


async def _stream(
    front: Front, http: Request, request: GenerationRequest, answer: Answer
) -> EventStream:
    """Answer with partial and completed pictures."""
    if answer.kind == "variation":
        raise InvalidRequest("stream is not part of variations", field="stream")
    events = front.stream(http, request, preview_every=1 if answer.partial_images else 0)
    first = await anext(events)
    try:
        return front.event_stream(http, _encode(events, first, answer))
    except TooManyRequests:
        await events.aclose()
        raise


async def _encode(
    events: AsyncGenerator[Event, None], first: Event, answer: Answer
) -> AsyncIterator[bytes]:
    name = "image_edit" if answer.kind == "edit" else "image_generation"
    sent: dict[int, int] = {}
    try:
        event: Event | None = first
        while event is not None:
            if isinstance(event, Stepped) and event.preview is not None:
                done = sent.get(event.image, 0)
                if done < answer.partial_images and _is_due(event, done, answer.partial_images):
                    sent[event.image] = done + 1
                    yield sse(_partial(event, done, name, answer), event=f"{name}.partial_image")
            elif isinstance(event, Finished):
                for image in event.result.images:
                    body = {
                        "type": f"{name}.completed",
                        "b64_json": _b64(image.data),
                        "created_at": int(time.time()),
                        **_about(image, answer),
                        "usage": _usage(event.result),
                        "seed": image.seed,
                    }
                    yield sse(body, event=f"{name}.completed")
            elif isinstance(event, Failed):
                raise event.error
            elif isinstance(event, Cancelled):
                raise Conflict("the request was cancelled")
            event = await anext(events, None)
    except MezzotintError as error:
        yield sse(error_body(describe(error)), event="error")
    finally:
        await events.aclose()


def _is_due(event: Stepped, done: int, wanted: int) -> bool:
    """Tell whether the next of ``wanted`` previews, spread over the steps, is due."""
    return event.step < event.steps and event.step >= event.steps * (done + 1) / (wanted + 1)


def _partial(event: Stepped, index: int, name: str, answer: Answer) -> dict[str, Any]:
    preview = event.preview or b""
    format_ = "jpeg" if preview[:2] == b"\xff\xd8" else "webp" if preview[:4] == b"RIFF" else "png"
    return {
        "type": f"{name}.partial_image",
        "b64_json": _b64(preview),
        "created_at": int(time.time()),
        "partial_image_index": index,
        "output_format": format_,
        "quality": answer.quality,
        "size": "auto",
        "background": "opaque",
    }


async def generate(front: Front, http: Request) -> Any:
    """Make pictures from a prompt."""
    return await _answer(front, http, "generation")


async def edit(front: Front, http: Request) -> Any:
    """Change a picture, or the masked part of it."""
    return await _answer(front, http, "edit")


async def vary(front: Front, http: Request) -> Any:
    """Make variations of a picture."""
    return await _answer(front, http, "variation")


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    name = model["name"] if model["default"] else f"{model['name']}@{model['version']}"
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "mezzotint",
        "name": name,
        "ready": model["ready"],
        "digest": model["digest"],
    }


async def list_models(front: Front, http: Request) -> Response:
    """List the models (``data`` for OpenAI clients, ``models`` for KServe v1)."""
    models = [_model(m) for m in await front.service.models()]
    return json_response({"object": "list", "data": models, "models": [m["id"] for m in models]})


async def get_model(front: Front, http: Request) -> Response:
    """Show one model."""
    models = {m["id"]: m for m in map(_model, await front.service.models())}
    name = http.path_params["id"]
    if name not in models:
        raise UnknownName("model", name[:200], models, field="model")
    return json_response(models[name])


def _endpoints() -> tuple[Endpoint, ...]:
    answers = {"application/json": ANY_OBJECT, "text/event-stream": {}}

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)

    return (
        endpoint(
            "POST", "/v1/images/generations", generate, "OpenAI: make pictures",
            body=BODIES["generation"], answers=answers,
        ),
        endpoint(
            "POST", "/v1/images/edits", edit, "OpenAI: edit a picture", body=BODIES["edit"],
            answers=answers,
        ),
        endpoint(
            "POST", "/v1/images/variations", vary, "OpenAI: vary a picture",
            body=BODIES["variation"], answers=answers,
        ),
        endpoint(
            "GET", "/v1/images/files/{digest}", image_file, "OpenAI: a picture answered as URL",
            scope=None, answers={kind: {} for kind in CONTENT_TYPES.values()},
        ),
        endpoint("GET", "/v1/models", list_models, "OpenAI: list models"),
        endpoint("GET", "/v1/models/{id}", get_model, "OpenAI: show a model"),
    )  # fmt: skip


DIALECT = Dialect(
    name="openai",
    pattern=re.compile(r"^/v1/(images|models)(/|$)"),
    endpoints=_endpoints(),
    render=_render,
)
