"""TorchServe management: registering, scaling and describing models on port 8081.

Bodies, codes and sentences as TorchServe writes them (WIRE, T2). Workers are a
façade: one engine serves every model, so scaling a model up or down only decides
whether this door answers for it.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, ModelError, UnknownName
from mezzotint.serve.errors import Conflict, DoorError, MethodNotAllowed, NotFound, Unsupported
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Endpoint, json_response, media_type, read_form, read_json

__all__ = [
    "ENDPOINTS",
    "DefaultVersion",
    "ModelVersionNotFound",
    "NoWorkers",
    "find_model",
    "num_workers",
    "prometheus",
]

_REMOTE = re.compile(r"^(https?|ftp|s3|gs|hf)://", re.IGNORECASE)
_MAX_WORKERS = 1024


class ModelVersionNotFound(NotFound):
    """The model exists, this version of it does not."""


class DefaultVersion(DoorError):
    """The default version cannot go while others exist."""


class NoWorkers(DoorError):
    """The model was registered without workers, or scaled to none."""


def _workers(front: Front) -> dict[str, tuple[int, int]]:
    return front.memory.setdefault("torchserve_workers", {})


def num_workers(front: Front, model: Mapping[str, Any]) -> int:
    """Return how many workers this door pretends the model has."""
    return _workers(front).get(f"{model['name']}@{model['version']}", (1, 1))[0]


async def find_model(
    front: Front, name: str, version: str | None, *, recent: bool = False
) -> Mapping[str, Any]:
    """Find a model by name and version (the default one if None).

    Args:
        front: What the dialects share.
        name: Name of the model.
        version: Its version.
        recent: Whether a list that is a second old will do.

    Raises:
        UnknownName: If there is no such model.
        ModelVersionNotFound: If there is no such version of it.
    """
    listed = await (front.recent_models() if recent else front.service.models())
    models = [m for m in listed if m["name"] == name]
    if recent and not any(m["version"] == version or version is None for m in models):
        return await find_model(front, name, version)
    if not models:
        raise UnknownName("model", name[:200], (), field="model")
    for model in models:
        if model["version"] == version or (version is None and model["default"]):
            return model
    raise ModelVersionNotFound(
        f"Model version: {str(version)[:80]} does not exist for model: {name[:200]}"
    )


async def _arguments(http: Request) -> dict[str, str]:
    """Read the arguments from the query, and from a JSON body or form if there is one."""
    arguments = dict(http.query_params)
    kind = media_type(http)
    if kind == "application/json":
        body = await read_json(http, optional=True)
        arguments |= {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in body.items()}
    elif kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        async with read_form(http) as form:
            arguments |= {k: v for k, v in form.items() if isinstance(v, str)}
    return arguments


def _whole(arguments: Mapping[str, str], name: str, default: int) -> int:
    text = arguments.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) > _MAX_WORKERS:
        raise InvalidRequest(
            f"{name} must be a whole number 0 to {_MAX_WORKERS}, got {text[:40]!r}", field=name
        )
    return int(text)


def _is_synchronous(arguments: Mapping[str, str]) -> bool:
    return arguments.get("synchronous", "false").lower() == "true"


def _changeable(front: Front) -> None:
    if not front.config.model_api:
        raise MethodNotAllowed("the model API is switched off on this server")


async def register(front: Front, http: Request) -> Response:
    """Register a model from the store or from a path."""
    _changeable(front)
    arguments = await _arguments(http)
    url = arguments.get("url", "")
    if not url:
        raise InvalidRequest("Parameter url is required.", field="url")
    source = url.removeprefix("file://")
    if _REMOTE.match(url):
        raise InvalidRequest(
            f"url: remote archives are never downloaded, got {url[:200]!r}; "
            "put the archive into the model store and register it by name",
            field="url",
        )
    if ".." in source or "\0" in source:
        raise NotFound(f"Relative path is not allowed in url: {url[:200]}")
    front.check_source(source, "url")
    workers = _whole(arguments, "initial_workers", 0)
    name = arguments.get("model_name") or None
    if name is not None and not re.fullmatch(r"[\w.-]{1,100}", name):
        raise InvalidRequest(
            f"model_name must be letters, digits, dots and dashes, got {name[:80]!r}",
            field="model_name",
        )
    try:
        model = await front.service.register(
            source, name=name, version=arguments.get("model_version") or None
        )
    except ModelError as error:
        raise InvalidRequest(f"url: {error}", field="url") from None
    except UnknownName:
        raise NotFound(f"Model not found in model store: {url[:200]}") from None
    except InvalidRequest as error:
        if error.field == "name":
            raise Conflict(str(error)) from None
        raise
    front.forget_models()
    _workers(front)[f"{model['name']}@{model['version']}"] = (workers, workers)
    text = (
        f'Model "{model["name"]}" Version: {model["version"]} registered with '
        f"{workers} initial workers"
    )
    if not workers:
        text += ". Use scale workers API to add workers for the model."
    elif not _is_synchronous(arguments):
        return json_response({"status": "Processing worker updates..."}, 202, indent=True)
    return json_response({"status": text}, indent=True)


async def scale(front: Front, http: Request) -> Response:
    """Set the number of workers of a model."""
    arguments = await _arguments(http)
    version = http.path_params.get("version")
    model = await find_model(front, http.path_params["model"], version)
    least = _whole(arguments, "min_worker", 1)
    most = _whole(arguments, "max_worker", least)
    if least > most:
        raise InvalidRequest("max_worker cannot be less than min_worker.", field="max_worker")
    _workers(front)[f"{model['name']}@{model['version']}"] = (least, most)
    if not _is_synchronous(arguments):
        return json_response({"status": "Processing worker updates..."}, 202, indent=True)
    text = f"Workers scaled to {least} for model: {model['name']}"
    text += f", version: {version}" if version is not None else ""
    return json_response({"status": text}, indent=True)


async def set_default(front: Front, http: Request) -> Response:
    """Make one version the default."""
    _changeable(front)
    name, version = http.path_params["model"], http.path_params["version"]
    try:
        await find_model(front, name, version)
    except ModelVersionNotFound:
        raise ModelVersionNotFound(
            f"Model version {version[:80]} does not exist for model {name[:200]}"
        ) from None
    await front.service.set_default(name, version)
    front.forget_models()
    text = f'Default version successfully updated for model "{name}" to "{version}"'
    return json_response({"status": text}, indent=True)


async def list_models(front: Front, http: Request) -> Response:
    """List the models, a page at a time."""
    query = http.query_params
    limit, start = query.get("limit", "100"), query.get("next_page_token", "0")
    for name, text in (("limit", limit), ("next_page_token", start)):
        if not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise InvalidRequest(f"{name} must be a whole number, got {text[:40]!r}", field=name)
    size = int(limit) if 0 <= int(limit) <= 100 else 100
    first = max(0, int(start))
    models = [m for m in await front.service.models() if m["default"]]
    body: dict[str, Any] = {}
    if first + size < len(models):
        body["nextPageToken"] = str(first + size)
    body["models"] = [
        {"modelName": m["name"], "modelUrl": m["path"] or m["name"]}
        for m in models[first : first + size]
    ]
    return json_response(body, indent=True)


async def describe_model(front: Front, http: Request) -> Response:
    """Describe a model: its default version, one version, or all."""
    name, version = http.path_params["model"], http.path_params.get("version")
    if version == "all":
        await find_model(front, name, None)
        models = [m for m in await front.service.models() if m["name"] == name]
    else:
        models = [await find_model(front, name, version)]
    health = await front.service.health()
    return json_response([_describe(front, m, health) for m in models], indent=True)


def _describe(front: Front, model: Mapping[str, Any], health: Mapping[str, Any]) -> dict[str, Any]:
    least, most = _workers(front).get(f"{model['name']}@{model['version']}", (1, 1))
    status = "READY" if model["ready"] else "LOADING"
    waiting = int(health.get("queue", 0))
    workers = [
        {
            "id": str(9000 + k),
            "startTime": front.memory.get("started", ""),
            "status": status,
            "memoryUsage": 0,
            "pid": int(health.get("pid", 0) or 0),
            "gpu": False,
            "gpuUsage": "N/A",
        }
        for k in range(least)
    ]
    return {
        "modelName": model["name"],
        "modelVersion": model["version"],
        "modelUrl": model["path"] or model["name"],
        "engine": "Mezzotint",
        "runtime": "python",
        "minWorkers": least,
        "maxWorkers": most,
        "batchSize": 1,
        "maxBatchDelay": 0,
        "responseTimeout": int(front.config.limits.wait_s),
        "startupTimeout": 600,
        "maxRetryTimeoutInSec": 300,
        "clientTimeoutInMills": 0,
        "parallelType": "",
        "parallelLevel": 1,
        "deviceType": "cpu",
        "deviceIds": [],
        "continuousBatching": True,
        "useJobTicket": False,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "status": "Healthy" if model["ready"] else "Unhealthy",
        "loadedAtStartup": f"{model['name']}@{model['version']}" not in _workers(front),
        "workers": workers,
        "jobQueueStatus": {
            "remainingCapacity": max(0, 100 - waiting),
            "pendingRequests": waiting,
        },
        "customizedMetadata": {"family": model["family"], "digest": model["digest"]},
    }


async def unregister(front: Front, http: Request) -> Response:
    """Remove a model."""
    _changeable(front)
    name, version = http.path_params["model"], http.path_params.get("version")
    model = await find_model(front, name, version)
    versions = [m for m in await front.service.models() if m["name"] == name]
    if model["default"] and len(versions) > 1:
        raise DefaultVersion(f"Cannot remove default version for model {name}")
    await front.service.unregister(name, model["version"])
    front.forget_models()
    _workers(front).pop(f"{name}@{model['version']}", None)
    return json_response({"status": f'Model "{name}" unregistered'}, indent=True)


async def token(front: Front, http: Request) -> Response:
    """Refuse to issue a token: API keys, made by the operator, stand in their place."""
    raise Unsupported(
        "tokens are not issued here; make an API key with `mezzotint keys new` and send it in "
        "the same header, Authorization: Bearer KEY"
    )


async def prometheus(front: Front, http: Request) -> Response:
    """Show the metrics; ``name[]`` picks some."""
    health = await front.service.health()
    counts = await front.jobs.counts() if front.jobs is not None else {}
    text = front.memory["metrics"].expose(running=front.running, jobs=counts, health=health)
    names = http.query_params.getlist("name[]")
    if names:
        pattern = re.compile(rf"^(# (HELP|TYPE) )?({'|'.join(map(re.escape, names))})(_total)?\b")
        text = b"".join(line + b"\n" for line in text.split(b"\n") if pattern.match(line.decode()))
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _management(method: str, path: str, handler: Any, summary: str) -> Endpoint:
    return Endpoint(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        listener="management",
        scope="manage",
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    _management("POST", "/models", register, "Register a model"),
    _management("GET", "/models", list_models, "List models"),
    _management("PUT", "/models/{model}/{version}/set-default", set_default, "Set the default"),
    _management("PUT", "/models/{model}", scale, "Scale the workers of a model"),
    _management("PUT", "/models/{model}/{version}", scale, "Scale the workers of a version"),
    _management("GET", "/models/{model}", describe_model, "Describe a model"),
    _management("GET", "/models/{model}/{version}", describe_model, "Describe a version"),
    _management("GET", "/token", token, "Not offered: API keys stand in their place"),
    _management("DELETE", "/models/{model}", unregister, "Unregister a model"),
    _management("DELETE", "/models/{model}/{version}", unregister, "Unregister a version"),
    Endpoint(
        method="GET",
        path="/metrics",
        handler=prometheus,
        summary="Prometheus metrics",
        listener="metrics",
        scope="metrics",
    ),
)
