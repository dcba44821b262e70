"""ComfyUI: its HTTP API, for graphs of text to image and image to image.

A graph becomes one request (:mod:`mezzotint.comfyui`) and a job on the durable queue, with
the graph as its note: history, queue and pictures are those of the caller's own key. Nodes
that are not offered are refused by their names, in ComfyUI's shape.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.comfyui import Graph, GraphError, read_graph
from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.plain import is_list, is_mapping
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.comfyui.events import follow, picture_files, remaining
from mezzotint.serve.dialects.comfyui.files import (
    DOOR,
    MASK_UPLOAD,
    UPLOAD,
    Upload,
    find_picture,
    has_alpha,
    upload,
    upload_mask,
    uploads,
    view,
)
from mezzotint.serve.dialects.comfyui.lists import features, object_info, system_stats
from mezzotint.serve.dialects.comfyui.refusals import blamed, named, refusal
from mezzotint.serve.errors import NotFound, Problem, WrongField
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import own_job, own_jobs, queue_of, submit
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Body,
    Dialect,
    Endpoint,
    json_response,
    read_json,
    visit,
)
from mezzotint.service.jobs.store import Job
from mezzotint.types import ImageInput

__all__ = ["DIALECT", "to_request"]

_MOST_SHOWN = 1000
_MOST_PAGES = 50  # of jobs of any door that are looked through
_FOLDERS = {"loras": "loras", "controlnet": "controls", "embeddings": "embeddings",
            "upscale_models": "upscalers"}  # fmt: skip
"""ComfyUI's folders of models by what the service lists."""


def to_request(
    graph: Graph, models: tuple[str, ...], pictures: Mapping[str, Upload | None]
) -> GenerationRequest:
    """Make a request of a graph that was read.

    Args:
        graph: What it asks for.
        models: Names that there are.
        pictures: The pictures that it names; None for one that there is not.

    Raises:
        GraphError: If a model or picture does not exist, or a value is out of range; names
            the node.
    """
    name = graph.fields["model"]
    if name not in models:
        raise blamed(graph, "model", f"'{name[:80]}' not in {list(models)}", name)
    native = dict(graph.fields)
    native["controls"] = [dict(control) for control in native.get("controls", ())]
    for place, file in graph.pictures.items():
        root, _, number = place.partition(".")
        found = pictures.get(file)
        if found is None:
            text = f"Invalid image file: {file[:80]} (POST it to /upload/image first)"
            raise blamed(graph, root, text, file, kind="custom_validation_failed")
        if place == "mask":
            native["mask"] = ImageInput(_mask(graph, found, file))
        elif place == "image":
            native["image"] = ImageInput(found.data)
        else:
            native["controls"][int(number)]["image"] = ImageInput(found.data)
    native = {k: v for k, v in native.items() if v not in ([], ())}
    try:
        return GenerationRequest.from_dict(native)
    except InvalidRequest as error:
        raise named(graph, error) from None


def _mask(graph: Graph, found: Upload, file: str) -> bytes:
    """Return the file that says where to repaint.

    Raises:
        GraphError: If the channel that is asked for says nothing there.
    """
    by_alpha = graph.mask_channel == "alpha"
    data = (found.mask or found.data) if by_alpha else found.data
    if has_alpha(data) != by_alpha:
        text = f"{file[:80]} has no transparent part: nothing would be repainted"
        if not by_alpha:
            text = f"{file[:80]} has transparent parts: its channel must be alpha here"
        raise blamed(graph, "mask", text, file, kind="custom_validation_failed")
    return data


def _render(problem: Problem, request_id: str) -> Response:
    """Write an error of the exchange; ComfyUI knows no 422."""
    body: dict[str, Any] = {
        "type": problem.code,
        "message": problem.detail,
        "details": problem.field or "",
        "extra_info": {},
    }
    status = 400 if problem.status == 422 else problem.status
    return json_response({"error": body, "node_errors": {}}, status)


