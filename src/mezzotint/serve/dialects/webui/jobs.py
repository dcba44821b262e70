"""A1111 jobs: what a caller has under way, how far it is, and how it is ended."""

import base64
import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.serve.front import Front
from mezzotint.serve.wire import json_response, visit
from mezzotint.types import ImageOutput

__all__ = ["Job", "interrupt", "jobs_of", "progress", "skip"]


@dataclass(slots=True)
class Job:
    """One txt2img or img2img in progress."""

    owner: str
    id: str
    images: int
    began: float = field(default_factory=time.time)
    done: int = 0
    step: int = 0
    steps: int = 0
    preview: bytes | None = None
    interrupted: bool = False
    skipped: bool = False
    running: str = ""
    finished: list[ImageOutput] = field(default_factory=list[ImageOutput])
    prompts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    @property
    def progress(self) -> float:
        """How much is done, 0 to 1."""
        part = self.step / self.steps if self.steps else 0.0
        return min(1.0, (self.done + part) / max(1, self.images))


def jobs_of(front: Front) -> dict[str, Job]:
    """Return everybody's jobs by id, oldest first."""
    return front.memory.setdefault("a1111_jobs", {})


def _mine(front: Front, http: Request) -> list[Job]:
    """Return the caller's jobs, oldest first."""
    name = visit(http).caller.name
    return [job for job in jobs_of(front).values() if job.owner == name]


async def progress(front: Front, http: Request) -> Response:
    """Show how far the caller's oldest request is."""
    jobs = _mine(front, http)
    job = jobs[0] if jobs else None
    wants_image = http.query_params.get("skip_current_image", "false").lower() != "true"
    preview = job.preview if job is not None and wants_image else None
    done = job.progress if job is not None else 0.0
    spent = time.time() - job.began if job is not None else 0.0
    state = {
        "skipped": job.skipped if job else False,
        "interrupted": job.interrupted if job else False,
        "stopping_generation": False,
        "job": job.id if job else "",
        "job_count": sum(j.images - j.done for j in jobs),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(job.began)) if job else "0",
        "job_no": job.done if job else 0,
        "sampling_step": job.step if job else 0,
        "sampling_steps": job.steps if job else 0,
    }
    return json_response(
        {
            "progress": round(done, 4),
            "eta_relative": round(spent / done - spent, 3) if done else 0.0,
            "state": state,
            "current_image": base64.b64encode(preview).decode("ascii")
            if preview is not None
            else None,
            "textinfo": None,
            "current_task": job.id if job else None,
        }
    )


async def interrupt(front: Front, http: Request) -> Response:
    """End the caller's requests; what is finished is answered."""
    for job in _mine(front, http):
        job.interrupted = True
        await front.service.cancel(job.running)
    return json_response({})


async def skip(front: Front, http: Request) -> Response:
    """End the round the caller's oldest request is in, and go on with the next."""
    for job in _mine(front, http)[:1]:
        job.skipped = True
        await front.service.cancel(job.running)
    return json_response(None)
