"""Runs: training runs under one folder, as the web page shows them.

Files alone are read: ``samples/grid.png``, which a run refreshes in place, its grids
of the past, ``metrics.jsonl``, what the data was, and what the run said last. A run is
named by its folder; nothing outside the configured folder is reachable, links included.
"""

import asyncio
import contextlib
import hashlib
import json
import math
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
from mezzotint.plain import is_dict
from mezzotint.serve.errors import NotFound
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Endpoint, json_response
from mezzotint.service.training import CONFIG, LOG, TrainingRuns

__all__ = ["ENDPOINTS", "RUN_NAME", "base_of", "describe_run", "run_folder", "runs_root", "uses_of"]

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_GRID = re.compile(r"grid-(\d{8})\.png", re.ASCII)
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_RUNS = 200
_MAX_HISTORY = 200
_MAX_GRID_BYTES = 64 << 20
_TAIL_BYTES = 64 << 10
_SILENT_S = 180.0
_MAX_METRICS_BYTES = 32 << 20
_MAX_TEXT_BYTES = 1 << 20
_LOG_LINES = 30
_MOST_POINTS = 400  # of a curve: more than it has pixels is drawn for nobody
_LORA = "pytorch_lora_weights.safetensors"  # what a run of ``kind = "lora"`` leaves
_MODEL = ("model_index.json", "network")  # what it leaves beside, merged into its base
_TOLD = "mezzotint: "  # how the command line begins what went wrong


def runs_root(front: Front) -> Path:
    """Return the folder of runs.

    Raises:
        NotFound: If the server shows none.
    """
    if not front.config.runs:
        raise NotFound("this server shows no training runs: serve.runs is not set")
    return Path(front.config.runs).expanduser().absolute()


def run_folder(root: Path, name: str) -> Path:
    """Return a run's folder.

    Raises:
        NotFound: If there is no run of that name.
    """
    path = root / name
    if not RUN_NAME.fullmatch(name) or path.is_symlink() or not path.is_dir():
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


def describe_run(path: Path, runs: TrainingRuns | None) -> dict[str, Any]:
    """Return what is known of a run.

    Args:
        path: Its folder.
        runs: Who starts runs on this server, or None.
    """
    metrics = _read(path / "metrics.jsonl", _TAIL_BYTES, tail=True)
    samples = path / "samples"
    inside = () if samples.is_symlink() or not samples.is_dir() else os.listdir(samples)
    has_grid = "grid.png" in inside
    events = _events(metrics[0]) if metrics is not None else []
    steps = [e for e in events if e.get("event") == "step"]
    step: Mapping[str, Any] = steps[-1] if steps else {}
    last: Mapping[str, Any] = events[-1] if events else {}
    config = _read(path / CONFIG, _MAX_TEXT_BYTES)
    written = metrics[1] if metrics else config[1] if config else path.lstat().st_mtime
    shown = {n: step[n] for n in ("loss", "eta_s", "steps_per_s", "steps") if n in step}
    history = sorted(int(m[1]) for m in map(_GRID.fullmatch, inside) if m is not None)
    fault = _fault(path) if config is not None else ""
    is_silent = time.time() - written > _SILENT_S
    if runs is not None and runs.is_running(path.name):
        status = "running"
    elif last.get("event") == "finished":
        status = "finished"
    elif config is not None and runs is not None:
        status = "failed" if fault else "stopped"
    else:
        status = "silent" if is_silent else "running"
    return {
        "name": path.name,
        "status": status,
        "step": last.get("step", 0),
        **{n: v for n, v in shown.items() if isinstance(v, int | float)},
        "written": written,
        "grid": f"/v1/runs/{path.name}/grid" if has_grid else None,
        "history": history[-_MAX_HISTORY:],
        "can_resume": runs is not None and config is not None,
        "uses": uses_of(path) if status == "finished" else [],
        **({"error": fault} if status == "failed" else {}),
    }


def uses_of(path: Path) -> list[str]:
    """Return what a run that is over can be: ``"lora"``, ``"model"``; the better one first."""
    lora = path / _LORA
    if lora.is_symlink() or not lora.is_file():
        return ["model"]
    return ["lora", "model"] if any((path / name).exists() for name in _MODEL) else ["lora"]


def base_of(path: Path) -> str:
    """Return the model that a run changes as its configuration names it, "" if none does."""
    found = _read(path / "train_config.json", _MAX_TEXT_BYTES)
    with contextlib.suppress(ValueError, RecursionError):
        asked = json.loads(found[0]) if found is not None else None
        if is_dict(asked) and isinstance(base := asked.get("base"), str):
            return base
    return ""


def _is_run(path: Path) -> bool:
    """Whether a folder holds a run: its events, its samples, or what it was asked for with."""
    marks = ("metrics.jsonl", "samples/grid.png", CONFIG)
    return any((path / mark).is_file() for mark in marks)


def _fault(path: Path) -> str:
    """Return what a run said of its end, "" if it said nothing or was interrupted."""
    lines = _log_of(path)
    told = next((x for x in reversed(lines) if x.startswith(_TOLD)), "").removeprefix(_TOLD)
    return "" if told == "interrupted" else told


def _log_of(path: Path) -> list[str]:
    """Return the last lines that a run wrote to its log."""
    found = _read(path / LOG, _TAIL_BYTES, tail=True)
    text = found[0].decode("utf-8", "replace") if found is not None else ""
    return text.splitlines()[-_LOG_LINES:]


def _events(data: bytes) -> list[Mapping[str, Any]]:
    """Read the whole lines of the end of a metrics file; what is no event is passed over."""
    events: list[Mapping[str, Any]] = []
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_dict(event) and isinstance(event.get("step", 0), int):
            events.append(event)
    return events


