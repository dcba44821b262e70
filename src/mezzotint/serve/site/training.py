"""Training at the door: runs are started, stopped, resumed and used, and given pictures.

What a run may read is up to whoever starts it, so all of this is off unless the operator
has set ``serve.training``.
"""

import asyncio
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidField, InvalidRequest, NotReady
from mezzotint.serve.errors import Conflict, MethodNotAllowed
from mezzotint.serve.front import Front
from mezzotint.serve.site.adapters import changeable_store
from mezzotint.serve.site.runs import (
    RUN_NAME,
    base_of,
    describe_run,
    run_folder,
    runs_root,
    uses_of,
)
from mezzotint.serve.wire import Body, Endpoint, json_response, read_json
from mezzotint.service.training import MOST_TEXT, RunConflict, TrainingRuns

__all__ = ["DATASETS", "ENDPOINTS", "do", "trainings"]

DATASETS = "datasets"
"""The folder of data sets, beside the runs."""


def trainings(front: Front) -> TrainingRuns:
    """Return who starts runs.

    Raises:
        MethodNotAllowed: If runs cannot be started on this server.
    """
    found = front.memory.get("training")
    if not isinstance(found, TrainingRuns):
        raise MethodNotAllowed(
            "training runs cannot be started on this server: the operator has not set "
            "serve.training (mezzotint serve --training)"
        )
    return found


async def start_run(front: Front, http: Request) -> Response:
    """Start a run with a name and its configuration as TOML.

    Raises:
        MethodNotAllowed: If runs cannot be started on this server.
        NotReady: If no process can be started.
        Conflict: If the run exists with a checkpoint or is under way, another run is under
            way, or something else has that name.
    """
    front.check_open()
    runs = trainings(front)
    body = await read_json(http)
    name, text = body.get("name"), body.get("config")
    if not isinstance(name, str) or not RUN_NAME.fullmatch(name) or name == DATASETS:
        raise InvalidField(
            "name must be letters, digits, dots and dashes, at most 100, and not "
            f"{DATASETS!r}, got {str(name)[:120]!r}",
            field="name",
        )
    if not isinstance(text, str) or not text.strip() or len(text) > MOST_TEXT:
        raise InvalidField(
            f"config must be the configuration of a run as TOML, at most {MOST_TEXT} letters",
            field="config",
        )
    beside = _flag(body, "beside")
    await do(lambda: runs.create(name, text, beside=beside))
    folder = runs.folder / name
    return json_response(await asyncio.to_thread(describe_run, folder, runs), 201)


async def resume_run(front: Front, http: Request) -> Response:
    """Go on with a run from its newest checkpoint.

    Raises:
        MethodNotAllowed: If runs cannot be started on this server.
        NotReady: If no process can be started.
        Conflict: If it is under way, or another run is.
    """
    front.check_open()
    runs = trainings(front)
    folder = run_folder(runs.folder, http.path_params["name"])
    beside = _flag(await read_json(http, optional=True), "beside")
    await do(lambda: runs.resume(folder.name, beside=beside))
    return json_response(await asyncio.to_thread(describe_run, folder, runs))


async def stop_run(front: Front, http: Request) -> Response:
    """Let a run write a checkpoint and end; asked a second time, it ends at once."""
    runs = trainings(front)
    folder = run_folder(runs.folder, http.path_params["name"])
    was_running = await asyncio.to_thread(runs.stop, folder.name)
    if not was_running:
        raise Conflict(f"run {folder.name} is not running", field="name")
    return json_response(await asyncio.to_thread(describe_run, folder, runs))


async def remove_run(front: Front, http: Request) -> Response:
    """Delete a run and all that it made.

    Raises:
        MethodNotAllowed: If runs cannot be started on this server.
        Conflict: If it runs, or was not started here.
        NotReady: If it cannot be deleted.
    """
    runs = trainings(front)
    folder = run_folder(runs.folder, http.path_params["name"])
    await do(lambda: runs.remove(folder.name))
    return json_response({"name": folder.name, "status": "removed"})


