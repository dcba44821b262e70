"""Gallery: the durable jobs as the web page shows them.

A job in the list says what was asked, without the pictures that came along; the whole
request is a call of its own. Searching, deleting and the list itself see the caller's
own jobs, or everybody's where the caller manages the server.
"""

import json
import re
from typing import Any, Literal, get_args

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.plain import is_list, is_mapping
from mezzotint.serve.errors import Conflict
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import owner_of, queue_of
from mezzotint.serve.wire import Endpoint, json_response
from mezzotint.service.descriptions import read_error
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.jobs.store import Job

__all__ = ["ENDPOINTS"]

Which = Literal["open", "ended", "all"]
_PICTURES = frozenset({"image", "images", "mask"})
_SHOWN = "(a picture)"
_MOST = 200


def _without_pictures(value: Any, name: str = "") -> Any:
    """Return plain data with a word in the place of every picture."""
    if is_mapping(value):
        return {key: _without_pictures(inner, key) for key, inner in value.items()}
    if is_list(value):
        return [_without_pictures(inner, name) for inner in value]
    return _SHOWN if name in _PICTURES and isinstance(value, str) else value


async def _describe(jobs: Jobs, job: Job) -> dict[str, Any]:
    """Write a job as the gallery shows it."""
    position, eta_s = await jobs.place(job)
    step, steps = jobs.progress(job)
    body: dict[str, Any] = {
        "id": job.id,
        "status": job.status,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "position": position,
        "eta_s": round(eta_s, 3),
        "progress": {"step": step, "steps": steps},
        "request": _without_pictures(json.loads(job.request)),
        "images": [
            {**image.about, "url": f"/v1/jobs/{job.id}/images/{image.index}"}
            for image in job.images
        ],
        "cache": job.outcome.get("cache", "miss"),
        "warnings": job.outcome.get("warnings", []),
    }
    if "error" in job.outcome:
        body["error"] = str(read_error(job.outcome["error"]))
    return body


async def browse(front: Front, http: Request) -> Response:
    """List jobs with what was asked, newest first, those with every word of ``q``."""
    query, jobs = http.query_params, queue_of(front)
    which = query.get("which", "all")
    if which not in get_args(Which):
        raise UnknownName("which", which[:80], get_args(Which), field="which")
    text = query.get("limit", "60")
    limit = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    if not 1 <= limit <= _MOST:
        raise InvalidRequest(
            f"limit must be 1 to {_MOST}, got {text[:40]}", field="limit", value=text[:40]
        )
    found = await jobs.browse(
        client=owner_of(http),
        which=which,
        words=query.get("q", "")[:500].split()[:20],
        limit=limit,
        after=query.get("after"),
    )
    body = {
        "jobs": [await _describe(jobs, job) for job in found],
        "next": found[-1].id if len(found) == limit else None,
    }
    return json_response(body)


async def whole_request(front: Front, http: Request) -> Response:
    """Answer with the request of a job, its pictures included, seed resolved."""
    job = await queue_of(front).get(http.path_params["id"], client=owner_of(http))
    return json_response(json.loads(job.request))


async def forget(front: Front, http: Request) -> Response:
    """Delete a job that has ended, with its pictures.

    Raises:
        Conflict: If it has not ended.
    """
    jobs = queue_of(front)
    job = await jobs.get(http.path_params["id"], client=owner_of(http))
    if not await jobs.forget(job.id):
        raise Conflict(f"job {job.id} is {job.status}; cancel it first", field="id")
    return json_response({"id": job.id, "status": "deleted"})


_JOB = {
    "type": "object",
    "required": [
        "id", "status", "created", "started", "finished", "position", "eta_s", "progress",
        "request", "images", "cache", "warnings",
    ],
    "properties": {
        "id": {"type": "string"},
        "status": {"type": "string"},
        "created": {"type": "number"},
        "started": {"type": ["number", "null"]},
        "finished": {"type": ["number", "null"]},
        "position": {"type": "integer"},
        "eta_s": {"type": "number"},
        "progress": {"type": "object"},
        "request": {"type": "object"},
        "images": {"type": "array", "items": {"type": "object"}},
        "cache": {"enum": ["hit", "miss"]},
        "warnings": {"type": "array", "items": {"type": "string"}},
        "error": {"type": "string"},
    },
}  # fmt: skip
_LIST = {
    "type": "object",
    "required": ["jobs", "next"],
    "properties": {
        "jobs": {"type": "array", "items": _JOB},
        "next": {"type": ["string", "null"]},
    },
}
_DELETED = {"type": "object", "required": ["id", "status"]}

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="GET",
        path="/v1/gallery",
        handler=browse,
        summary="List jobs with what was asked",
        answers={"application/json": _LIST},
        parameters=(
            {"name": "which", "in": "query", "schema": {"enum": list(get_args(Which))}},
            {"name": "q", "in": "query", "schema": {"type": "string"}},
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": _MOST},
            },
            {"name": "after", "in": "query", "schema": {"type": "string"}},
        ),
    ),
    Endpoint(
        method="DELETE",
        path="/v1/gallery/{id}",
        handler=forget,
        summary="Delete a job that has ended, with its pictures",
        answers={"application/json": _DELETED},
    ),
    Endpoint(
        method="GET",
        path="/v1/jobs/{id}/request",
        handler=whole_request,
        summary="The request of a job, pictures included",
        answers={"application/json": {"type": "object"}},
    ),
)
"""What the web page's gallery calls."""