async def _read(http: Request, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON object, whatever its content type says.

    ComfyUI never looks at it, and its own examples send what urllib fills in for a form. Pages
    of other origins are refused before (:mod:`mezzotint.serve.browsers`).
    """
    return await read_json(http, optional=optional, any_type=True)


async def prompt(front: Front, http: Request) -> Response:
    """Queue a graph."""
    body = await _read(http)
    nodes = body.get("prompt")
    if nodes is None:
        visit(http).problem = "invalid_request"
        missing = "No prompt provided"
        said: dict[str, Any] = {"type": "no_prompt", "message": missing, "details": missing}
        said["extra_info"] = {}
        return json_response({"error": said, "node_errors": {}}, 400)
    client_id = body.get("client_id")
    extra: object = body.get("extra_data") or {}
    if not is_mapping(extra) or not isinstance(client_id, str | None):
        raise WrongField("client_id must be a text, extra_data an object", field="client_id")
    models = tuple(_model_names(await front.recent_models()))
    graph = None
    try:
        graph = read_graph(nodes)
        wanted = dict.fromkeys(graph.pictures.values())
        pictures = {name: await find_picture(front, http, name) for name in wanted}
        request = to_request(graph, models, pictures)
        number = front.memory.get("comfyui_number", 0)
        front.memory["comfyui_number"] = number + 1
        kept = {
            "prompt": nodes,
            "number": number,
            "outputs": list(graph.outputs),
            "sampler": graph.sampler,
            "extra_data": {**extra, **({"client_id": client_id} if client_id else {})},
            "warnings": graph.warnings,
        }
        job = await submit(front, http, request, note={"door": DOOR, **kept})
    except GraphError as error:
        return _refuse(http, error, nodes)
    except InvalidRequest as error:  # the planner's: about a field that some node says
        if graph is None or (isinstance(error, UnknownName) and error.kind == "job"):
            raise
        return _refuse(http, named(graph, error), nodes)
    follow(front, job, visit(http).caller.name, client_id)
    return json_response({"prompt_id": job.id, "number": number, "node_errors": {}})


def _refuse(http: Request, error: GraphError, nodes: object) -> Response:
    visit(http).problem = "invalid_request"
    return json_response(refusal(error, nodes), 400)


def _model_names(models: tuple[Mapping[str, Any], ...]) -> list[str]:
    return [m["name"] if m["default"] else f"{m['name']}@{m['version']}" for m in models]


async def queue_length(front: Front, http: Request) -> Response:
    """Count the caller's graphs that are not done."""
    left = await remaining(front, visit(http).caller.name)
    return json_response({"exec_info": {"queue_remaining": left}})


def _row(job: Job) -> list[Any]:
    """Write a graph as ComfyUI lists it."""
    note = job.note
    return [note["number"], job.id, note["prompt"], note["extra_data"], note["outputs"]]


async def queue(front: Front, http: Request) -> Response:
    """List the caller's graphs that run or wait."""
    running, _ = await own_jobs(front, http, DOOR, status="running")
    pending, _ = await own_jobs(front, http, DOOR, status="queued")
    return json_response(
        {
            "queue_running": [_row(job) for job in reversed(running)],
            "queue_pending": [_row(job) for job in reversed(pending)],
        }
    )


async def change_queue(front: Front, http: Request) -> Response:
    """Take graphs that wait off the caller's queue: all (``clear``) or by id (``delete``)."""
    body = await _read(http)
    ids = _ids(body)
    pending, _ = await own_jobs(front, http, DOOR, status="queued")
    for job in pending:
        if body.get("clear") is True or job.id in ids:
            await queue_of(front).cancel(job.id)
    return Response(status_code=200)


async def interrupt(front: Front, http: Request) -> Response:
    """End the caller's graphs that run, or the one that ``prompt_id`` names."""
    body = await _read(http, optional=True)
    wanted = body.get("prompt_id")
    running, _ = await own_jobs(front, http, DOOR, status="running")
    for job in running:
        if wanted is None or job.id == wanted:
            await queue_of(front).cancel(job.id)
    return Response(status_code=200)


async def history(front: Front, http: Request) -> Response:
    """Show the caller's graphs that are done, oldest first.

    ``max_items`` of them from ``offset`` on, the last ones where it is not given.
    """
    most = _count(http, "max_items", _MOST_SHOWN)
    ended = await _ended(front, http)
    first = _count(http, "offset", -1)
    first = max(0, len(ended) - most) if first < 0 else first
    return json_response({job.id: _entry(job) for job in ended[first : first + most]})


def _count(http: Request, name: str, default: int) -> int:
    """Read a whole number of the query.

    Raises:
        WrongField: If it is none.
    """
    text = http.query_params.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,6}", text, re.ASCII):
        raise WrongField(f"{name} must be a whole number", field=name, value=text[:40])
    return max(-1 if name == "offset" else 0, int(text))


