"""ComfyUI: its HTTP API, for graphs of text to image and image to image.

A graph becomes one request (:mod:`mezzotint.comfyui`) and a job on the durable queue, with
the graph as its note: history, queue and pictures are those of the caller's own key. Nodes
that are not offered are refused by their names, in ComfyUI's shape.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from mezzotint.comfyui import Graph, GraphError, NodeFault, read_graph
from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.comfyui.events import follow, picture_files, remaining
from mezzotint.serve.dialects.comfyui.lists import object_info, system_stats
from mezzotint.serve.errors import Malformed, NotFound, Problem, WrongField
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import own_job, own_jobs, queue_of, submit
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Body,
    Dialect,
    Endpoint,
    json_response,
    media_type,
    read_form,
    read_json,
    visit,
)
from mezzotint.service.jobs.store import Job
from mezzotint.types import ImageInput

__all__ = ["DIALECT", "to_request"]

_DOOR = "comfyui"
_FILE = re.compile(r".*_(job-[0-9a-f]{24})_([0-9]{5})_\.\w+", re.DOTALL)
_MOST_UPLOADS = 64
_MOST_UPLOAD_BYTES = 256 << 20
_MOST_CALLERS = 1000


def to_request(
    graph: Graph, models: tuple[str, ...], uploads: Mapping[str, bytes]
) -> GenerationRequest:
    """Make a request of a graph that was read.

    Args:
        graph: What it asks for.
        models: Names that there are.
        uploads: The caller's pictures by name.

    Raises:
        GraphError: If a model or picture does not exist, or a value is out of range; names
            the node.
    """
    name = graph.fields["model"]
    if name not in models:
        raise _blamed(graph, "model", f"Value not in list: {name[:80]} not in {list(models)}", name)
    native = dict(graph.fields)
    native["controls"] = [dict(control) for control in native.get("controls", ())]
    for place, file in graph.pictures.items():
        key = file.removesuffix(" [input]")
        if key not in uploads:
            text = f"Invalid image file: {file[:80]} (POST it to /upload/image first)"
            raise _blamed(graph, place.partition(".")[0], text, file)
        picture = ImageInput(uploads[key])
        if place == "image":
            native["image"] = picture
        else:
            native["controls"][int(place.partition(".")[2])]["image"] = picture
    native = {k: v for k, v in native.items() if v not in ([], ())}
    try:
        return GenerationRequest.from_dict(native)
    except InvalidRequest as error:
        raise _named(graph, error) from None


def _blamed(graph: Graph, field: str, message: str, value: object) -> GraphError:
    """Return an error that names the node which says a field."""
    node, input_ = graph.places.get(field, (graph.sampler, ""))
    fault = NodeFault(
        node=node, kind="value_not_in_list", message=message, input=input_, value=str(value)[:80]
    )
    return GraphError(message, (fault,))


def _named(graph: Graph, error: InvalidRequest) -> GraphError:
    """Return an error about a field of ours as one about the node that says it."""
    root = re.match(r"\w*", error.field or "")
    return _blamed(graph, root[0] if root else "", str(error), error.value)


def refusal(error: GraphError, nodes: object) -> dict[str, Any]:
    """Write a refused graph as ComfyUI does."""
    found = nodes if isinstance(nodes, Mapping) else {}
    outputs = [
        str(id_)
        for id_, node in found.items()
        if isinstance(node, Mapping) and node.get("class_type") in ("SaveImage", "PreviewImage")
    ]
    by_node: dict[str, dict[str, Any]] = {}
    for fault in error.faults:
        name = str(found.get(fault.node, {}).get("class_type", ""))[:80]
        entry = by_node.setdefault(
            fault.node, {"errors": [], "dependent_outputs": outputs, "class_type": name}
        )
        details = fault.input or f"Node ID '#{fault.node}'"
        extra = {"input_name": fault.input, "received_value": fault.value} if fault.input else {}
        entry["errors"].append(
            {"type": fault.kind, "message": fault.message, "details": details, "extra_info": extra}
        )
    kinds = {fault.kind for fault in error.faults}
    kind = "prompt_outputs_failed_validation" if by_node else "invalid_prompt"
    kind = "missing_node_type" if kinds == {"missing_node_type"} else kind
    kind = "prompt_no_outputs" if "no outputs" in str(error) else kind
    body = {"type": kind, "message": str(error), "details": "", "extra_info": {}}
    return {"error": body, "node_errors": by_node}


def _render(problem: Problem, request_id: str) -> Response:
    body = {
        "type": problem.code,
        "message": problem.detail,
        "details": problem.field or "",
        "extra_info": {},
    }
    return json_response({"error": body, "node_errors": {}}, problem.status)


async def prompt(front: Front, http: Request) -> Response:
    """Queue a graph."""
    body = await read_json(http)
    nodes = body.get("prompt")
    if nodes is None:
        raise Malformed("No prompt provided")
    client_id = body.get("client_id")
    extra = body.get("extra_data") or {}
    if not isinstance(extra, Mapping) or not isinstance(client_id, str | None):
        raise WrongField("client_id must be a text, extra_data an object", field="client_id")
    models = tuple(_model_names(await front.recent_models()))
    graph = None
    try:
        graph = read_graph(nodes)
        request = to_request(graph, models, _uploads(front, http))
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
        job = await submit(front, http, request, note={"door": _DOOR, **kept})
    except GraphError as error:
        return _refuse(http, error, nodes)
    except InvalidRequest as error:  # the planner's: about a field that some node says
        if graph is None or (isinstance(error, UnknownName) and error.kind == "job"):
            raise
        return _refuse(http, _named(graph, error), nodes)
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
    running, _ = await own_jobs(front, http, _DOOR, status="running")
    pending, _ = await own_jobs(front, http, _DOOR, status="queued")
    return json_response(
        {
            "queue_running": [_row(job) for job in reversed(running)],
            "queue_pending": [_row(job) for job in reversed(pending)],
        }
    )


async def change_queue(front: Front, http: Request) -> Response:
    """Take graphs that wait off the caller's queue: all (``clear``) or by id (``delete``)."""
    body = await read_json(http)
    ids = body.get("delete") or []
    if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
        raise WrongField("delete must be a list of ids", field="delete")
    pending, _ = await own_jobs(front, http, _DOOR, status="queued")
    for job in pending:
        if body.get("clear") is True or job.id in ids:
            await queue_of(front).cancel(job.id)
    return Response(status_code=200)