async def use_run(front: Front, http: Request) -> Response:
    """Make a run a LoRA or a model of this server, under its own name, for everybody.

    What a run can be stands in its ``uses``; the first of them without ``as``.

    A LoRA that has the name and the same bytes already is what is asked for.

    Raises:
        MethodNotAllowed: If LoRAs, or models, cannot be changed on this server.
        InvalidField: If the run cannot be what is asked.
        Conflict: If there is a LoRA or a model of that name; with ``replace`` a LoRA that is
            everybody's is exchanged.
    """
    folder = run_folder(runs_root(front), http.path_params["name"])
    body = await read_json(http, optional=True)
    uses = await asyncio.to_thread(uses_of, folder)
    wanted = body.get("as", uses[0])
    if wanted not in uses:
        raise InvalidField(
            f"run {folder.name} can be used as {' or '.join(uses)}, not as {str(wanted)[:40]!r}",
            field="as",
        )
    replace = _flag(body, "replace")
    try:
        if wanted == "lora":
            told = await _wear(front, folder, replace=replace)
        else:
            told = await _register(front, folder)
    except InvalidRequest as error:
        if error.field == "name":
            raise Conflict(str(error), field="name") from None
        raise
    front.forget_models()
    return json_response({"as": wanted, **told}, 201)


async def _register(front: Front, folder: Path) -> dict[str, Any]:
    if not front.config.model_api:
        raise MethodNotAllowed("models cannot be changed: serve.model_api is off")
    return dict(await front.service.register(str(folder), name=folder.name, version=None))


async def _wear(front: Front, folder: Path, *, replace: bool) -> dict[str, Any]:
    store, name, source = changeable_store(front), folder.name, str(folder)
    try:
        if await asyncio.to_thread(store.is_same, name, source):
            told = await asyncio.to_thread(store.show, name, "", sees_all=True)
        else:
            told = await asyncio.to_thread(store.bring, name, source, replace=replace)
    except OSError as error:
        raise NotReady(f"the LoRA cannot be kept: {error.strerror or error}") from None
    return {**told, "base": await asyncio.to_thread(base_of, folder)}


async def do(work: Any) -> None:
    """Do work on files in a thread; what the disk or the system refuses is told.

    Raises:
        Conflict: If it contradicts what is there, or what runs.
        NotReady: If something cannot be written or started.
    """
    try:
        await asyncio.to_thread(work)
    except RunConflict as error:
        raise Conflict(str(error), field=error.field) from None
    except OSError as error:
        raise NotReady(f"the run cannot be kept or started: {error.strerror or error}") from None


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise InvalidField(f"{name} must be true or false, got {str(value)[:40]!r}", field=name)
    return value


_START: dict[str, Any] = {
    "type": "object",
    "required": ["name", "config"],
    "properties": {
        "name": {"type": "string", "pattern": f"^(?!{DATASETS}$){RUN_NAME.pattern}$"},
        "config": {"type": "string", "minLength": 1, "maxLength": MOST_TEXT},
        "beside": {"type": "boolean", "description": "Although another run is under way."},
    },
}
_BESIDE: dict[str, Any] = {"beside": _START["properties"]["beside"]}
_RESUME: dict[str, Any] = {"type": "object", "properties": _BESIDE}
_USE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "as": {
            "enum": ["lora", "model"],
            "description": "The first of the run's uses if not said.",
        },
        "replace": {
            "type": "boolean",
            "description": "Take the place of a LoRA that has the name and is everybody's.",
        },
    },
}
_OBJECT: dict[str, Any] = {"application/json": {"type": "object"}}


def _endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
    given: dict[str, Any] = {"answers": _OBJECT, **more}
    return Endpoint(
        method=method, path=path, handler=handler, summary=summary, scope="manage", **given
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    _endpoint(
        "POST", "/v1/runs", start_run, "Start a training run",
        body=Body("TrainingStart", lambda _: _START), status=201,
    ),
    _endpoint(
        "POST", "/v1/runs/{name}/resume", resume_run, "Go on with a training run",
        body=Body("TrainingResume", lambda _: _RESUME, required=False),
    ),
    _endpoint("POST", "/v1/runs/{name}/stop", stop_run, "Stop a training run at a checkpoint"),
    _endpoint("DELETE", "/v1/runs/{name}", remove_run, "Delete a training run"),
    _endpoint(
        "POST", "/v1/runs/{name}/use", use_run, "Make a run a LoRA or a model of this server",
        body=Body("RunUse", lambda _: _USE, required=False), status=201,
    ),
)  # fmt: skip
