"""Native: our own JSON, jobs and events.

The request's names are those of :class:`mezzotint.GenerationRequest`; errors are
problem details (RFC 9457). The same work can be waited for, streamed, or left
on the durable queue.
"""

import base64
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, MezzotintError, UnknownName
from mezzotint.request import Animation, GenerationRequest
from mezzotint.serve import runs
from mezzotint.serve.errors import Conflict, Malformed, NotFound, Problem, describe
from mezzotint.serve.front import Front, use_cache
from mezzotint.serve.schema import ANY_OBJECT, request_schema
from mezzotint.serve.streaming import EventStream, last_event_id, sse
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Dialect,
    Endpoint,
    json_response,
    media_type,
    read_form,
    read_json,
    visit,
)
from mezzotint.service.jobs.jobs import IdempotencyConflict, JobEvent, Jobs
from mezzotint.service.jobs.store import Job
from mezzotint.service.workers.wire import describe_image, read_error
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

_STATUSES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")
_MOVING = ("gif", "apng", "mp4")
_FORMATS = {kind: name for name, kind in CONTENT_TYPES.items()}


def to_request(body: dict[str, Any]) -> GenerationRequest:
    """Read a native request body."""
    return GenerationRequest.from_dict(body)


def from_result(result: GenerationResult) -> dict[str, Any]:
    """Write a result with its pictures as base64."""
    return {
        "id": result.id,
        "status": "succeeded",
        "images": [_with_bytes(image) for image in result.images],
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
    }
    if request_id:
        body["instance"] = f"urn:mezzotint:request:{request_id}"
    extra = {"field": problem.field, "value": problem.value, "allowed": problem.allowed}
    return body | {name: value for name, value in extra.items() if value is not None}


def _render(problem: Problem, request_id: str) -> Response:
    return json_response(
        problem_body(problem, request_id), problem.status, media="application/problem+json"
    )


def _with_bytes(image: ImageOutput) -> dict[str, Any]:
    return {**describe_image(image), "b64": _b64(image.data)}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


async def _read(http: Request) -> GenerationRequest:
    """Read the request, JSON or a form with uploads; ``Accept: image/...`` picks a format."""
    if media_type(http) == "multipart/form-data":
        body = await _read_upload(http)
    else:
        body = await read_json(http)
    request = to_request(body)
    wanted = _wanted_format(http)
    if wanted is not None and (wanted in _MOVING or request.output.animation is not None):
        return _animated(request, wanted)
    if wanted is not None and request.output.format != wanted:
        if "output" in body and "format" in body["output"]:
            raise InvalidRequest(
                f"output.format is {request.output.format} but Accept asks for image/{wanted}",
                field="output.format",
                value=request.output.format,
                allowed=wanted,
            )
        request = replace(request, output=replace(request.output, format=wanted))
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
    """Read a form: ``request`` holds JSON; other parts are fields, files are pictures."""
    body: dict[str, Any] = {}
    async with read_form(http) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                body[name] = ImageInput(await value.read())
            elif name == "request":
                try:
                    parsed = json.loads(value)
                except (ValueError, RecursionError):
                    raise Malformed("the part named request must be JSON") from None
                if not isinstance(parsed, dict):
                    raise Malformed("the part named request must be a JSON object")
                body |= parsed
            else:
                body[name] = _scalar(name, value)
    return body