async def interrupt(front: Front, http: Request) -> Response:
    """End the caller's graphs that run, or the one that ``prompt_id`` names."""
    body = await read_json(http, optional=True)
    wanted = body.get("prompt_id")
    running, _ = await own_jobs(front, http, _DOOR, status="running")
    for job in running:
        if wanted is None or job.id == wanted:
            await queue_of(front).cancel(job.id)
    return Response(status_code=200)


async def history(front: Front, http: Request) -> Response:
    """Show the caller's graphs that are done, the last ``max_items`` of them."""
    text = http.query_params.get("max_items", "100")
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise WrongField("max_items must be a number", field="max_items", value=text[:40])
    jobs, _ = await own_jobs(front, http, _DOOR)
    ended = [job for job in jobs if job.status not in ("queued", "running")][: int(text)]
    return json_response({job.id: _entry(job) for job in reversed(ended)})


async def history_of(front: Front, http: Request) -> Response:
    """Show one graph that is done; an empty object before its end, as ComfyUI does."""
    try:
        job = await own_job(front, http, http.path_params["id"], _DOOR)
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


async def view(front: Front, http: Request) -> Response:
    """Return a picture that was made for the caller, or that it uploaded."""
    name = http.query_params.get("filename", "")
    if http.query_params.get("type") == "input":
        data = _uploads(front, http).get(name)
        if data is None:
            raise NotFound("there is no such picture")
        is_jpeg, is_webp = data[:2] == b"\xff\xd8", data[:4] == b"RIFF"
        kind = "image/jpeg" if is_jpeg else "image/webp" if is_webp else "image/png"
        return Response(data, media_type=kind)
    found = _FILE.fullmatch(name)
    if found is None:
        raise NotFound("there is no such picture")
    job = await own_job(front, http, found[1], _DOOR)
    image = next((i for i in job.images if i.index == int(found[2]) - 1), None)
    if image is None:
        raise NotFound("there is no such picture")
    data = await queue_of(front).image(job, image.index)
    headers = {"content-disposition": f'filename="{job.id}_{found[2]}_.png"'}
    return Response(data, headers=headers, media_type=CONTENT_TYPES[image.about["format"]])


