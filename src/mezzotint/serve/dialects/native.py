"""Native: our own JSON, jobs and events.

The request's names are those of :class:`mezzotint.GenerationRequest`; errors are
problem details (RFC 9457). The same work can be waited for, streamed, or left
on the durable queue.
"""

import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidField, InvalidRequest, MezzotintError
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects import native_jobs
from mezzotint.serve.dialects.native_bodies import (
    EVENTS,
    FORMATS,
    REQUEST,
    b64,
    from_result,
    problem_body,
    read_request,
    to_request,
    wanted,
    with_bytes,
)
from mezzotint.serve.errors import Conflict, Problem, TooManyRequests, describe
from mezzotint.serve.forms import form_body, read_parts
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import kept_picture, submit
from mezzotint.serve.schema import ANY_OBJECT, PICTURE, request_schema
from mezzotint.serve.site import (
    adapters,
    collection,
    datasets,
    gallery,
    operations,
    pictures,
    runs,
    training,
    uploads,
)
from mezzotint.serve.streaming import EventStream, sse
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    MULTIPART,
    Body,
    Dialect,
    Endpoint,
    any_bytes,
    json_response,
    media_type,
    read_json,
    visit,
)
from mezzotint.service.descriptions import read_error
from mezzotint.service.jobs.store import Job
from mezzotint.types import (
    Event,
    Failed,
    Finished,
    GenerationResult,
    ImageFinished,
    ImageInput,
    ImageOutput,
    Queued,
    Started,
    Stepped,
)

__all__ = ["DIALECT", "from_result", "problem_body", "to_request"]


def _render(problem: Problem, request_id: str) -> Response:
    return json_response(
        problem_body(problem, request_id), problem.status, media="application/problem+json"
    )


async def generations(front: Front, http: Request) -> Any:
    """Run a request: JSON, the bytes of one picture, or events, as ``Accept`` says."""
    request = await read_request(http)
    choice = wanted(http)
    media = "" if choice is None else choice.media
    if media in FORMATS:
        count = request.num_files
        if count != 1:
            raise InvalidRequest(
                f"Accept: image/... answers one picture, num_images is {count}; "
                "ask for application/json",
                field="num_images",
                value=count,
                allowed="1",
            )
        result = await _generate(front, http, request)
        image = result.images[0]
        headers = {"X-Seed": str(image.seed), "X-Recipe-Digest": image.recipe_digest}
        return Response(image.data, headers=headers, media_type=CONTENT_TYPES[image.format])
    if media == EVENTS:
        return await _stream(front, http, request)
    return json_response(from_result(await _generate(front, http, request)))


async def _generate(front: Front, http: Request, request: GenerationRequest) -> GenerationResult:
    """Run a request; with an idempotency key through a job, so that a repeat finds it."""
    if "idempotency-key" not in http.headers or front.jobs is None:
        return await front.generate(http, request)
    caller = visit(http).caller
    async with front.shared.generation(caller):  # it waits as one without the key does
        job = await submit(front, http, request)
        job = await front.watched(http, front.jobs.wait(job.id))
    if job.status != "succeeded":
        raise _job_error(job)
    images: list[ImageOutput] = []
    for kept in job.images:
        about = {k: kept.about[k] for k in ("index", "seed", "format", "width", "height")}
        data = await kept_picture(front, job, kept.index)
        images.append(
            ImageOutput(
                **about,
                frames=kept.about.get("frames", 1),
                data=data,
                warnings=tuple(kept.about["warnings"]),
                recipe={"digest": kept.about["recipe_digest"]},
            )
        )
    cache = "hit" if job.outcome.get("cache") == "hit" else "miss"
    visit(http).cache = cache
    return GenerationResult(
        id=job.id,
        images=tuple(images),
        plan=job.outcome.get("plan", {}),
        cache=cache,
        warnings=tuple(job.outcome.get("warnings", ())),
    )


def _job_error(job: Job) -> MezzotintError:
    if "error" in job.outcome:
        return read_error(job.outcome["error"])
    return Conflict(f"job {job.id} is {job.status}")


async def _stream(front: Front, http: Request, request: GenerationRequest) -> EventStream:
    """Answer with events; what is refused before the queue is an error of its own."""
    events = front.stream(http, request, preview_every=1)
    first = await anext(events)

    async def encode() -> AsyncIterator[bytes]:
        number = 0
        try:
            event: Event | None = first
            while event is not None:
                number += 1
                kind, data = _event(event)
                yield sse(data, event=kind, id_=number)
                event = await anext(events, None)
        except MezzotintError as error:
            problem = problem_body(describe(error), visit(http).request_id)
            yield sse({"error": problem}, event="failed", id_=number + 1)
        finally:
            await events.aclose()

    try:
        return front.event_stream(http, encode())
    except TooManyRequests:
        await events.aclose()
        raise