def _scalar(name: str, text: str) -> Any:
    """Read a form field: numbers and objects as JSON, texts as they are."""
    if name in ("prompt", "negative_prompt", "model", "seed", "image", "mask"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _wanted_format(http: Request) -> Any:
    accept = http.headers.get("accept", "")
    return next((name for kind, name in _FORMATS.items() if kind in accept), None)


async def generations(front: Front, http: Request) -> Any:
    """Run a request: JSON, the bytes of one picture, or events, as ``Accept`` says."""
    request = await _read(http)
    accept = http.headers.get("accept", "")
    wants_picture = _wanted_format(http) is not None or "image/*" in accept
    if wants_picture and "application/json" not in accept:
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
    if "text/event-stream" in accept:
        return await _stream(front, http, request)
    return json_response(from_result(await _generate(front, http, request)))


async def _generate(front: Front, http: Request, request: GenerationRequest) -> GenerationResult:
    """Run a request; with an idempotency key through a job, so that a repeat finds it."""
    if "idempotency-key" not in http.headers or front.jobs is None:
        return await front.generate(http, request)
    job = await _submit(front, http, request)
    job = await front.watched(http, front.jobs.wait(job.id))
    if job.status != "succeeded":
        raise _job_error(job)
    images: list[ImageOutput] = []
    for kept in job.images:
        about = {k: kept.about[k] for k in ("index", "seed", "format", "width", "height")}
        data = await front.jobs.image(job, kept.index)
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

    return EventStream(encode())


def _event(event: Event) -> tuple[str, dict[str, Any]]:
    """Write one event of a run."""
    if isinstance(event, Queued):
        return "queued", {"id": event.id, "position": event.position, "eta_s": event.eta_s}
    if isinstance(event, Started):
        return "started", {"id": event.id}
    if isinstance(event, Stepped):
        preview = _b64(event.preview) if event.preview is not None else None
        data = {"image": event.image, "step": event.step, "steps": event.steps, "preview": preview}
        return "step", data
    if isinstance(event, ImageFinished):
        return "image", _with_bytes(event.image)
    if isinstance(event, Finished):
        return "finished", from_result(event.result)
    if isinstance(event, Failed):
        return "failed", {"id": event.id, "error": problem_body(describe(event.error))}
    return "cancelled", {"id": event.id}


async def plan(front: Front, http: Request) -> Response:
    """Resolve a request without running it."""
    request = await _read(http)
    front.admit(request, visit(http).caller)
    return json_response(dict(await front.service.plan(request)))


async def capabilities(front: Front, http: Request) -> Response:
    """List models, names and limits."""
    limits = front.config.limits
    body = {
        "models": [dict(m) for m in await front.service.models()],
        **dict(await front.service.capabilities()),
        "limits": {
            "body_bytes": limits.body_bytes,
            "pixels": limits.pixels,
            "num_inference_steps": limits.steps,
            "num_images": limits.images,
        },
        "request": request_schema(),
    }
    return json_response(body)


def _jobs(front: Front) -> Jobs:
    if front.jobs is None:
        raise NotFound("this server keeps no jobs")
    return front.jobs


def _owner(http: Request) -> str | None:
    """Return whose jobs the caller may see: its own, or everybody's for a manager."""
    caller = visit(http).caller
    return None if "manage" in caller.scopes else caller.name


async def _submit(front: Front, http: Request, request: GenerationRequest) -> Job:
    """Put a request onto the queue."""
    front.admit(request, visit(http).caller)
    visit(http).model = request.model
    planned = await front.service.plan(request)  # refused now rather than when its turn comes
    cost = planned.get("cost") or {}
    _jobs(front).expect(float(cost.get("seconds") or 0.0))
    key = http.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 255:
        raise Malformed("Idempotency-Key must have 1 to 255 characters")
    try:
        return await _jobs(front).submit(
            request,
            client=visit(http).caller.name,
            idempotency_key=key,
            use_cache=use_cache(http),
        )
    except IdempotencyConflict as error:
        raise Conflict(str(error), field="Idempotency-Key") from None


async def describe_job(front: Front, job: Job) -> dict[str, Any]:
    """Write a job."""
    jobs = _jobs(front)
    position, eta_s = await jobs.place(job)
    step, steps = jobs.progress(job)
    body: dict[str, Any] = {
        "id": job.id,
        "status": job.status,
        "position": position,
        "eta_s": round(eta_s, 3),
        "progress": {"step": step, "steps": steps},
        "images": [
            {**image.about, "url": f"/v1/jobs/{job.id}/images/{image.index}"}
            for image in job.images
        ],
        "plan": job.outcome.get("plan"),
        "cache": job.outcome.get("cache", "miss"),
        "warnings": job.outcome.get("warnings", []),
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
    }
    if "error" in job.outcome:
        body["error"] = problem_body(describe(read_error(job.outcome["error"])))
    return body


async def create_job(front: Front, http: Request) -> Response:
    """Queue a request."""
    job = await _submit(front, http, await _read(http))
    body = await describe_job(front, job)
    return json_response(body, 202, headers={"Location": f"/v1/jobs/{job.id}"})


async def get_job(front: Front, http: Request) -> Response:
    """Show a job."""
    job = await _jobs(front).get(http.path_params["id"], client=_owner(http))
    return json_response(await describe_job(front, job))


async def list_jobs(front: Front, http: Request) -> Response:
    """List jobs, newest first."""
    query = http.query_params
    status = query.get("status")
    if status is not None and status not in _STATUSES:
        raise UnknownName("status", status[:80], _STATUSES, field="status")
    text = query.get("limit", "50")
    limit = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    if not 1 <= limit <= 1000:
        raise InvalidRequest(
            f"limit must be 1 to 1000, got {text[:40]}", field="limit", value=text[:40]
        )
    jobs = await _jobs(front).page(
        client=_owner(http), status=status, limit=limit, after=query.get("after")
    )
    following = jobs[-1].id if len(jobs) == limit else None
    return json_response({"jobs": [await describe_job(front, j) for j in jobs], "next": following})


async def job_events(front: Front, http: Request) -> EventStream:
    """Follow a job; ``Last-Event-ID`` resumes."""
    jobs = _jobs(front)
    after = last_event_id(http)
    job = await jobs.get(http.path_params["id"], client=_owner(http))

    async def encode() -> AsyncIterator[bytes]:
        async for event in jobs.events(job.id, after):
            yield sse(await _job_event(front, event, job.id), event=event.kind, id_=event.id)

    return EventStream(encode())


async def _job_event(front: Front, event: JobEvent, id_: str) -> dict[str, Any]:
    if event.kind == "step":
        preview = _b64(event.preview) if event.preview is not None else None
        return {**event.data, "preview": preview}
    if event.kind == "image":
        return {**event.data, "url": f"/v1/jobs/{id_}/images/{event.data['index']}"}
    if event.kind == "failed":
        return {"id": id_, "error": problem_body(describe(read_error(event.data["error"])))}
    if event.kind == "finished":
        return await describe_job(front, await _jobs(front).get(id_))
    return dict(event.data)


async def job_image(front: Front, http: Request) -> Response:
    """Return one picture of a job."""
    jobs = _jobs(front)
    job = await jobs.get(http.path_params["id"], client=_owner(http))
    text = http.path_params["k"]
    index = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else -1
    image = next((i for i in job.images if i.index == index), None)
    if image is None:
        raise NotFound(f"job {job.id} has no picture {text[:20]!r} (status {job.status})")
    headers = {"ETag": f'"{image.digest}"', "Cache-Control": "private, max-age=31536000, immutable"}
    if http.headers.get("if-none-match") == f'"{image.digest}"':
        return Response(status_code=304, headers=headers)
    data = await jobs.image(job, index)
    return Response(data, headers=headers, media_type=CONTENT_TYPES[image.about["format"]])


async def cancel_job(front: Front, http: Request) -> Response:
    """Cancel a job at its next step."""
    jobs = _jobs(front)
    job = await jobs.get(http.path_params["id"], client=_owner(http))
    return json_response(await describe_job(front, await jobs.cancel(job.id)))


async def inspect(front: Front, http: Request) -> Response:
    """Read the recipe inside a picture (raw bytes, an upload, or ``{"image": base64}``)."""
    kind = media_type(http)
    if kind.startswith("image/") or kind == "application/octet-stream":
        data = ImageInput(await http.body()).data
    elif kind == "multipart/form-data":
        image = (await _read_upload(http)).get("image")
        if not isinstance(image, ImageInput):
            raise InvalidRequest("image is needed: upload the picture", field="image")
        data = image.data
    else:
        body = await read_json(http)
        if not isinstance(body.get("image"), str):
            raise InvalidRequest("image must be a picture as base64 text", field="image")
        data = ImageInput.from_base64(body["image"]).data
    return json_response(dict(await front.service.inspect(data)))


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
_JOB = {
    "type": "object",
    "required": ["id", "status", "position", "eta_s", "progress", "images"],
    "properties": {"id": {"type": "string"}, "status": {"enum": list(_STATUSES)}},
}
_JSON_JOB = {"application/json": _JOB}


def _endpoints() -> tuple[Endpoint, ...]:
    body = request_schema()
    events = {"text/event-stream": {}}
    pictures = {kind: {} for kind in _FORMATS}
    inspected = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": {"type": "string"}},
    }
    query = tuple(
        {"name": name, "in": "query", "schema": schema}
        for name, schema in (
            ("status", {"enum": list(_STATUSES)}),
            ("limit", {"type": "integer", "minimum": 1, "maximum": 1000}),
            ("after", {"type": "string"}),
        )
    )

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)

    return (
        endpoint(
            "POST", "/v1/generations", generations, "Make pictures and wait for them", body=body,
            answers={"application/json": _RESULT, **events, **pictures},
        ),
        endpoint(
            "POST", "/v1/jobs", create_job, "Queue a request", body=body, answers=_JSON_JOB,
            status=202,
        ),
        endpoint("GET", "/v1/jobs", list_jobs, "List jobs", parameters=query),
        endpoint("GET", "/v1/jobs/{id}", get_job, "Show a job", answers=_JSON_JOB),
        endpoint("DELETE", "/v1/jobs/{id}", cancel_job, "Cancel a job", answers=_JSON_JOB),
        endpoint("GET", "/v1/jobs/{id}/events", job_events, "Follow a job", answers=events),
        endpoint(
            "GET", "/v1/jobs/{id}/images/{k}", job_image, "One picture of a job", answers=pictures
        ),
        endpoint("POST", "/v1/plan", plan, "Resolve a request without running it", body=body),
        endpoint("POST", "/v1/inspect", inspect, "Read the recipe in a picture", body=inspected),
        endpoint("GET", "/v1/capabilities", capabilities, "Models, names and limits"),
        *runs.ENDPOINTS,
        endpoint("GET", "/health/live", live, "Whether the process runs", scope=None),
        endpoint("GET", "/health/ready", ready, "Whether requests are taken", scope=None),
    )  # fmt: skip


DIALECT = Dialect(name="native", pattern=re.compile(r"/"), endpoints=_endpoints(), render=_render)
