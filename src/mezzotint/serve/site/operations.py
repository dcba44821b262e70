"""Operations: what the page's Server room shows and does, for keys that manage.

Measurements are those of the metrics listener, which a page of this listener cannot
reach. The list of answers is what the access log says, the newest of them, in memory.
"""

import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.serve.access import AccessLog
from mezzotint.serve.auth import SCOPES, KeyRing
from mezzotint.serve.errors import Conflict, MethodNotAllowed
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Body, Endpoint, json_response, read_json

__all__ = ["ENDPOINTS"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_MOST = 500


async def measurements(front: Front, http: Request) -> Response:
    """Answer with the metrics in Prometheus' text format."""
    health = await front.service.health()
    counts = await front.jobs.counts() if front.jobs is not None else {}
    text = front.memory["metrics"].expose(running=front.running, jobs=counts, health=health)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


async def clients(front: Front, http: Request) -> Response:
    """List the clients that keys are for, what they may do and what they hold now."""
    ring: KeyRing = front.memory["keys"]
    held = front.meter.held()
    known = {caller.name: caller for caller in ring.callers()}
    body = [
        {
            "name": name,
            "scopes": sorted(known[name].scopes if name in known else SCOPES),
            "requests_per_minute": known[name].requests_per_minute if name in known else 0,
            "concurrency": known[name].concurrency if name in known else 0,
            "holds": {what: n for what, n in held.get(name, {}).items() if n},
        }
        for name in sorted({*known, *held})
    ]
    return json_response({"secured": not ring.is_open, "clients": body})


async def nodes(front: Front, http: Request) -> Response:
    """List the servers on one queue of jobs, and what draws for this one: nodes and replicas.

    Without a cluster the only node is this machine, and its workers are the replicas.
    """
    health = dict(await front.service.health())
    found = dict(health.get("cluster") or {})
    if not found:
        host = socket.gethostname()
        workers = health.get("workers") or [health]
        found["nodes"] = [{"node": host, "host": host, "live": True, "is_head": True}]
        found["replicas"] = [
            {
                "name": str(number),
                "node": host,
                "host": host,
                "status": "ready" if one.get("ready") else "starting",
                "device": one.get("device", ""),
                "pid": one.get("pid", 0),
                "backlog_s": round(float(one.get("backlog_s", 0.0)), 3),
            }
            for number, one in enumerate(workers)
        ]
    found["servers"] = await front.jobs.servers() if front.jobs is not None else []
    return json_response(found)


async def answers(front: Front, http: Request) -> Response:
    """List the newest answers of this server, those of one id or client where asked."""
    log: AccessLog = front.memory["access"]
    wanted = http.query_params.get("q", "")[:200].casefold()
    return json_response({"answers": log.newest(wanted, _MOST)})


async def add_model(front: Front, http: Request) -> Response:
    """Add a model from the model store, or from a path where those are allowed.

    Raises:
        MethodNotAllowed: If models cannot be changed on this server.
        Conflict: If the name and version are taken.
    """
    _check_changeable(front)
    body = await read_json(http)
    source = body.get("source")
    if not isinstance(source, str) or not source.strip() or len(source) > 1000:
        raise InvalidRequest(
            "source must name a file or folder in the model store, or be a path", field="source"
        )
    given: dict[str, str | None] = {}
    for field in ("name", "version"):
        value = body.get(field)
        if value is not None and not (isinstance(value, str) and _NAME.fullmatch(value)):
            raise InvalidRequest(
                f"{field} must be letters, digits, dots and dashes, at most 100", field=field
            )
        given[field] = value
    if ".." in source or "\0" in source or "://" in source:
        raise UnknownName("model", source[:200], (), field="source")
    front.check_source(source, "source")
    try:
        model = await front.service.register(source, **given)
    except InvalidRequest as error:
        if error.field == "name":
            raise Conflict(str(error), field="name") from None
        raise
    front.forget_models()
    return json_response(dict(model), 201)


async def remove_model(front: Front, http: Request) -> Response:
    """Take one version of a model out of this server; its files stay."""
    _check_changeable(front)
    name, version = _named(http)
    await front.service.unregister(name, version)
    front.forget_models()
    return json_response({"name": name, "version": version, "status": "removed"})


async def load_model(front: Front, http: Request) -> Response:
    """Bring a model into memory; the answer comes when it is ready to draw."""
    return await _change_memory(front, http, front.service.load)


async def unload_model(front: Front, http: Request) -> Response:
    """Let a model's weights go from memory; it is loaded again when it is next asked for.

    Raises:
        InUse: If pictures wait for it or are made with it.
    """
    return await _change_memory(front, http, front.service.unload)


async def _change_memory(
    front: Front, http: Request, change: Callable[[str], Awaitable[Mapping[str, Any]]]
) -> Response:
    """Load or unload the model that the path names: one of the list, no path and no Hub id."""
    name = http.path_params["name"]
    known = {m["name"] for m in await front.recent_models()}
    if name.partition("@")[0] not in known:
        raise UnknownName("model", name[:200], known, field="name")
    try:
        return json_response(dict(await change(name)))
    finally:
        front.forget_models()


async def set_default(front: Front, http: Request) -> Response:
    """Make the bare name of a model mean this version."""
    _check_changeable(front)
    name, version = _named(http)
    await front.service.set_default(name, version)
    front.forget_models()
    return json_response({"name": name, "version": version, "status": "default"})


def _check_changeable(front: Front) -> None:
    if not front.config.model_api:
        raise MethodNotAllowed("models cannot be changed: serve.model_api is off")


def _named(http: Request) -> tuple[str, str]:
    return http.path_params["name"], http.path_params["version"]


_MODEL = {
    "type": "object",
    "required": ["source"],
    "properties": {
        "source": {"type": "string", "minLength": 1, "maxLength": 1000},
        "name": {"type": ["string", "null"], "pattern": "^[A-Za-z0-9_.-]{1,100}$"},
        "version": {"type": ["string", "null"], "pattern": "^[A-Za-z0-9_.-]{1,100}$"},
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
        "GET", "/v1/operations/metrics", measurements, "The metrics, as Prometheus reads them",
        answers={"text/plain": {}},
    ),
    _endpoint("GET", "/v1/operations/clients", clients, "Clients, their rights, what they hold"),
    _endpoint("GET", "/v1/operations/nodes", nodes, "Servers, nodes and replicas"),
    _endpoint(
        "GET", "/v1/operations/answers", answers, "The newest answers of this server",
        parameters=({"name": "q", "in": "query", "schema": {"type": "string"}},),
    ),
    _endpoint(
        "POST", "/v1/operations/models", add_model, "Add a model",
        body=Body("ModelSource", lambda _: _MODEL),
    ),
    _endpoint(
        "DELETE", "/v1/operations/models/{name}/{version}", remove_model, "Remove a model",
    ),
    _endpoint(
        "POST", "/v1/operations/models/{name}/load", load_model, "Bring a model into memory",
    ),
    _endpoint(
        "POST", "/v1/operations/models/{name}/unload", unload_model,
        "Let a model go from memory",
    ),
    _endpoint(
        "PUT", "/v1/operations/models/{name}/{version}/default", set_default,
        "Make a version the default",
    ),
)  # fmt: skip
