"""Native jobs: requests left on the durable queue, their events and pictures.

A link to a picture is for whoever has no key: it names job, picture and the second at which it
ends, with an HMAC-SHA256 over them and the picture's digest by the secret that all servers of a
cluster share. Any of them answers it, and none keeps anything of it.
"""

import hashlib
import hmac
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.serve.dialects.native_bodies import FORMATS, REQUEST, b64, problem_body, read_request
from mezzotint.serve.errors import Gone, NotFound, describe
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import kept_picture, owner_of, queue_of, submit
from mezzotint.serve.streaming import EventStream, last_event_id, sse
from mezzotint.serve.webhooks import check_webhook
from mezzotint.serve.wire import CONTENT_TYPES, Endpoint, json_response
from mezzotint.service.descriptions import read_error
from mezzotint.service.jobs.feed import JobEvent
from mezzotint.service.jobs.rows import JobImage
from mezzotint.service.jobs.store import Job

__all__ = ["describe_job", "endpoints", "links_of"]

_LINK_S = 3600
_LINK_BOUNDS_S = (1, 7 * 86400)
_STATUSES = ("queued", "running", "succeeded", "failed", "cancelled", "expired")


async def describe_job(front: Front, job: Job) -> dict[str, Any]:
    """Write a job."""
    jobs = queue_of(front)
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
    """Queue a request; an address in the query's ``webhook`` is told when the job has ended."""
    given = http.query_params.get("webhook")
    webhook = check_webhook(given, front.config, "webhook") if given is not None else None
    job = await submit(front, http, await read_request(http), webhook=webhook)
    body = await describe_job(front, job)
    return json_response(body, 202, headers={"Location": f"/v1/jobs/{job.id}"})


async def get_job(front: Front, http: Request) -> Response:
    """Show a job."""
    job = await queue_of(front).get(http.path_params["id"], client=owner_of(http))
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
    jobs = await queue_of(front).page(
        client=owner_of(http), status=status, limit=limit, after=query.get("after")
    )
    following = jobs[-1].id if len(jobs) == limit else None
    return json_response({"jobs": [await describe_job(front, j) for j in jobs], "next": following})


async def job_events(front: Front, http: Request) -> EventStream:
    """Follow a job; ``Last-Event-ID`` resumes."""
    jobs = queue_of(front)
    after = last_event_id(http)
    job = await jobs.get(http.path_params["id"], client=owner_of(http))

    async def encode() -> AsyncIterator[bytes]:
        async for event in jobs.events(job.id, after):
            yield sse(await _job_event(front, event, job.id), event=event.kind, id_=event.id)

    return front.event_stream(http, encode())


async def _job_event(front: Front, event: JobEvent, id_: str) -> dict[str, Any]:
    if event.kind == "step":
        preview = b64(event.preview) if event.preview is not None else None
        return {**event.data, "preview": preview}
    if event.kind == "image":
        return {**event.data, "url": f"/v1/jobs/{id_}/images/{event.data['index']}"}
    if event.kind == "failed":
        return {"id": id_, "error": problem_body(describe(read_error(event.data["error"])))}
    if event.kind == "finished":
        return await describe_job(front, await queue_of(front).get(id_))
    return dict(event.data)


async def job_image(front: Front, http: Request) -> Response:
    """Return one picture of a job."""
    jobs = queue_of(front)
    job = await jobs.get(http.path_params["id"], client=owner_of(http))
    text = http.path_params["k"]
    index = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else -1
    image = next((i for i in job.images if i.index == index), None)
    if image is None:
        raise NotFound(f"job {job.id} has no picture {text[:20]!r} (status {job.status})")
    return await _picture(front, http, job, image, max_age_s=31_536_000)


async def _picture(
    front: Front, http: Request, job: Job, image: JobImage, *, max_age_s: int
) -> Response:
    """Write one picture, or that the client has it."""
    headers = {
        "ETag": f'"{image.digest}"',
        "Cache-Control": f"private, max-age={max_age_s}, immutable",
    }
    if http.headers.get("if-none-match") == f'"{image.digest}"':
        return Response(status_code=304, headers=headers)
    data = await kept_picture(front, job, image.index)
    return Response(data, headers=headers, media_type=CONTENT_TYPES[image.about["format"]])


def links_of(front: Front, job: Job, *, seconds: int) -> list[dict[str, Any]]:
    """Return an address for each picture of a job that anybody may read for a while."""
    until = int(time.time()) + seconds
    return [{"index": i.index, "url": _link(front, job.id, i, until)} for i in job.images]


def _link(front: Front, id_: str, image: JobImage, until: int) -> str:
    """Return a link; what proves it is in the query, which no log has."""
    signature = _signature(front, id_, str(image.index), until)
    return f"/v1/links/{id_}/{image.index}?until={until}&signature={signature}"


