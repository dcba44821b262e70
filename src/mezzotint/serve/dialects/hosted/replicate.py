"""Replicate: its predictions API, as the package ``replicate`` calls it.

A prediction is a job on the durable queue, seen by the key that made it alone. Our own
request fields are accepted in ``input`` beside the usual ones. ``Prefer: wait`` holds the
answer; a webhook is called where the operator allows its host.
"""

import asyncio
import re
import time
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import MezzotintError, UnknownName
from mezzotint.plain import is_list, is_mapping
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.hosted.fields import (
    in_words_of,
    native_fields,
    note_of,
    read_picture,
    read_scheduler,
)
from mezzotint.serve.errors import NotFound, Problem, WrongField, describe
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import own_job, own_jobs, queue_of, submit
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.webhooks import check_webhook, secret_of, send
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Body,
    Dialect,
    Endpoint,
    json_response,
    read_json,
    visit,
)
from mezzotint.service.descriptions import read_error
from mezzotint.service.jobs.feed import JobEvent
from mezzotint.service.jobs.store import Job

__all__ = ["DIALECT", "from_job", "to_request"]

_DOOR = "replicate"
_NAMES = {
    "num_outputs": "num_images",
    "prompt_strength": "strength",
    "guidance": "guidance_scale",
    "steps": "num_inference_steps",
}
_OUTPUT = {"output_format": "output.format", "output_quality": "output.quality"}
_IGNORED = ("disable_safety_checker", "go_fast", "apply_watermark")
_FIELDS = (
    "input", "version", "model", "webhook", "webhook_completed", "webhook_events_filter", "stream",
)  # fmt: skip
_STATUS = {"queued": "starting", "running": "processing", "cancelled": "canceled"}
_EVENTS = {"started": "start", "image": "output", "step": "logs"}
_FILTERS = ("start", "output", "logs", "completed")
_MOST_WAIT_S = 60.0
_LOGS_S = 0.5  # at most two messages a second about steps, as the original promises
_INPUT = {
    "type": "object",
    "properties": {
        "input": ANY_OBJECT,
        "version": {"type": ["string", "null"]},
        "webhook": {"type": ["string", "null"]},
        "webhook_events_filter": {"type": ["array", "null"], "items": {"enum": list(_FILTERS)}},
    },
}


def to_request(model: str, given: Mapping[str, Any]) -> tuple[GenerationRequest, list[str]]:
    """Translate the ``input`` of a prediction.

    Returns:
        The request, and a sentence for everything that has no effect.

    Raises:
        InvalidRequest: If a field is wrong.
    """
    fields = dict(given)
    output = _output(fields)
    native, lost = native_fields(fields, _NAMES, _IGNORED)
    for name in ("image", "mask"):
        if name in native:
            native[name] = read_picture(native[name], name)
    if "scheduler" in native:
        native = {**native, **read_scheduler(native["scheduler"], "scheduler")}
    if "model" in native:
        raise UnknownName("field", "model", {*_NAMES, *_IGNORED}, field="model")
    if output:
        native["output"] = output
    with in_words_of(given, _NAMES | _OUTPUT):
        request = GenerationRequest.from_dict({**native, "model": model})
    return request, lost


def _output(fields: dict[str, Any]) -> dict[str, Any]:
    """Take format and quality of the files out of the fields."""
    output: dict[str, Any] = {}
    if (kind := fields.pop("output_format", None)) is not None:
        output["format"] = "jpeg" if kind == "jpg" else kind
    quality = fields.pop("output_quality", None)
    if isinstance(quality, int | float) and not isinstance(quality, bool):
        output["quality"] = max(1, int(quality)) if quality >= 0 else quality
    elif quality is not None:
        output["quality"] = quality
    if output and fields.get("output") is not None:
        raise WrongField("output and output_format say the same, give one", field="output_format")
    return output


