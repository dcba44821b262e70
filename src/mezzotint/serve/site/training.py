"""Training at the door: runs are started, stopped, resumed and used, and given pictures.

What a run may read is up to whoever starts it, so all of this is off unless the operator
has set ``serve.training``.
"""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidField, InvalidRequest, NotReady
from mezzotint.serve.errors import Conflict, MethodNotAllowed
from mezzotint.serve.front import Front
from mezzotint.serve.site.runs import RUN_NAME, describe_run, run_folder, runs_root
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
    beside = _beside(body)
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
    beside = _beside(await read_json(http, optional=True))
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
    """Make a run a model of this server, under its own name.

    Raises:
        MethodNotAllowed: If models cannot be changed on this server.
        Conflict: If there is a model of that name.
    """
    if not front.config.model_api:
        raise MethodNotAllowed("models cannot be changed: serve.model_api is off")
    folder = run_folder(runs_root(front), http.path_params["name"])
    try:
        model = await front.service.register(str(folder), name=folder.name, version=None)
    except InvalidRequest as error:
        if error.field == "name":
            raise Conflict(str(error), field="name") from None
        raise
    front.forget_models()
    return json_response(dict(model), 201)


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


def _beside(body: dict[str, Any]) -> bool:
    beside = body.get("beside", False)
    if not isinstance(beside, bool):
        raise InvalidField(f"beside must be true or false, got {beside!r}", field="beside")
    return beside


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
    _endpoint("POST", "/v1/runs/{name}/use", use_run, "Make a run a model of this server"),
)  # fmt: skip
