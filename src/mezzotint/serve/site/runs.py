"""Runs: training runs under one folder, as the gallery of the web page shows them.

Files alone are read: ``samples/grid.png``, which a run refreshes in place, its grids
of the past, and the end of ``metrics.jsonl``. A run is named by its folder; nothing
outside the configured folder is reachable, links included.
"""

import asyncio
import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.serve.errors import NotFound
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Endpoint, json_response

__all__ = ["ENDPOINTS"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_GRID = re.compile(r"grid-(\d{8})\.png", re.ASCII)
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_RUNS = 200
_MAX_HISTORY = 200
_MAX_GRID_BYTES = 64 << 20
_TAIL_BYTES = 64 << 10
_SILENT_S = 180.0


def _root(front: Front) -> Path:
    """Return the folder of runs.

    Raises:
        NotFound: If the server shows none.
    """
    if not front.config.runs:
        raise NotFound("this server shows no training runs: serve.runs is not set")
    return Path(front.config.runs).expanduser().absolute()


def _folder(root: Path, name: str) -> Path:
    """Return a run's folder.

    Raises:
        NotFound: If there is no run of that name.
    """
    path = root / name
    if not _NAME.fullmatch(name) or path.is_symlink() or not path.is_dir():
        raise NotFound(f"there is no training run {name[:100]!r}")
    return path


def _read(path: Path, most: int, *, tail: bool = False) -> tuple[bytes, float] | None:
    """Read a regular file that is no link; its bytes and when it was written, or None."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    with os.fdopen(fd, "rb") as stream:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or (about.st_size > most and not tail):
            return None
        if tail and about.st_size > most:
            stream.seek(about.st_size - most)
        return stream.read(most), about.st_mtime


def _describe(path: Path) -> dict[str, Any] | None:
    """Return what is known of a run, or None if the folder is none."""
    metrics = _read(path / "metrics.jsonl", _TAIL_BYTES, tail=True)
    samples = path / "samples"
    inside = () if samples.is_symlink() or not samples.is_dir() else os.listdir(samples)
    has_grid = "grid.png" in inside
    if metrics is None and not has_grid:
        return None
    events = _events(metrics[0]) if metrics is not None else []
    step = next((e for e in reversed(events) if e.get("event") == "step"), {})
    last = events[-1] if events else {}
    if metrics is not None:
        written = metrics[1]
    else:
        try:
            written = (samples / "grid.png").lstat().st_mtime
        except OSError:  # it went away meanwhile
            return None
    is_over = last.get("event") == "finished"
    silent = time.time() - written > _SILENT_S
    shown = {n: step[n] for n in ("loss", "eta_s", "steps_per_s", "steps") if n in step}
    history = sorted(int(m[1]) for m in map(_GRID.fullmatch, inside) if m is not None)
    return {
        "name": path.name,
        "status": "finished" if is_over else "silent" if silent else "running",
        "step": last.get("step", 0),
        **{n: v for n, v in shown.items() if isinstance(v, int | float)},
        "written": written,
        "grid": f"/v1/runs/{path.name}/grid" if has_grid else None,
        "history": history[-_MAX_HISTORY:],
    }


def _events(data: bytes) -> list[Mapping[str, Any]]:
    """Read the whole lines of the end of a metrics file; what is no event is passed over."""
    events: list[Mapping[str, Any]] = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("step", 0), int):
            events.append(event)
    return events


def _list(root: Path) -> list[dict[str, Any]]:
    """Describe every run, the one written last first."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for name in names:
        path = root / name
        if _NAME.fullmatch(name) and path.is_dir() and not path.is_symlink():
            about = _describe(path)
            if about is not None:
                found.append(about)
    return sorted(found, key=lambda run: -run["written"])[:_MAX_RUNS]


async def list_runs(front: Front, http: Request) -> Response:
    """List training runs, the one written last first."""
    if not front.config.runs:
        return json_response({"runs": []})
    return json_response({"runs": await asyncio.to_thread(_list, _root(front))})


async def grid(front: Front, http: Request) -> Response:
    """Answer with a run's newest grid, or the one of a step; 304 if it is known."""
    folder = _folder(_root(front), http.path_params["name"])
    text = http.query_params.get("step", "")
    if text and not re.fullmatch(r"[0-9]{1,8}", text):
        raise InvalidRequest(f"step must be a whole number, got {text[:40]!r}", field="step")
    samples = folder / "samples"
    name = f"grid-{int(text):08d}.png" if text else "grid.png"
    found = None
    if not samples.is_symlink():
        found = await asyncio.to_thread(_read, samples / name, _MAX_GRID_BYTES)
    if found is None or not found[0].startswith(_PNG):
        what = f"grid of step {text}" if text else "grid yet"
        raise NotFound(f"run {folder.name} has no {what}")
    mark = f'"{hashlib.sha256(found[0]).hexdigest()[:32]}"'
    headers = {"ETag": mark, "Cache-Control": "private, no-cache"}
    if http.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    return Response(found[0], headers=headers, media_type="image/png")


_RUNS = {
    "type": "object",
    "required": ["runs"],
    "properties": {
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "status", "step", "written", "grid", "history"],
                "properties": {
                    "name": {"type": "string"},
                    "status": {"enum": ["running", "silent", "finished"]},
                    "step": {"type": "integer"},
                    "written": {"type": "number"},
                    "grid": {"type": ["string", "null"]},
                    "history": {"type": "array", "items": {"type": "integer"}},
                },
            },
        }
    },
}

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="GET",
        path="/v1/runs",
        handler=list_runs,
        summary="List training runs",
        scope="manage",
        answers={"application/json": _RUNS},
    ),
    Endpoint(
        method="GET",
        path="/v1/runs/{name}/grid",
        handler=grid,
        summary="The newest samples of a training run",
        scope="manage",
        answers={"image/png": {}},
        parameters=({"name": "step", "in": "query", "schema": {"type": "integer", "minimum": 0}},),
    ),
)