async def _ended(front: Front, http: Request) -> list[Job]:
    """Return the caller's graphs that are done, oldest first, as many as may be shown."""
    ended: list[Job] = []
    after: str | None = None
    for _ in range(_MOST_PAGES):
        jobs, after = await own_jobs(front, http, DOOR, after=after)
        ended += [job for job in jobs if job.status not in ("queued", "running")]
        if after is None or len(ended) >= _MOST_SHOWN:
            break
    return ended[:_MOST_SHOWN][::-1]


async def change_history(front: Front, http: Request) -> Response:
    """Forget graphs that are done, and their pictures: all (``clear``) or by id (``delete``)."""
    body = await _read(http)
    ids = _ids(body)
    for job in await _ended(front, http):
        if body.get("clear") is True or job.id in ids:
            await queue_of(front).forget(job.id)
    return Response(status_code=200)


def _ids(body: Mapping[str, Any]) -> list[str]:
    """Read ``delete``.

    Raises:
        WrongField: If it is no list of ids.
    """
    ids: object = body.get("delete") or []
    if not is_list(ids) or not all(isinstance(id_, str) for id_ in ids):
        raise WrongField("delete must be a list of ids", field="delete")
    return ids


async def history_of(front: Front, http: Request) -> Response:
    """Show one graph that is done; an empty object before its end, as ComfyUI does."""
    try:
        job = await own_job(front, http, http.path_params["id"], DOOR)
    except UnknownName:
        return json_response({})
    if job.status in ("queued", "running"):
        return json_response({})
    return json_response({job.id: _entry(job)})


def _entry(job: Job) -> dict[str, Any]:
    """Write what became of a graph."""
    note = job.note
    is_good = job.status == "succeeded"
    ending: dict[str, Any] = {"prompt_id": job.id, "timestamp": _ms(job.finished)}
    kind = "execution_success"
    if not is_good:
        error = job.outcome.get("error", {})
        name = str(note["prompt"][note["sampler"]]["class_type"])
        ending |= {"node_id": note["sampler"], "node_type": name, "executed": []}
        kind = "execution_interrupted"
        if "error" in job.outcome:
            kind = "execution_error"
            ending["exception_message"] = error.get("message", "")
            ending |= {"exception_type": error.get("type", ""), "traceback": []}
    messages: list[Any] = [
        ["execution_start", {"prompt_id": job.id, "timestamp": _ms(job.started)}],
        ["execution_cached", {"nodes": [], "prompt_id": job.id, "timestamp": _ms(job.started)}],
        [kind, ending],
    ]
    outputs = {id_: {"images": picture_files(job, id_)} for id_ in note["outputs"] if job.images}
    warnings = [*note["warnings"], *job.outcome.get("warnings", ())]
    warnings += [w for image in job.images for w in image.about.get("warnings", ())]
    return {
        "prompt": _row(job),
        "outputs": outputs,
        "status": {
            "status_str": "success" if is_good else "error",
            "completed": is_good,
            "messages": messages,
        },
        "meta": {id_: {"node_id": id_, "display_node": id_} for id_ in outputs},
        "warnings": list(dict.fromkeys(warnings)),
    }


def _ms(seconds: float | None) -> int:
    return int((seconds or 0.0) * 1000)


async def show_nodes(front: Front, http: Request) -> Response:
    """List the nodes that are offered, with what each may be given."""
    models = _model_names(await front.recent_models())
    names = await front.capabilities(http)
    info = object_info(models, names, list(uploads(front, http)))
    wanted = http.path_params.get("name")
    return json_response(info if wanted is None else {k: v for k, v in info.items() if k == wanted})