def _uploads(front: Front, http: Request) -> "OrderedDict[str, bytes]":
    """Return the caller's pictures; of the callers that sent none for longest, none are kept."""
    kept: OrderedDict[str, OrderedDict[str, bytes]]
    kept = front.memory.setdefault("comfyui_uploads", OrderedDict())
    name = visit(http).caller.name
    mine = kept.setdefault(name, OrderedDict())
    kept.move_to_end(name)
    while len(kept) > _MOST_CALLERS:
        kept.popitem(last=False)
    return mine


async def upload(front: Front, http: Request) -> Response:
    """Keep a picture for the caller's graphs, until newer ones take its room."""
    if media_type(http) == "application/json":
        raise WrongField("image must be a file of a form", field="image")
    async with read_form(http) as form:
        file = form.get("image")
        if not isinstance(file, UploadFile):
            raise WrongField("image must be a file of a form", field="image")
        data = await file.read()
        name = (file.filename or "image.png").replace("\\", "/").rpartition("/")[2][:200]
        wants_same = str(form.get("overwrite", "")).lower() in ("true", "1")
    if not data:
        raise WrongField("image is empty", field="image")
    mine = _uploads(front, http)
    stem, dot, extension = name.rpartition(".")
    number, chosen = 1, name
    while chosen in mine and mine[chosen] != data and not wants_same:
        chosen = f"{stem if dot else name} ({number}){dot}{extension if dot else ''}"
        number += 1
    mine[chosen] = data
    mine.move_to_end(chosen)
    while len(mine) > _MOST_UPLOADS or sum(map(len, mine.values())) > _MOST_UPLOAD_BYTES:
        mine.popitem(last=False)
    return json_response({"name": chosen, "subfolder": "", "type": "input"})


async def show_nodes(front: Front, http: Request) -> Response:
    """List the nodes that are offered, with what each may be given."""
    models = _model_names(await front.recent_models())
    names = dict(await front.service.capabilities())
    info = object_info(models, names, list(_uploads(front, http)))
    wanted = http.path_params.get("name")
    return json_response(info if wanted is None else {k: v for k, v in info.items() if k == wanted})


async def show_system(front: Front, http: Request) -> Response:
    """Show the machine, as far as a client may know it."""
    return json_response(system_stats(str(front.memory.get("version", ""))))


def _endpoints() -> tuple[Endpoint, ...]:
    graph = {**ANY_OBJECT, "properties": {"prompt": ANY_OBJECT}, "required": ["prompt"]}
    body = Body("ComfyPrompt", lambda limits: graph)
    plain = Body("ComfyChange", lambda limits: ANY_OBJECT, required=False)

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(
            method=method, path=path, handler=handler, summary=f"ComfyUI: {summary}", **more
        )

    pictures = {kind: {} for kind in CONTENT_TYPES.values()}
    return (
        endpoint("POST", "/prompt", prompt, "queue a graph", body=body),
        endpoint("GET", "/prompt", queue_length, "count the graphs that are not done"),
        endpoint("GET", "/queue", queue, "list the graphs that run or wait"),
        endpoint("POST", "/queue", change_queue, "take graphs off the queue", body=plain),
        endpoint("POST", "/interrupt", interrupt, "end the graphs that run", body=plain),
        endpoint("GET", "/history", history, "show what is done"),
        endpoint("GET", "/history/{id}", history_of, "show one graph that is done"),
        endpoint("GET", "/view", view, "one picture", answers=pictures),
        endpoint("POST", "/upload/image", upload, "keep a picture for graphs"),
        endpoint("POST", "/api/upload/image", upload, "keep a picture (as Open WebUI sends it)"),
        endpoint("GET", "/object_info", show_nodes, "list the nodes"),
        endpoint("GET", "/object_info/{name}", show_nodes, "show one node"),
        endpoint("GET", "/system_stats", show_system, "show the machine"),
    )


DIALECT = Dialect(
    name="comfyui",
    pattern=re.compile(
        r"^/(prompt|queue|interrupt|history|view|(api/)?upload/image|object_info|system_stats|ws)"
        r"(/|$)"
    ),
    endpoints=_endpoints(),
    render=_render,
)
