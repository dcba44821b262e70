"""A1111 tasks: what a caller has under way, how far it is, and how it is ended."""

import base64
import time
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.serve.front import Front
from mezzotint.serve.wire import json_response, visit
from mezzotint.types import ImageOutput

__all__ = ["Task", "interrupt", "progress", "skip", "tasks_of"]


@dataclass(slots=True)
class Task:
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


def tasks_of(front: Front) -> dict[str, Task]:
    """Return everybody's tasks by id, oldest first."""
    return front.memory.setdefault("a1111_tasks", {})


def _mine(front: Front, http: Request) -> list[Task]:
    """Return the caller's tasks, oldest first."""
    name = visit(http).caller.name
    return [task for task in tasks_of(front).values() if task.owner == name]


async def progress(front: Front, http: Request) -> Response:
    """Show how far the caller's oldest request is."""
    tasks = _mine(front, http)
    task = tasks[0] if tasks else None
    wants_image = http.query_params.get("skip_current_image", "false").lower() != "true"
    preview = task.preview if task is not None and wants_image else None
    done = task.progress if task is not None else 0.0
    spent = time.time() - task.began if task is not None else 0.0
    state = {
        "skipped": task.skipped if task else False,
        "interrupted": task.interrupted if task else False,
        "stopping_generation": False,
        "job": task.id if task else "",
        "job_count": sum(j.images - j.done for j in tasks),
        "job_timestamp": time.strftime("%Y%m%d%H%M%S", time.localtime(task.began)) if task else "0",
        "job_no": task.done if task else 0,
        "sampling_step": task.step if task else 0,
        "sampling_steps": task.steps if task else 0,
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
            "current_task": task.id if task else None,
        }
    )


async def interrupt(front: Front, http: Request) -> Response:
    """End the caller's requests; what is finished is answered."""
    for task in _mine(front, http):
        task.interrupted = True
        await front.service.cancel(task.running)
    return json_response({})


async def skip(front: Front, http: Request) -> Response:
    """End the round the caller's oldest request is in, and go on with the next."""
    for task in _mine(front, http)[:1]:
        task.skipped = True
        await front.service.cancel(task.running)
    return json_response(None)