def _signature(front: Front, id_: str, index: str, until: int) -> str:
    named = f"link.{id_}.{index}.{until}"
    return hmac.digest(queue_of(front).signing_key(), named.encode(), hashlib.sha256).hex()


async def job_links(front: Front, http: Request) -> Response:
    """Make links to a job's pictures that need no key, for ``seconds``."""
    text = http.query_params.get("seconds", str(_LINK_S))
    seconds = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else 0
    if not _LINK_BOUNDS_S[0] <= seconds <= _LINK_BOUNDS_S[1]:
        raise InvalidRequest(
            f"seconds must be {_LINK_BOUNDS_S[0]} to {_LINK_BOUNDS_S[1]}, got {text[:40]}",
            field="seconds",
            value=text[:40],
        )
    job = await queue_of(front).get(http.path_params["id"], client=owner_of(http))
    return json_response({"seconds": seconds, "images": links_of(front, job, seconds=seconds)})


async def linked_image(front: Front, http: Request) -> Response:
    """Return the picture that a link is for.

    A link that was never made and one to a job that is gone get the same answer. The signature
    is looked at first: whoever guesses costs no look into the database.
    """
    unknown = NotFound("no picture is at this link; it may have been copied in part")
    until, signature = (http.query_params.get(name, "") for name in ("until", "signature"))
    if not re.fullmatch(r"[0-9]{1,12}", until) or not signature.isascii():
        raise unknown
    id_, index = http.path_params["id"], http.path_params["k"]
    if not hmac.compare_digest(_signature(front, id_, index, int(until)), signature):
        raise unknown
    try:
        job = await queue_of(front).get(id_)
    except UnknownName:
        raise unknown from None
    image = next((i for i in job.images if str(i.index) == index), None)
    if image is None:
        raise unknown
    left_s = int(until) - time.time()
    if left_s <= 0:
        raise Gone("this link has ended; whoever made it can make another one")
    response = await _picture(front, http, job, image, max_age_s=int(left_s))
    response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"  # any page may show it
    return response


async def cancel_job(front: Front, http: Request) -> Response:
    """Cancel a job at its next step."""
    jobs = queue_of(front)
    job = await jobs.get(http.path_params["id"], client=owner_of(http))
    return json_response(await describe_job(front, await jobs.cancel(job.id)))


_JOB = {
    "type": "object",
    "required": ["id", "status", "position", "eta_s", "progress", "images"],
    "properties": {"id": {"type": "string"}, "status": {"enum": list(_STATUSES)}},
}
_LINKS = {
    "type": "object",
    "required": ["seconds", "images"],
    "properties": {
        "seconds": {"type": "integer"},
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "url"],
                "properties": {"index": {"type": "integer"}, "url": {"type": "string"}},
            },
        },
    },
}
_JSON_JOB = {"application/json": _JOB}


def endpoints() -> tuple[Endpoint, ...]:
    """Return the endpoints of the durable queue."""
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
            "POST", "/v1/jobs", create_job, "Queue a request",
            body=REQUEST, answers=_JSON_JOB, status=202,
            parameters=({"name": "webhook", "in": "query", "schema": {"type": "string"}},),
        ),
        endpoint("GET", "/v1/jobs", list_jobs, "List jobs", parameters=query),
        endpoint("GET", "/v1/jobs/{id}", get_job, "Show a job", answers=_JSON_JOB),
        endpoint("DELETE", "/v1/jobs/{id}", cancel_job, "Cancel a job", answers=_JSON_JOB),
        endpoint(
            "GET", "/v1/jobs/{id}/events", job_events, "Follow a job",
            answers={"text/event-stream": {}},
        ),
        endpoint(
            "GET", "/v1/jobs/{id}/images/{k}", job_image, "One picture of a job",
            answers={kind: {} for kind in FORMATS},
        ),
        endpoint(
            "GET", "/v1/jobs/{id}/links", job_links, "Links to a job's pictures, without a key",
            answers={"application/json": _LINKS},
            parameters=(
                {
                    "name": "seconds", "in": "query",
                    "schema": {
                        "type": "integer", "default": _LINK_S,
                        "minimum": _LINK_BOUNDS_S[0], "maximum": _LINK_BOUNDS_S[1],
                    },
                },
            ),
        ),
        endpoint(
            "GET", "/v1/links/{id}/{k}", linked_image, "The picture that a link is for",
            scope=None, answers={kind: {} for kind in FORMATS},
            parameters=tuple(
                {"name": name, "in": "query", "schema": {"type": "string"}, "required": True}
                for name in ("until", "signature")
            ),
        ),
    )  # fmt: skip
