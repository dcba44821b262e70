"""ComfyUI events: what its web socket tells while a graph runs."""

import asyncio
import contextlib
import secrets
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from mezzotint.errors import MezzotintError
from mezzotint.serve.auth import Caller
from mezzotint.serve.dialects.comfyui.lists import features
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import queue_of
from mezzotint.service.jobs.jobs import JobEvent
from mezzotint.service.jobs.store import Job

__all__ = ["follow", "picture_files", "remaining", "serve_socket"]

_WAITING = 256  # messages of one socket that nobody reads; older ones go first
_PREVIEW, _JPEG, _PNG = 1, 1, 2  # ComfyUI's numbers in front of a picture

Message = str | bytes
Sockets = dict[tuple[str, str], set["asyncio.Queue[Message]"]]


def picture_files(job: Job, node: str) -> list[dict[str, str]]:
    """Name the pictures of a job as an output node names its files."""
    inputs = job.note["prompt"][node]["inputs"]
    is_kept = job.note["prompt"][node]["class_type"] == "SaveImage"
    prefix = str(inputs.get("filename_prefix", "ComfyUI"))[:100].replace("/", "_")
    prefix = prefix.replace("\\", "_") if is_kept else "ComfyUI_temp"
    return [
        {
            "filename": f"{prefix}_{job.id}_{image.index + 1:05}_.{image.about['format']}",
            "subfolder": "",
            "type": "output" if is_kept else "temp",
        }
        for image in job.images
    ]


async def remaining(front: Front, client: str) -> int:
    """Count a client's graphs that wait or run."""
    found: set[str] = set()  # one that begins between the two looks is one
    for status in ("queued", "running"):
        jobs = await queue_of(front).page(client=client, status=status, limit=1000)
        found |= {job.id for job in jobs if job.note.get("door") == "comfyui"}
    return len(found)


def _sockets(front: Front) -> Sockets:
    return front.memory.setdefault("comfyui_sockets", {})


def _tell(front: Front, client: str, sid: str | None, message: Message) -> None:
    """Put a message into the sockets of a client's ``client_id``, or into all of the client's."""
    for (owner, name), queues in _sockets(front).items():
        if owner == client and sid in (None, name):
            for queue in queues:
                while queue.full():
                    queue.get_nowait()
                queue.put_nowait(message)


def _write(kind: str, data: Mapping[str, Any]) -> str:
    return orjson.dumps({"type": kind, "data": data}).decode()


async def _status(front: Front, client: str, sid: str | None = None) -> str:
    left = await remaining(front, client)
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": left}}}
    return _write("status", data | ({"sid": sid} if sid is not None else {}))


def follow(front: Front, job: Job, client: str, sid: str | None) -> None:
    """Tell a client's sockets what becomes of a graph, beside the answer.

    Args:
        front: Knows the sockets.
        job: The graph's job.
        client: Name of the caller.
        sid: The ``client_id`` that sent the graph; without one nobody is told but of the
            length of the queue, as in ComfyUI.
    """

    async def run() -> None:
        with contextlib.suppress(MezzotintError):  # the store is away: nothing can be told
            _tell(front, client, None, await _status(front, client))
            async for event in queue_of(front).events(job.id):
                if sid is not None:
                    for message in await _messages(front, job, event):
                        _tell(front, client, sid, message)
            _tell(front, client, None, await _status(front, client))

    tasks: set[asyncio.Task[None]] = front.memory.setdefault("comfyui_tasks", set())
    task = asyncio.get_running_loop().create_task(run())
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def _messages(front: Front, job: Job, event: JobEvent) -> list[Message]:
    """Write one event of a job as ComfyUI tells it."""
    about = {"prompt_id": job.id}
    stamped = {**about, "timestamp": int(time.time() * 1000)}
    sampler = str(job.note["sampler"])

    def executing(node: str | None) -> str:
        return _write("executing", {"node": node, "display_node": node, **about})

    if event.kind == "started":
        cached = _write("execution_cached", {"nodes": [], **stamped})
        return [_write("execution_start", stamped), cached, executing(sampler)]
    if event.kind == "step":
        data = {"value": event.data["step"], "max": event.data["steps"], "node": sampler, **about}
        picture = [_preview(event.preview)] if event.preview else []
        return [_write("progress", data), *picture]
    if event.kind == "failed":
        error = event.data["error"]
        name = job.note["prompt"][sampler]["class_type"]
        what = {"exception_message": error.get("message", "")}
        what |= {"exception_type": error.get("type", ""), "traceback": []}
        return [_write("execution_error", {**stamped, **_node(sampler, name), **what})]
    if event.kind == "cancelled":
        name = job.note["prompt"][sampler]["class_type"]
        return [_write("execution_interrupted", {**stamped, **_node(sampler, name)})]
    if event.kind != "finished":
        return []
    ended = await queue_of(front).get(job.id)
    messages: list[Message] = []
    for node in job.note["outputs"]:
        output = {"images": picture_files(ended, node)}
        data = {"node": node, "display_node": node, "output": output, **about}
        messages += [executing(node), _write("executed", data)]
    return [*messages, _write("execution_success", stamped), executing(None)]


def _node(sampler: str, name: str) -> dict[str, Any]:
    """Say at which node a graph ended before its end."""
    return {"node_id": sampler, "node_type": name, "executed": []}


def _preview(picture: bytes) -> bytes:
    kind = _JPEG if picture[:2] == b"\xff\xd8" else _PNG
    return struct.pack(">II", _PREVIEW, kind) + picture


async def serve_socket(
    front: Front, caller: Caller, scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve one web socket until the client leaves."""
    given = parse_qs(scope["query_string"].decode("latin-1")).get("clientId", [""])[0]
    sid = given[:128] or secrets.token_hex(16)
    mine = (caller.name, sid)
    queue: asyncio.Queue[Message] = asyncio.Queue(_WAITING)
    await send({"type": "websocket.accept"})
    _sockets(front).setdefault(mine, set()).add(queue)

    def hear(text: str) -> None:
        if "feature_flags" in text[:200]:
            flags = _write("feature_flags", features(front.config.limits.body_bytes))
            if not queue.full():
                queue.put_nowait(flags)

    gone = asyncio.ensure_future(_until_gone(receive, hear))
    following: asyncio.Future[Message] | None = None
    try:
        queue.put_nowait(await _status(front, caller.name, sid))
        while True:
            following = asyncio.ensure_future(queue.get())
            done, _ = await asyncio.wait({gone, following}, return_when=asyncio.FIRST_COMPLETED)
            if gone in done:
                return
            message = following.result()
            key = "bytes" if isinstance(message, bytes) else "text"
            await send({"type": "websocket.send", key: message})
    finally:
        gone.cancel()
        if following is not None:
            following.cancel()
        _sockets(front)[mine].discard(queue)
        if not _sockets(front)[mine]:
            del _sockets(front)[mine]


async def _until_gone(receive: Receive, hear: Callable[[str], None]) -> None:
    """Return when the client has left; ``hear`` is told what it says until then."""
    while (message := await receive())["type"] != "websocket.disconnect":
        hear(message.get("text") or "")
