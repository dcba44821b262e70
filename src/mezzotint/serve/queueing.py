"""Queueing: how any door leaves a request on the durable queue, and whose jobs it shows."""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from mezzotint.errors import UnknownName
from mezzotint.request import GenerationRequest
from mezzotint.serve.errors import Conflict, Gone, Malformed, NotFound
from mezzotint.serve.front import Front, use_cache
from mezzotint.serve.wire import visit
from mezzotint.service.base import AdapterKeeper
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.jobs.refusals import IdempotencyConflict
from mezzotint.service.jobs.results import PictureGone
from mezzotint.service.jobs.runner import JobCheck
from mezzotint.service.jobs.store import Job

__all__ = [
    "kept_picture",
    "may_run",
    "own_job",
    "own_jobs",
    "owner_of",
    "queue_of",
    "submit",
    "wait",
]

_PAGE = 100
_MANAGES = "manages"  # in the note of a job that a manager of the server sent


def queue_of(front: Front) -> Jobs:
    """Return the durable queue.

    Raises:
        NotFound: If this server keeps none.
    """
    if front.jobs is None:
        raise NotFound("this server keeps no jobs")
    return front.jobs


async def kept_picture(front: Front, job: Job, index: int) -> bytes:
    """Return one picture of a job.

    Raises:
        Gone: If its file is missing or damaged.
    """
    try:
        return await queue_of(front).image(job, index)
    except PictureGone as error:
        raise Gone(str(error)) from None


def owner_of(http: Request) -> str | None:
    """Return whose jobs the caller may see: its own, or everybody's for a manager."""
    caller = visit(http).caller
    return None if "manage" in caller.scopes else caller.name


def may_run(adapters: AdapterKeeper) -> JobCheck:
    """Make what is asked before a job begins: whether its LoRAs are still there for its client.

    A name may have become another client's while the job waited.
    """

    def check(request: GenerationRequest, job: Job) -> None:
        adapters.check(request, job.client, sees_all=bool(job.note.get(_MANAGES)))

    return check


async def submit(
    front: Front,
    http: Request,
    request: GenerationRequest,
    *,
    note: Mapping[str, Any] | None = None,
    webhook: str | None = None,
) -> Job:
    """Put a request onto the queue.

    Args:
        front: What stands between the doors and the service.
        http: Who asks; ``Idempotency-Key`` and ``Cache-Control`` are honoured.
        request: What to make.
        note: Plain data that the door keeps with the job.
        webhook: Address to be told when the job has ended; it may be called.

    Raises:
        Conflict: If the idempotency key came with another request before.
        MezzotintError: If the request is refused, or cannot be taken now.
    """
    caller = visit(http).caller
    front.admit(request, caller)
    visit(http).model = request.model
    # refused now rather than when its turn comes
    planned = await front.service.plan(request, client=caller.name)
    cost: Mapping[str, Any] = planned.get("cost") or {}
    queue_of(front).expect(float(cost.get("seconds") or 0.0))
    if caller.manages and front.adapters is not None:  # others' LoRAs are there for its jobs too
        note = {**(note or {}), _MANAGES: True}
    key = http.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= 255:
        raise Malformed("Idempotency-Key must have 1 to 255 characters")
    try:
        return await queue_of(front).submit(
            request,
            client=caller.name,
            idempotency_key=key,
            use_cache=use_cache(http),
            note=note,
            webhook=webhook,
        )
    except IdempotencyConflict as error:
        raise Conflict(str(error), field="Idempotency-Key") from None


async def own_job(front: Front, http: Request, id_: str, door: str) -> Job:
    """Return a job that the caller left at a door.

    Raises:
        UnknownName: If there is none: not of this caller, or not at this door.
    """
    job = await queue_of(front).get(id_, client=visit(http).caller.name)
    if job.note.get("door") != door:
        raise UnknownName("job", id_[:80], (), field="id")
    return job


async def own_jobs(
    front: Front, http: Request, door: str, *, status: str | None = None, after: str | None = None
) -> tuple[list[Job], str | None]:
    """Return a page of the jobs that the caller left at a door, newest first.

    Returns:
        The jobs, and the id to go on after, None at the end.
    """
    found = await queue_of(front).page(
        client=visit(http).caller.name, status=status, limit=_PAGE, after=after
    )
    following = found[-1].id if len(found) == _PAGE else None
    return [job for job in found if job.note.get("door") == door], following


async def wait(front: Front, http: Request, id_: str) -> Job:
    """Wait for a job as one of the generations that the caller may have at once."""
    caller = visit(http).caller
    async with front.shared.generation(caller):
        return await front.watched(http, queue_of(front).wait(id_))