def from_job(front: Front, job: Job, base: str) -> dict[str, Any]:
    """Write a prediction.

    Args:
        front: Knows how far a running job is.
        job: The prediction.
        base: Address of this server, without a path.
    """
    here = f"{base}/v1/predictions/{job.id}"
    is_expired = job.status == "expired"
    status = _STATUS.get(job.status, job.status)
    if is_expired:
        status = "failed" if "error" in job.outcome else "succeeded"
    output = [
        f"{here}/output/{image.index}.{_extension(str(image.about['format']))}"
        for image in job.images
    ]
    error = describe(read_error(job.outcome["error"])).detail if "error" in job.outcome else None
    return {
        "id": job.id,
        "model": job.note.get("model", ""),
        "version": job.note.get("version", ""),
        "input": job.note.get("input", {}),
        "output": output or None,
        "status": status,
        "error": error,
        "logs": _logs(front, job),
        "metrics": _metrics(job),
        "data_removed": is_expired,
        "created_at": _moment(job.created),
        "started_at": _moment(job.started),
        "completed_at": _moment(job.finished),
        "source": "api",
        "urls": {"get": here, "cancel": f"{here}/cancel"},
    }


def _extension(format_: str) -> str:
    return "jpg" if format_ == "jpeg" else format_


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"


def _metrics(job: Job) -> dict[str, Any]:
    if job.finished is None or job.started is None:
        return {}
    return {
        "predict_time": round(job.finished - job.started, 3),
        "total_time": round(job.finished - job.created, 3),
        "image_count": len(job.images),
    }


def _logs(front: Front, job: Job) -> str:
    """Write what a client reads its progress from, and the warnings."""
    lines = [str(line) for line in job.note.get("lost", ())]
    lines += [str(line) for line in job.outcome.get("warnings", ())]
    for image in job.images:
        lines += [str(line) for line in image.about.get("warnings", ())]
    step, steps = queue_of(front).progress(job)
    if job.status == "succeeded":
        step = steps = 1
    if steps:
        share = step * 100 // steps
        lines.append(f"{share:3d}%|{'#' * (share // 10):<10}| {step}/{steps}")
    return "\n".join(dict.fromkeys(lines))


