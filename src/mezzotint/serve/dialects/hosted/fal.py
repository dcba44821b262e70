"""fal: its queue, as the package ``fal-client`` calls it, below ``/fal``.

A request is a job on the durable queue, seen by the key that made it alone. Pictures
come as addresses of this server, or inside the answer with ``sync_mode``. Our own request
fields are accepted beside fal's.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import MezzotintError, UnknownName
from mezzotint.plain import Checked, is_mapping
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.hosted.fields import (
    in_words_of,
    native_fields,
    note_of,
    read_picture,
    read_scheduler,
)
from mezzotint.serve.errors import Conflict, Malformed, NotFound, Problem, WrongField
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import kept_picture, own_job, queue_of, submit, wait
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Body,
    Dialect,
    Endpoint,
    json_response,
    read_fields,
    read_json,
)
from mezzotint.service.descriptions import read_error
from mezzotint.service.jobs.store import Job
from mezzotint.types import Side

__all__ = ["DIALECT", "to_request"]

_DOOR = "fal"
_NAMES = {"image_url": "image", "mask_url": "mask", "steps": "num_inference_steps"}
_OUTPUT = {"output_format": "output.format"}
_IGNORED = ("enable_safety_checker", "acceleration")
_SIZES = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size(Checked):
    """A size as an object.

    Args:
        width: Pixels.
        height: Pixels.
    """

    width: Side
    height: Side


def to_request(model: str, body: Mapping[str, Any]) -> tuple[GenerationRequest, bool]:
    """Translate the arguments of an application.

    Returns:
        The request, and whether the pictures belong inside the answer.

    Raises:
        InvalidRequest: If a field is wrong.
    """
    fields = dict(body)
    is_inside = fields.pop("sync_mode", None)
    if is_inside not in (None, True, False):
        raise WrongField("sync_mode must be true or false", field="sync_mode")
    size = _size(fields)
    kind = fields.pop("output_format", None)
    native, _ = native_fields(fields, _NAMES, _IGNORED)
    for name, ours in (("image_url", "image"), ("mask_url", "mask")):
        if ours in native:
            native[ours] = read_picture(native[ours], name if name in body else ours)
    if "scheduler" in native:
        native = {**native, **read_scheduler(native["scheduler"], "scheduler")}
    if isinstance(native.get("loras"), list):
        native["loras"] = [_lora(entry) for entry in native["loras"]]
    if "model" in native:
        raise UnknownName("field", "model", {*_NAMES, *_IGNORED}, field="model")
    if kind is not None:
        if "output" in native:
            raise WrongField("output and output_format say the same, give one", field="output")
        native["output"] = {"format": kind}
    with in_words_of(body, _NAMES | _OUTPUT):
        request = GenerationRequest.from_dict({**native, **size, "model": model})
    return request, bool(is_inside)


def _size(fields: dict[str, Any]) -> dict[str, Any]:
    """Take ``image_size`` out of the fields: a name, or width and height.

    Raises:
        WrongField: If it is neither.
    """
    size = fields.pop("image_size", None)
    if size is None:
        return {}
    if "width" in fields or "height" in fields:
        raise WrongField("image_size and width say the same, give one", field="image_size")
    if isinstance(size, str) and size in _SIZES:
        return dict(zip(("width", "height"), _SIZES[size], strict=True))
    if is_mapping(size) and set(size) == {"width", "height"}:
        sides, _ = read_fields(_Size, size, "image_size")
        return {"width": sides.width, "height": sides.height}
    raise WrongField(
        f"image_size must be one of {', '.join(_SIZES)}, or width and height, "
        f"got {str(size)[:80]!r}",
        field="image_size",
        value=str(size)[:80],
        allowed=", ".join(_SIZES),
    )


def _lora(entry: Any) -> Any:
    """Read a LoRA whose name fal calls ``path``."""
    if not is_mapping(entry) or "path" not in entry:
        return entry
    rest = {key: value for key, value in entry.items() if key != "path"}
    return {"name": entry["path"], **rest}


def error_body(problem: Problem) -> dict[str, Any]:
    """Write an error: a list of places for a wrong field, a sentence otherwise."""
    theirs = problem.renamed({"image": "image_url", "mask": "mask_url"})
    if theirs.field is not None and problem.status in (413, 422):
        place = {"loc": ["body", theirs.field], "msg": theirs.detail, "type": theirs.code}
        return {"detail": [{**place, "input": theirs.value}]}
    return {"detail": theirs.detail, "error_type": theirs.code}


def _render(problem: Problem, request_id: str) -> Response:
    headers = {"x-fal-error-type": problem.code}
    return json_response(error_body(problem), problem.status, headers=headers)


def _links(http: Request, job: Job) -> dict[str, str]:
    here = str(http.url.replace(path=f"/fal/{job.note['model']}/requests/{job.id}", query=""))
    return {
        "request_id": job.id,
        "response_url": here,
        "status_url": f"{here}/status",
        "cancel_url": f"{here}/cancel",
    }


async def _submit(front: Front, http: Request) -> Job:
    """Put a request onto the queue.

    Raises:
        UnknownName: If there is no such model.
        WrongField: If a webhook is asked for.
    """
    application = http.path_params["model"]
    if "fal_webhook" in http.query_params:
        raise WrongField("fal_webhook is not offered here: poll the status", field="fal_webhook")
    names = {m["name"]: m for m in await front.recent_models()}
    name = application if application in names else application.rpartition("/")[2]
    if name.partition("@")[0] not in names:
        raise UnknownName("model", application[:200], names, field="model")
    request, is_inside = to_request(name, await read_json(http))
    note = note_of(_DOOR, model=application, inside=is_inside, prompt=request.prompt)
    return await submit(front, http, request, note=note)


async def enqueue(front: Front, http: Request) -> Response:
    """Queue a request."""
    job = await _submit(front, http)
    place, _ = await queue_of(front).place(job)
    return json_response({"status": "IN_QUEUE", "queue_position": place, **_links(http, job)})


async def run(front: Front, http: Request) -> Response:
    """Make pictures and wait for them."""
    job = await _submit(front, http)
    return await _result(front, http, await wait(front, http, job.id))


async def status(front: Front, http: Request) -> Response:
    """Show how far a request is."""
    job = await _job(front, http)
    links = _links(http, job)
    if job.status == "queued":
        place, _ = await queue_of(front).place(job)
        return json_response({"status": "IN_QUEUE", "queue_position": place, **links}, 202)
    if job.status == "running":
        step, steps = queue_of(front).progress(job)
        logs = [{"message": f"step {step} of {steps}", "level": "INFO"}] if steps else []
        return json_response({"status": "IN_PROGRESS", "logs": logs, **links}, 202)
    took_s = round((job.finished or 0.0) - (job.started or job.created), 3)
    body: dict[str, Any] = {"status": "COMPLETED", "logs": [], **links}
    body["metrics"] = {"inference_time": took_s}
    if "error" in job.outcome:
        error = job.outcome["error"]
        body |= {"error": error.get("message", ""), "error_type": error.get("type", "")}
    return json_response(body)


async def result(front: Front, http: Request) -> Response:
    """Return what became of a request."""
    return await _result(front, http, await _job(front, http))


async def cancel(front: Front, http: Request) -> Response:
    """Cancel a request at its next step."""
    job = await _job(front, http)
    if job.status not in ("queued", "running"):
        return json_response({"status": "ALREADY_COMPLETED"}, 400)
    await queue_of(front).cancel(job.id)
    return json_response({"status": "CANCELLATION_REQUESTED"}, 202)


async def _job(front: Front, http: Request) -> Job:
    job = await own_job(front, http, http.path_params["id"], _DOOR)
    if not _is_same(str(job.note["model"]), http.path_params["model"]):
        raise UnknownName("job", job.id, (), field="id")
    return job


def _is_same(application: str, named: str) -> bool:
    """Whether two paths name one application: a client leaves out what follows the second part."""
    return application == named or application.startswith(f"{named}/")


async def _result(front: Front, http: Request, job: Job) -> Response:
    """Write the pictures of a job.

    Raises:
        MezzotintError: However the job ended, if not well; or if it has not ended.
    """
    if job.status in ("queued", "running"):
        raise Malformed("the request is still in progress")
    if "error" in job.outcome:
        raise read_error(job.outcome["error"])
    if job.status != "succeeded":
        raise Conflict(f"the request is {job.status}")
    links = _links(http, job)
    images: list[dict[str, Any]] = []
    for image in job.images:
        about = image.about
        kind = CONTENT_TYPES[about["format"]]
        if job.note.get("inside"):
            data = await kept_picture(front, job, image.index)
            url = f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
        else:
            url = f"{links['response_url']}/images/{image.index}.{about['format']}"
        size = {"width": about["width"], "height": about["height"]}
        images.append({"url": url, "content_type": kind, "file_size": image.bytes, **size})
    warnings = [w for image in job.images for w in image.about.get("warnings", ())]
    body = {
        "images": images,
        "timings": {"inference": round((job.finished or 0.0) - (job.started or 0.0), 3)},
        "seed": job.images[0].about["seed"] if job.images else None,
        "has_nsfw_concepts": [False] * len(images),
        "prompt": job.note.get("prompt", ""),
        "warnings": [*job.outcome.get("warnings", ()), *warnings],
    }
    return json_response(body, headers={"x-fal-request-id": job.id})


async def picture(front: Front, http: Request) -> Response:
    """Return one picture of a request."""
    job = await _job(front, http)
    found = re.fullmatch(r"([0-9]{1,6})\.\w+", http.path_params["file"])
    image = next((i for i in job.images if found and i.index == int(found[1])), None)
    if image is None:
        raise NotFound(f"request {job.id} has no such picture")
    try:
        data = await queue_of(front).image(job, image.index)
    except MezzotintError:
        raise NotFound(f"the pictures of request {job.id} are gone") from None
    return Response(data, media_type=CONTENT_TYPES[image.about["format"]])


def _endpoints() -> tuple[Endpoint, ...]:
    body = Body("FalArguments", lambda limits: ANY_OBJECT)
    request = "/fal/{model:path}/requests/{id}"

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(
            method=method, path=path, handler=handler, summary=f"fal: {summary}", **more
        )

    return (
        endpoint("GET", f"{request}/status", status, "how far a request is"),
        endpoint("PUT", f"{request}/cancel", cancel, "cancel a request"),
        endpoint(
            "GET", f"{request}/images/{{file}}", picture, "one picture of a request",
            answers={kind: {} for kind in CONTENT_TYPES.values()},
        ),
        endpoint("GET", request, result, "what became of a request"),
        endpoint("POST", "/fal/{model:path}", enqueue, "queue a request", body=body),
        endpoint("POST", "/fal-run/{model:path}", run, "make pictures and wait", body=body),
    )  # fmt: skip


DIALECT = Dialect(
    name="fal",
    pattern=re.compile(r"^/fal(-run)?(/|$)"),
    endpoints=_endpoints(),
    render=_render,
)