def _list(root: Path, runs: TrainingRuns | None) -> list[dict[str, Any]]:
    """Describe every run, the one written last first."""
    try:
        names = sorted(os.listdir(root))
    except OSError:
        return []
    found: list[dict[str, Any]] = []
    for name in names:
        path = root / name
        if RUN_NAME.fullmatch(name) and path.is_dir() and not path.is_symlink() and _is_run(path):
            with contextlib.suppress(FileNotFoundError):  # it went away meanwhile
                found.append(describe_run(path, runs))
    return sorted(found, key=lambda run: -run["written"])[:_MAX_RUNS]


async def list_runs(front: Front, http: Request) -> Response:
    """List training runs, the one written last first, and say whether one can be started."""
    starter = _starter(front)
    found: list[dict[str, Any]] = []
    if front.config.runs:
        found = await asyncio.to_thread(_list, runs_root(front), starter)
    return json_response({"runs": found, "can_start": starter is not None})


async def show_run(front: Front, http: Request) -> Response:
    """Answer with all of a run: its curves, its data, its configuration, its last words."""
    folder = run_folder(runs_root(front), http.path_params["name"])
    return json_response(await asyncio.to_thread(_show, folder, _starter(front)))


def _starter(front: Front) -> TrainingRuns | None:
    found = front.memory.get("training")
    return found if isinstance(found, TrainingRuns) else None


def _show(path: Path, runs: TrainingRuns | None) -> dict[str, Any]:
    """Read all that a run keeps for people.

    Raises:
        NotFound: If the folder is no run.
    """
    if not _is_run(path):
        raise NotFound(f"there is no training run {path.name!r}")
    metrics = _read(path / "metrics.jsonl", _MAX_METRICS_BYTES, tail=True)
    events = _events(metrics[0]) if metrics is not None else []
    config = _read(path / CONFIG, _MAX_TEXT_BYTES)
    report = _read(path / "data_report.json", _MAX_TEXT_BYTES)
    data: Any = None
    if report is not None:
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(report[0])
    sheet = path / "samples" / "data.png"
    return {
        **describe_run(path, runs),
        "curves": {name: _curve(events, event) for name, event in _CURVES.items()},
        "config": config[0].decode("utf-8", "replace") if config is not None else "",
        "data": data if isinstance(data, dict) else None,
        "data_sheet": f"/v1/runs/{path.name}/data" if sheet.is_file() else None,
        "log": _log_of(path),
    }


_CURVES = {"loss": "step", "held_out": "held_out"}
"""Name of a curve -> the events that its points are."""


def _curve(events: list[Mapping[str, Any]], event: str) -> list[tuple[int, float]]:
    """Return the losses of some events by step, thinned evenly; the last one stays."""
    points = [
        (int(e["step"]), float(e["loss"]))
        for e in events
        if e.get("event") == event and "step" in e and isinstance(e.get("loss"), int | float)
    ]
    points = [(at, loss) for at, loss in points if math.isfinite(loss)]
    every = math.ceil(len(points) / _MOST_POINTS) or 1
    return points[::-1][::every][::-1]


async def data_sheet(front: Front, http: Request) -> Response:
    """Answer with some of the pictures that a run learns from."""
    folder = run_folder(runs_root(front), http.path_params["name"])
    return await _picture(http, folder, "data.png", "picture of its data")


async def grid(front: Front, http: Request) -> Response:
    """Answer with a run's newest grid, or the one of a step; 304 if it is known."""
    folder = run_folder(runs_root(front), http.path_params["name"])
    text = http.query_params.get("step", "")
    if text and not re.fullmatch(r"[0-9]{1,8}", text):
        raise InvalidRequest(f"step must be a whole number, got {text[:40]!r}", field="step")
    name = f"grid-{int(text):08d}.png" if text else "grid.png"
    return await _picture(http, folder, name, f"grid of step {text}" if text else "grid yet")


async def _picture(http: Request, folder: Path, name: str, what: str) -> Response:
    """Answer with a picture among a run's samples; 304 if it is known.

    Raises:
        NotFound: If there is none of that name.
    """
    samples = folder / "samples"
    found = None
    if not samples.is_symlink():
        found = await asyncio.to_thread(_read, samples / name, _MAX_GRID_BYTES)
    if found is None or not found[0].startswith(_PNG):
        raise NotFound(f"run {folder.name} has no {what}")
    mark = f'"{hashlib.sha256(found[0]).hexdigest()[:32]}"'
    headers = {"ETag": mark, "Cache-Control": "private, no-cache"}
    if http.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    return Response(found[0], headers=headers, media_type="image/png")


_RUNS = {
    "type": "object",
    "required": ["runs", "can_start"],
    "properties": {
        "can_start": {"type": "boolean"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "name",
                    "status",
                    "step",
                    "written",
                    "grid",
                    "history",
                    "can_resume",
                    "uses",
                ],
                "properties": {
                    "name": {"type": "string"},
                    "status": {"enum": ["running", "silent", "stopped", "failed", "finished"]},
                    "step": {"type": "integer"},
                    "written": {"type": "number"},
                    "grid": {"type": ["string", "null"]},
                    "history": {"type": "array", "items": {"type": "integer"}},
                    "can_resume": {"type": "boolean"},
                    "uses": {"type": "array", "items": {"enum": ["lora", "model"]}},
                    "error": {"type": "string"},
                },
            },
        },
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
        path="/v1/runs/{name}",
        handler=show_run,
        summary="All of a training run",
        scope="manage",
        answers={"application/json": {"type": "object"}},
    ),
    Endpoint(
        method="GET",
        path="/v1/runs/{name}/data",
        handler=data_sheet,
        summary="Some of the pictures that a training run learns from",
        scope="manage",
        answers={"image/png": {}},
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