def error_body(problem: Problem) -> dict[str, Any]:
    """Write an error as problem details, the way Replicate does."""
    body: dict[str, Any] = {
        "type": f"urn:mezzotint:error:{problem.code}",
        "title": problem.code.replace("_", " "),
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.field is not None:
        body["invalid_fields"] = [{"field": problem.field, "description": problem.detail}]
    return body


def _render(problem: Problem, request_id: str) -> Response:
    return json_response(error_body(problem), problem.status, media="application/problem+json")


def _base(http: Request) -> str:
    return str(http.url.replace(path="", query=""))


async def _find_model(front: Front, text: str) -> Mapping[str, Any]:
    """Return the model that ``owner/name``, ``owner/name:version``, a name or a digest names.

    Raises:
        UnknownName: If there is none.
    """
    models = await front.recent_models()
    path, colon, version = text.rpartition("/")[2].partition(":")
    wanted = f"{path}@{version}" if colon else path
    for model in models:
        names = {f"{model['name']}@{model['version']}", model["digest"]}
        if model["default"]:
            names.add(model["name"])
        if wanted in names or (version and path == model["name"] and version == model["digest"]):
            return model
    raise UnknownName("model", text[:200], [m["name"] for m in models], field="version")


def _name(model: Mapping[str, Any]) -> str:
    return model["name"] if model["default"] else f"{model['name']}@{model['version']}"


async def create(front: Front, http: Request) -> Response:
    """Make a prediction with the model that ``version`` names."""
    body = await read_json(http)
    wanted = body.get("version") or body.get("model")
    if not isinstance(wanted, str):
        raise WrongField("version is needed: a model's name or digest", field="version")
    return await _create(front, http, body, await _find_model(front, wanted))


async def create_of_model(front: Front, http: Request) -> Response:
    """Make a prediction with the default version of a model."""
    body = await read_json(http)
    return await _create(front, http, body, await _find_model(front, http.path_params["name"]))


async def _create(
    front: Front, http: Request, body: Mapping[str, Any], model: Mapping[str, Any]
) -> Response:
    for name in body:
        if name not in _FIELDS:
            raise UnknownName("field", name, _FIELDS, field=name)
    given = body.get("input")
    if not is_mapping(given):
        raise WrongField("input is needed: an object with the model's fields", field="input")
    if body.get("stream"):
        raise WrongField("stream is for models of texts; poll or give a webhook", field="stream")
    hooks = _hooks(front, body)
    seconds = _wait_s(http)
    request, lost = to_request(_name(model), given)
    shown = {k: v if k not in ("image", "mask") else "(picture)" for k, v in given.items()}
    owner = http.path_params.get("owner", "mezzotint")
    note = note_of(
        _DOOR, input=shown, lost=lost, model=f"{owner}/{model['name']}", version=model["digest"]
    )
    job = await submit(front, http, request, note=note)
    base = _base(http)
    if hooks:
        _follow(front, job, hooks, base, visit(http).caller.name)
    has_waited = seconds is not None and not await _ends_within(front, http, job.id, seconds)
    written = from_job(front, await queue_of(front).get(job.id), base)
    if has_waited and written["status"] == "processing":
        written["status"] = "starting"  # what the package takes for: not done, go on asking
    return json_response(written, 201, headers={"Location": f"/v1/predictions/{job.id}"})


def _wait_s(http: Request) -> float | None:
    """Return the seconds that ``Prefer: wait`` asks for, None without it.

    Raises:
        WrongField: If they are not 1 to 60.
    """
    found = re.search(r"\bwait\b(?:\s*=\s*([^\s,;]+))?", http.headers.get("prefer", ""))
    if found is None:
        return None
    if found[1] is None:
        return _MOST_WAIT_S
    seconds = int(found[1]) if re.fullmatch(r"[0-9]{1,3}", found[1]) else 0
    if not 1 <= seconds <= _MOST_WAIT_S:
        raise WrongField(
            f"Prefer: wait must be 1 to 60 seconds, got {found[1][:20]}",
            field="Prefer",
            value=found[1][:20],
            allowed="1 to 60",
        )
    return float(seconds)


async def _ends_within(front: Front, http: Request, id_: str, seconds: float) -> bool:
    """Wait for a job as one of the caller's generations; True if it ended in time."""
    caller = visit(http).caller
    async with front.shared.generation(caller):
        try:
            async with asyncio.timeout(seconds):
                await front.watched(http, queue_of(front).wait(id_))
        except TimeoutError:
            return False
    return True


def _hooks(front: Front, body: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return the addresses to call, and what for.

    Raises:
        WrongField: If an address may not be called, or an event does not exist.
    """
    wanted = body.get("webhook_events_filter")
    wanted = ["output", "completed"] if wanted is None else wanted
    if not is_list(wanted) or not all(w in _FILTERS for w in wanted):
        raise WrongField(
            f"webhook_events_filter must be a list of {', '.join(_FILTERS)}",
            field="webhook_events_filter",
            value=str(wanted)[:80],
            allowed=", ".join(_FILTERS),
        )
    hooks: dict[str, frozenset[str]] = {}
    for name, events in (
        ("webhook", frozenset(map(str, wanted))),
        ("webhook_completed", frozenset({"completed"})),
    ):
        if body.get(name) is not None:
            hooks[check_webhook(body[name], front.config, name)] = events
    return hooks


def _follow(
    front: Front, job: Job, hooks: Mapping[str, frozenset[str]], base: str, client: str
) -> None:
    """Call the webhooks of a job until it has ended, beside the answer."""
    secret = secret_of(queue_of(front).signing_key(), client)

    async def follow() -> None:
        told = 0.0
        async for event in queue_of(front).events(job.id):
            kind = _kind(event)
            now = time.monotonic()
            if kind is None or (kind == "logs" and now - told < _LOGS_S):
                continue
            told = now if kind == "logs" else told
            body = orjson.dumps(from_job(front, await queue_of(front).get(job.id), base))
            for url, events in hooks.items():
                if kind in events:
                    await send(url, body, secret)

    tasks: set[asyncio.Task[None]] = front.memory.setdefault("webhooks", set())
    task = asyncio.get_running_loop().create_task(follow())
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _kind(event: JobEvent) -> str | None:
    return "completed" if event.is_ending else _EVENTS.get(event.kind)


async def show(front: Front, http: Request) -> Response:
    """Show a prediction."""
    job = await own_job(front, http, http.path_params["id"], _DOOR)
    return json_response(from_job(front, job, _base(http)))


async def cancel(front: Front, http: Request) -> Response:
    """Cancel a prediction at its next step."""
    job = await own_job(front, http, http.path_params["id"], _DOOR)
    return json_response(from_job(front, await queue_of(front).cancel(job.id), _base(http)))


async def listing(front: Front, http: Request) -> Response:
    """List the caller's predictions, newest first."""
    jobs, following = await own_jobs(front, http, _DOOR, after=http.query_params.get("cursor"))
    base = _base(http)
    after = f"{base}/v1/predictions?cursor={following}" if following else None
    results = [from_job(front, job, base) for job in jobs]
    return json_response({"previous": None, "next": after, "results": results})


async def picture(front: Front, http: Request) -> Response:
    """Return one picture of a prediction."""
    job = await own_job(front, http, http.path_params["id"], _DOOR)
    found = re.fullmatch(r"([0-9]{1,6})\.\w+", http.path_params["file"])
    image = next((i for i in job.images if found and i.index == int(found[1])), None)
    if image is None:
        raise NotFound(f"prediction {job.id} has no such picture")
    try:
        data = await queue_of(front).image(job, image.index)
    except MezzotintError:
        raise NotFound(f"the pictures of prediction {job.id} are gone") from None
    return Response(data, media_type=CONTENT_TYPES[image.about["format"]])


async def show_model(front: Front, http: Request) -> Response:
    """Show a model."""
    model = await _find_model(front, http.path_params["name"])
    owner = http.path_params["owner"]
    return json_response(
        {
            "url": f"{_base(http)}/v1/models/{owner}/{model['name']}",
            "owner": owner,
            "name": model["name"],
            "description": None,
            "visibility": "private",
            "github_url": None,
            "paper_url": None,
            "license_url": None,
            "run_count": 0,
            "cover_image_url": None,
            "default_example": None,
            "latest_version": _version(model),
        }
    )


async def show_version(front: Front, http: Request) -> Response:
    """Show a version of a model."""
    text = f"{http.path_params['name']}:{http.path_params['version']}"
    return json_response(_version(await _find_model(front, text)))


def _version(model: Mapping[str, Any]) -> dict[str, Any]:
    output = {"type": "array", "items": {"type": "string", "format": "uri"}, "title": "Output"}
    schemas = {"Input": {"type": "object", "title": "Input"}, "Output": output}
    return {
        "id": model["digest"],
        "created_at": _moment(0.0),
        "cog_version": "0.0.0",
        "openapi_schema": {"openapi": "3.0.2", "components": {"schemas": schemas}},
    }


async def webhook_secret(front: Front, http: Request) -> Response:
    """Show the secret that signs the caller's webhooks."""
    key = queue_of(front).signing_key()
    return json_response({"key": secret_of(key, visit(http).caller.name)})


def _endpoints() -> tuple[Endpoint, ...]:
    body = Body("ReplicatePrediction", lambda limits: _INPUT)

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(
            method=method, path=f"/v1/{path}", handler=handler, summary=f"Replicate: {summary}",
            **more,
        )  # fmt: skip

    model = "models/{owner}/{name}"
    return (
        endpoint("POST", "predictions", create, "make a prediction", body=body, status=201),
        endpoint(
            "POST", f"{model}/predictions", create_of_model, "make a prediction with a model",
            body=body, status=201,
        ),
        endpoint("GET", "predictions", listing, "list predictions"),
        endpoint("GET", "predictions/{id}", show, "show a prediction"),
        endpoint("POST", "predictions/{id}/cancel", cancel, "cancel a prediction"),
        endpoint(
            "GET", "predictions/{id}/output/{file}", picture, "one picture of a prediction",
            answers={kind: {} for kind in CONTENT_TYPES.values()},
        ),
        endpoint("GET", model, show_model, "show a model"),
        endpoint("GET", model + "/versions/{version}", show_version, "show a version"),
        endpoint("GET", "webhooks/default/secret", webhook_secret, "the secret of webhooks"),
    )  # fmt: skip


DIALECT = Dialect(
    name="replicate",
    pattern=re.compile(r"^/v1/(predictions|webhooks|models/[^/]+/[^/:]+)(/|$)"),
    endpoints=_endpoints(),
    render=_render,
)
