"""TorchServe's management: registering, scaling and describing models.

Codes and sentences as TorchServe has them (WIRE, T2), whichever protocol carries them.
Workers are a façade: one engine serves every model, so scaling a model up or down only
decides whether this door answers for it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.errors import InvalidField, InvalidRequest, ModelError, UnknownName
from mezzotint.serve.errors import Conflict, DoorError, MethodNotAllowed, NotFound
from mezzotint.serve.front import Front

__all__ = [
    "DefaultVersion",
    "DownloadFailed",
    "InvalidModel",
    "ModelNotFound",
    "ModelVersionNotFound",
    "NoWorkers",
    "answers_array",
    "describe_model",
    "find_model",
    "list_models",
    "num_workers",
    "register",
    "scale",
    "set_default",
    "unregister",
    "whole",
]

_REMOTE = re.compile(r"^(https?|ftp|s3|gs|hf)://", re.IGNORECASE)
_MAX_WORKERS = 1024
_RUNTIMES = ("python", "python3", "LSP")
OUTPUTS = ("picture", "array")
"""What predictions of a model may answer where a request says nothing."""
PROCESSING = "Processing worker updates..."


class ModelNotFound(NotFound):
    """Nothing of that name can be registered."""


class InvalidModel(DoorError):
    """What is there is no model, or a broken one."""


class DownloadFailed(DoorError):
    """An address: nothing is downloaded."""


class ModelVersionNotFound(NotFound):
    """The model exists, this version of it does not."""


class DefaultVersion(DoorError):
    """The default version cannot go while others exist."""


class NoWorkers(DoorError):
    """The model was registered without workers, or scaled to none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What was said of a model when it was registered here, to be described so.

    The engine batches by itself, so ``batch_size`` and the rest set nothing.

    Args:
        url: Where its data was said to be, "" if it was there from the start.
        runtime: Of the code that TorchServe would run.
        output: What predictions answer where a request says nothing.
        batch_size: Images of a batch.
        max_batch_delay: Milliseconds to wait for a batch.
        response_timeout: Seconds, None for the server's own limit.
        startup_timeout: Seconds, None for the server's own limit.
    """

    url: str = ""
    runtime: str = "python"
    output: str | None = None
    batch_size: int = 1
    max_batch_delay: int = 100
    response_timeout: int | None = None
    startup_timeout: int | None = None


def _workers(front: Front) -> dict[str, tuple[int, int]]:
    return front.memory.setdefault("torchserve_workers", {})


def _registered(front: Front) -> dict[str, Registered]:
    return front.memory.setdefault("torchserve_registered", {})


def _said_of(front: Front, model: Mapping[str, Any]) -> Registered:
    return _registered(front).get(_full_name(model), Registered())


def _url(front: Front, model: Mapping[str, Any]) -> str:
    return _said_of(front, model).url or model["path"] or model["name"]


def _full_name(model: Mapping[str, Any]) -> str:
    return f"{model['name']}@{model['version']}"


def num_workers(front: Front, model: Mapping[str, Any]) -> int:
    """Return how many workers this door pretends the model has."""
    return _workers(front).get(_full_name(model), (1, 1))[0]


def answers_array(front: Front, model: Mapping[str, Any]) -> bool:
    """Tell whether predictions of a model are lists of pixels where a request says nothing."""
    return (_said_of(front, model).output or model.get("predictions")) == "array"


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


def whole(arguments: Mapping[str, str], name: str, default: int) -> int:
    """Return a whole number as TorchServe reads it: what is none counts as not given.

    Args:
        arguments: Parameters by name.
        name: Of the one wanted.
        default: In its place if it is no decimal number of 32 bits.
    """
    text = arguments.get(name, "")
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", text, re.ASCII):
        return default
    number = int(text)
    return number if -(1 << 31) <= number < 1 << 31 else default


def _num_workers(arguments: Mapping[str, str], name: str, default: int) -> int:
    """Return a number of workers; fewer than none are none.

    Raises:
        InvalidRequest: If there are more than this door pretends to have.
    """
    number = whole(arguments, name, default)
    if number > _MAX_WORKERS:
        raise InvalidRequest(f"{name} must be {_MAX_WORKERS} at most, got {number}", field=name)
    return max(0, number)


def _is_synchronous(arguments: Mapping[str, str], default: str) -> bool:
    return arguments.get("synchronous", default).lower() == "true"


def _changeable(front: Front) -> None:
    if not front.config.model_api:
        raise MethodNotAllowed("the model API is switched off on this server")


def _source(front: Front, arguments: Mapping[str, str]) -> str:
    """Return what to ask the service for.

    Raises:
        InvalidRequest: If there is no ``url``.
        ModelNotFound: If it cannot name anything in the model store.
        DownloadFailed: If it is an address: nothing is ever downloaded.
        ModelNotAllowed: If it is a path and those are not allowed.
    """
    url = arguments.get("url")
    if url is None:
        raise InvalidRequest("Parameter url is required.", field="url")
    if not url:
        raise ModelNotFound("empty url")
    if re.match(r"https?://", url, re.IGNORECASE):
        raise DownloadFailed(
            f"Failed to download archive from: {url[:200]}; remote archives are never downloaded: "
            "put the archive into the model store and register it by name"
        )
    if _REMOTE.match(url):
        raise ModelNotFound(f"Model not found at: {url[:200]}")
    source = url.removeprefix("file://")
    if ".." in source or "\0" in source:
        raise ModelNotFound(f"Relative path is not allowed in url: {url[:200]}")
    front.check_source(source, "url")
    return source


async def register(front: Front, arguments: Mapping[str, str]) -> tuple[int, str]:
    """Register a model from the store or from a path.

    Args:
        front: What the dialects share.
        arguments: ``url``, ``model_name``, ``initial_workers`` and the rest by name;
            ``synchronous`` is true if it is not given.

    Returns:
        The status, 200 or 202, and the sentence.

    Raises:
        MezzotintError: If it cannot be registered.
    """
    _changeable(front)
    source = _source(front, arguments)
    runtime = arguments.get("runtime")
    if runtime is not None and runtime not in _RUNTIMES:
        raise InvalidRequest(f"Invalid RuntimeType value: {runtime[:80]}", field="runtime")
    workers = _num_workers(arguments, "initial_workers", 0)
    output = arguments.get("output")
    if output not in (None, *OUTPUTS):
        raise InvalidField(
            f"output must be one of {', '.join(OUTPUTS)}, got {output[:80]!r}",
            field="output",
            value=output[:80],
            allowed=", ".join(OUTPUTS),
        )
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
        raise InvalidModel(f"url: {error}") from None
    except UnknownName:
        raise ModelNotFound(f"Model not found at: {arguments['url'][:200]}") from None
    except InvalidRequest as error:
        if error.field == "name":
            taken, _, version = str(error.value).partition("@")
            raise Conflict(
                f"Model version {version} is already registered for model {taken}"
            ) from None
        raise
    front.forget_models()
    _workers(front)[_full_name(model)] = (workers, workers)
    _registered(front)[_full_name(model)] = Registered(
        url=arguments["url"],
        runtime=runtime or "python",
        output=output,
        batch_size=whole(arguments, "batch_size", 1),
        max_batch_delay=whole(arguments, "max_batch_delay", 100),
        response_timeout=whole(arguments, "response_timeout", 0) or None,
        startup_timeout=whole(arguments, "startup_timeout", 0) or None,
    )
    text = (
        f'Model "{model["name"]}" Version: {model["version"]} registered with '
        f"{workers} initial workers"
    )
    if not workers:
        return 200, text + ". Use scale workers API to add workers for the model."
    return (200, text) if _is_synchronous(arguments, "true") else (202, PROCESSING)


async def scale(
    front: Front, name: str, version: str | None, arguments: Mapping[str, str]
) -> tuple[int, str]:
    """Set the number of workers of a model.

    Args:
        front: What the dialects share.
        name: Name of the model.
        version: Its version, the default one if None.
        arguments: ``min_worker``, ``max_worker``, ``synchronous`` by name.

    Returns:
        The status, 200 or 202, and the sentence.

    Raises:
        MezzotintError: If there is no such model, or the numbers cannot be.
    """
    version = version or arguments.get("model_version")
    least = whole(arguments, "min_worker", 1)
    if whole(arguments, "max_worker", least) < least:
        raise InvalidRequest("max_worker cannot be less than min_worker.", field="max_worker")
    if whole(arguments, "max_worker", least) < 0:
        raise InvalidRequest("max_worker cannot be less than 0.", field="max_worker")
    least = _num_workers(arguments, "min_worker", 1)
    most = _num_workers(arguments, "max_worker", least)
    model = await find_model(front, name, version)
    _workers(front)[_full_name(model)] = (least, most)
    if not _is_synchronous(arguments, "false"):
        return 202, PROCESSING
    text = f"Workers scaled to {least} for model: {model['name']}"
    return 200, text + (f", version: {version}" if version is not None else "")


async def set_default(front: Front, name: str, version: str) -> str:
    """Make one version the default, and say so.

    Raises:
        MezzotintError: If there is no such model or version.
    """
    _changeable(front)
    try:
        await find_model(front, name, version)
    except ModelVersionNotFound:
        raise ModelVersionNotFound(
            f"Model version {version[:80]} does not exist for model {name[:200]}"
        ) from None
    await front.service.set_default(name, version)
    front.forget_models()
    return f'Default version successfully updated for model "{name}" to "{version}"'


async def list_models(front: Front, arguments: Mapping[str, str]) -> dict[str, Any]:
    """List the models by name, a page at a time.

    A page that ends where the list ends has a token too, as at TorchServe; what follows
    it is empty.

    Args:
        front: What the dialects share.
        arguments: ``limit`` (100 if it is none of 0 to 100) and ``next_page_token``.
    """
    size = whole(arguments, "limit", 100)
    size = size if 0 <= size <= 100 else 100
    first = max(0, whole(arguments, "next_page_token", 0))
    listed = [m for m in await front.service.models() if m["default"]]
    models = sorted(listed, key=lambda m: m["name"])
    body: dict[str, Any] = {}
    if first + size <= len(models):
        body["nextPageToken"] = str(first + size)
    body["models"] = [
        {"modelName": m["name"], "modelUrl": _url(front, m)} for m in models[first : first + size]
    ]
    return body


async def describe_model(
    front: Front, name: str, version: str | None, *, customized: bool = False
) -> list[dict[str, Any]]:
    """Describe a model: its default version (None), one version, or ``all``.

    Args:
        front: What the dialects share.
        name: Name of the model.
        version: Its version.
        customized: Whether to say what only this server knows of it, as TorchServe lets
            handlers do.

    Raises:
        MezzotintError: If there is no such model or version.
    """
    if version == "all":
        await find_model(front, name, None)
        models = [m for m in await front.service.models() if m["name"] == name]
    else:
        models = [await find_model(front, name, version)]
    health = await front.service.health()
    described = [_describe(front, m, health) for m in models]
    if customized:
        for about, model in zip(described, models, strict=True):
            known = {"family": model["family"], "digest": model["digest"]}
            about["customizedMetadata"] = {**known, "defaults": model.get("defaults", {})}
    return described


def _describe(front: Front, model: Mapping[str, Any], health: Mapping[str, Any]) -> dict[str, Any]:
    least, most = _workers(front).get(_full_name(model), (1, 1))
    said = _said_of(front, model)
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
        "modelUrl": _url(front, model),
        "engine": "Mezzotint",
        "runtime": said.runtime,
        "minWorkers": least,
        "maxWorkers": most,
        "batchSize": said.batch_size,
        "maxBatchDelay": said.max_batch_delay,
        "responseTimeout": said.response_timeout or int(front.config.limits.wait_s),
        "startupTimeout": said.startup_timeout or 600,
        "maxRetryTimeoutInSec": 300,
        "clientTimeoutInMills": 0,
        "parallelType": "",
        "parallelLevel": 0,
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
        "loadedAtStartup": _full_name(model) not in _registered(front),
        "workers": workers,
        "jobQueueStatus": {
            "remainingCapacity": max(0, 100 - waiting),
            "pendingRequests": waiting,
        },
    }


async def unregister(front: Front, name: str, version: str | None) -> str:
    """Remove a model (the default version if None), and say so.

    Raises:
        MezzotintError: If there is no such model or version, or it is the default one
            of several.
    """
    _changeable(front)
    model = await find_model(front, name, version)
    versions = [m for m in await front.service.models() if m["name"] == name]
    if model["default"] and len(versions) > 1:
        raise DefaultVersion(f"Cannot remove default version for model {name}")
    await front.service.unregister(name, model["version"])
    front.forget_models()
    _workers(front).pop(_full_name(model), None)
    _registered(front).pop(_full_name(model), None)
    return f'Model "{name}" unregistered'