def _event(event: Event) -> tuple[str, dict[str, Any]]:
    """Write one event of a run."""
    if isinstance(event, Queued):
        return "queued", {"id": event.id, "position": event.position, "eta_s": event.eta_s}
    if isinstance(event, Started):
        return "started", {"id": event.id}
    if isinstance(event, Stepped):
        preview = b64(event.preview) if event.preview is not None else None
        data = {"image": event.image, "step": event.step, "steps": event.steps, "preview": preview}
        return "step", data
    if isinstance(event, ImageFinished):
        return "image", with_bytes(event.image)
    if isinstance(event, Finished):
        return "finished", from_result(event.result)
    if isinstance(event, Failed):
        return "failed", {"id": event.id, "error": problem_body(describe(event.error))}
    return "cancelled", {"id": event.id}


async def plan(front: Front, http: Request) -> Response:
    """Resolve a request without running it."""
    request = await read_request(http)
    caller = visit(http).caller
    front.admit(request, caller)
    return json_response(dict(await front.service.plan(request, client=caller.name)))


async def capabilities(front: Front, http: Request) -> Response:
    """List models, names and limits."""
    limits = front.config.limits
    body = {
        "models": [dict(m) for m in await front.service.models()],
        **await front.capabilities(http),
        "limits": {
            "body_bytes": limits.body_bytes,
            "adapter_bytes": limits.adapter_bytes,
            "pixels": limits.pixels,
            "num_inference_steps": limits.steps,
            "num_images": limits.images,
        },
        "request": request_schema(limits.ends),
    }
    return json_response(body)


async def inspect(front: Front, http: Request) -> Response:
    """Read the recipe inside a picture (raw bytes, an upload, or ``{"image": base64}``)."""
    kind = media_type(http)
    if kind.startswith("image/") or kind == "application/octet-stream":
        image: Any = ImageInput(await http.body())
    elif kind == MULTIPART:
        image = (await read_parts(http, _INSPECTION)).get("image")
        if image is None:
            raise InvalidField("image is needed: upload the picture", field="image")
    else:
        image = (await read_json(http)).get("image")
        if not isinstance(image, str):
            raise InvalidField("image must be a picture as base64 text", field="image")
    data = (ImageInput.from_base64(image) if isinstance(image, str) else image).data
    return json_response(dict(await front.service.inspect(data, client=visit(http).caller.name)))


async def live(front: Front, http: Request) -> Response:
    """Tell that the process runs."""
    return json_response({"status": "live", "time": time.time()})


async def ready(front: Front, http: Request) -> Response:
    """Tell whether requests are taken: not before the models are warm, not while draining."""
    health = dict(await front.service.health())
    for name in ("metrics", "metrics_text"):
        health.pop(name, None)
    ok = bool(health.get("ready")) and not front.draining
    health |= {"ready": ok, "draining": front.draining}
    return json_response(health, 200 if ok else 503)


_IMAGE = {"type": "object", "required": ["image"], "properties": {"image": PICTURE}}
_UPLOAD = form_body(Body("Inspection", lambda _: _IMAGE))
_BYTES = (("image/*", any_bytes), ("application/octet-stream", any_bytes))
_INSPECTION = replace(_UPLOAD, also=(*_UPLOAD.also, *_BYTES))
_RESULT = {
    "type": "object",
    "required": ["id", "status", "images", "plan", "cache", "warnings"],
    "properties": {
        "id": {"type": "string"},
        "status": {"const": "succeeded"},
        "images": {"type": "array", "items": ANY_OBJECT},
        "plan": ANY_OBJECT,
        "cache": {"enum": ["hit", "miss"]},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}


def _endpoints() -> tuple[Endpoint, ...]:
    events: dict[str, dict[str, Any]] = {"text/event-stream": {}}
    formats: dict[str, dict[str, Any]] = {kind: {} for kind in FORMATS}

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)

    return (
        endpoint(
            "POST", "/v1/generations", generations, "Make pictures and wait for them", body=REQUEST,
            answers={"application/json": _RESULT, **events, **formats},
        ),
        *native_jobs.endpoints(),
        endpoint("POST", "/v1/plan", plan, "Resolve a request without running it", body=REQUEST),
        endpoint("POST", "/v1/inspect", inspect, "Read the recipe in a picture", body=_INSPECTION),
        endpoint("GET", "/v1/capabilities", capabilities, "Models, names and limits"),
        *adapters.ENDPOINTS,
        *collection.ENDPOINTS,
        *datasets.ENDPOINTS,
        *gallery.ENDPOINTS,
        *operations.ENDPOINTS,
        *pictures.ENDPOINTS,
        *runs.ENDPOINTS,
        *training.ENDPOINTS,
        *uploads.ENDPOINTS,
        endpoint("GET", "/health/live", live, "Whether the process runs", scope=None),
        endpoint("GET", "/health/ready", ready, "Whether requests are taken", scope=None),
    )  # fmt: skip


DIALECT = Dialect(name="native", pattern=re.compile(r"/"), endpoints=_endpoints(), render=_render)