async def show_system(front: Front, http: Request) -> Response:
    """Show the machine, as far as a client may know it."""
    return json_response(system_stats(str(front.memory.get("version", ""))))


async def show_features(front: Front, http: Request) -> Response:
    """Tell what this server can, as ComfyUI's newer clients ask."""
    return json_response(features(front.config.limits.body_bytes))


async def show_embeddings(front: Front, http: Request) -> Response:
    """List the textual inversions by name."""
    return json_response(list((await front.capabilities(http)).get("embeddings", ())))


async def show_folders(front: Front, http: Request) -> Response:
    """List the kinds of models, or the names of one kind."""
    kind = http.path_params.get("folder")
    if kind is None:
        return json_response(["checkpoints", *_FOLDERS])
    if kind == "checkpoints":
        return json_response(_model_names(await front.recent_models()))
    if kind not in _FOLDERS:
        raise NotFound(f"there is no kind of models {kind[:80]!r}")
    return json_response(list((await front.capabilities(http)).get(_FOLDERS[kind], ())))


async def free(front: Front, http: Request) -> Response:
    """Let every model go from memory that nobody uses, for keys that manage."""
    body = await _read(http, optional=True)
    is_meant = bool(body.get("unload_models") or body.get("free_memory"))
    if is_meant and visit(http).caller.manages:
        await front.free_models()
    return Response(status_code=200)


async def no_extensions(front: Front, http: Request) -> Response:
    """List the extensions of ComfyUI's own page: none."""
    return json_response([])


def _endpoints() -> tuple[Endpoint, ...]:
    graph = {**ANY_OBJECT, "properties": {"prompt": ANY_OBJECT}, "required": ["prompt"]}
    body = Body("ComfyPrompt", lambda limits: graph)
    plain = Body("ComfyChange", lambda limits: ANY_OBJECT, required=False)

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(
            method=method, path=path, handler=handler, summary=f"ComfyUI: {summary}", **more
        )

    pictures: dict[str, dict[str, Any]] = {kind: {} for kind in CONTENT_TYPES.values()}
    return (
        endpoint("POST", "/prompt", prompt, "queue a graph", body=body),
        endpoint("GET", "/prompt", queue_length, "count the graphs that are not done"),
        endpoint("GET", "/queue", queue, "list the graphs that run or wait"),
        endpoint("POST", "/queue", change_queue, "take graphs off the queue", body=plain),
        endpoint("POST", "/interrupt", interrupt, "end the graphs that run", body=plain),
        endpoint("GET", "/history", history, "show what is done"),
        endpoint("POST", "/history", change_history, "forget what is done", body=plain),
        endpoint("GET", "/history/{id}", history_of, "show one graph that is done"),
        endpoint("GET", "/view", view, "one picture", answers=pictures),
        endpoint("POST", "/upload/image", upload, "keep a picture for graphs", body=UPLOAD),
        endpoint(
            "POST",
            "/upload/mask",
            upload_mask,
            "keep a picture with a mask on it",
            body=MASK_UPLOAD,
        ),
        endpoint("GET", "/object_info", show_nodes, "list the nodes"),
        endpoint("GET", "/object_info/{name}", show_nodes, "show one node"),
        endpoint("GET", "/system_stats", show_system, "show the machine"),
        endpoint("GET", "/features", show_features, "what this server can"),
        endpoint("GET", "/embeddings", show_embeddings, "list the textual inversions"),
        endpoint("GET", "/extensions", no_extensions, "list the extensions of its page: none"),
        endpoint("GET", "/models", show_folders, "list the kinds of models"),
        endpoint("GET", "/models/{folder}", show_folders, "list the models of a kind"),
        endpoint("POST", "/free", free, "free the memory of models", body=plain),
    )


DIALECT = Dialect(
    name="comfyui",
    prefix="/api",
    pattern=re.compile(
        r"^(/api(?=/))?/(prompt|queue|interrupt|history|view|upload/(image|mask)|object_info"
        r"|system_stats|features|embeddings|extensions|free|ws|models)(/|$)"
    ),
    endpoints=_endpoints(),
    render=_render,
)
