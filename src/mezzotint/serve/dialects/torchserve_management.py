"""TorchServe's management listener (8081) and metrics listener (8082): the HTTP side."""

import json
import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.serve.dialects import torchserve_models as models
from mezzotint.serve.errors import NothingHere, Unsupported
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Endpoint, json_response, media_type, read_form, read_json

__all__ = ["ENDPOINTS", "prometheus"]


async def _arguments(http: Request) -> dict[str, str]:
    """Read the arguments: from a JSON body alone if there is one, else query and form.

    Raises:
        InvalidRequest: If JSON has something else than a number or a truth where one
            belongs; in a query that counts as not given.
    """
    kind = media_type(http)
    if kind == "application/json":
        body = await read_json(http, optional=True)
        return {name: _text(name, value) for name, value in body.items() if value is not None}
    arguments = dict(http.query_params)
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        async with read_form(http) as form:
            arguments |= {k: v for k, v in form.items() if isinstance(v, str)}
    return arguments


def _text(name: str, value: Any) -> str:
    """Return an argument of a JSON body as a query would have it.

    Raises:
        InvalidRequest: If it cannot be what it should be; a text that is no truth is false.
    """
    text = value if isinstance(value, str) else json.dumps(value)
    kind = next((p["schema"]["type"] for p in _REGISTER if p["name"] == name), "string")
    is_wrong = {
        "integer": re.fullmatch(r"[+-]?[0-9]{1,10}", text, re.ASCII) is None,
        "boolean": not isinstance(value, (str, bool)),
    }
    if is_wrong.get(kind):
        raise InvalidRequest(f"{name} must be of type {kind}, got {text[:40]!r}", field=name)
    return text


def _status(text: str, status: int = 200) -> Response:
    return json_response({"status": text}, status, indent=True)


def _named(http: Request) -> tuple[str, str | None]:
    """Return the name and the version that the path has."""
    return http.path_params["model_name"], http.path_params.get("model_version")


async def register(front: Front, http: Request) -> Response:
    """Register a model."""
    status, text = await models.register(front, await _arguments(http))
    return _status(text, status)


async def scale(front: Front, http: Request) -> Response:
    """Set the number of workers of a model; the query alone says how many."""
    status, text = await models.scale(front, *_named(http), dict(http.query_params))
    return _status(text, status)


async def set_default(front: Front, http: Request) -> Response:
    """Make one version the default."""
    name, version = _named(http)
    return _status(await models.set_default(front, name, version or ""))


async def list_models(front: Front, http: Request) -> Response:
    """List the models."""
    body = await models.list_models(front, dict(http.query_params))
    return json_response(body, indent=True)


async def describe_model(front: Front, http: Request) -> Response:
    """Describe a model: its default version, one version, or all."""
    customized = http.query_params.get("customized", "").lower() == "true"
    described = await models.describe_model(front, *_named(http), customized=customized)
    return json_response(described, indent=True)


async def unregister(front: Front, http: Request) -> Response:
    """Remove a model."""
    return _status(await models.unregister(front, *_named(http)))


async def ready_v1(front: Front, http: Request) -> Response:
    """KServe v1: whether a model has workers, as TorchServe tells it on this listener."""
    model = await models.find_model(front, http.path_params["model_name"], None)
    body = {"name": model["name"], "ready": models.num_workers(front, model) > 0}
    return json_response(body, indent=True)


async def token(front: Front, http: Request) -> Response:
    """Refuse to issue a token: API keys, made by the operator, stand in their place."""
    if not front.memory.get("secured"):
        raise NothingHere("nothing is at '/token' of a server without keys")
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


def _parameter(name: str, kind: str, description: str, *, required: bool = False) -> dict[str, Any]:
    """Return a query parameter as an OpenAPI object."""
    schema = {"type": kind}
    return {"in": "query", "name": name, "description": description, "required": required,
            "schema": schema}  # fmt: skip


_PAGE = (
    _parameter("limit", "integer", "Models on a page, 0 to 100; 100 if it is something else."),
    _parameter("next_page_token", "integer", "Where the page begins, from the page before."),
)
_SYNCHRONOUS = _parameter(
    "synchronous",
    "boolean",
    "Whether to answer 200 once it is done, not 202 at once; registering does if it is not given.",
)
_TIMEOUT = _parameter("timeout", "integer", "Taken and not used: nothing is waited for.")
_SCALE = (
    _parameter("min_worker", "integer", "Workers at least; 0 takes the model out of service."),
    _parameter("max_worker", "integer", "Workers at most, not fewer than min_worker."),
    _parameter("number_gpu", "integer", "Taken and not used: the engine has its device."),
    _SYNCHRONOUS,
    _TIMEOUT,
)
_IGNORED = "Kept for the description, and not used: the engine batches by itself."
_REGISTER = (
    _parameter("url", "string", "Name of an archive or folder in the model store.", required=True),
    _parameter("model_name", "string", "Name to use in place of its own."),
    _parameter("handler", "string", "Taken and not used: an archive says what its code is."),
    _parameter("runtime", "string", "python, python3 or LSP; not used."),
    _parameter("batch_size", "integer", _IGNORED),
    _parameter("max_batch_delay", "integer", _IGNORED),
    _parameter("response_timeout", "integer", "Kept for the description: limits.wait_s counts."),
    _parameter("startup_timeout", "integer", "Kept for the description."),
    _parameter("initial_workers", "integer", "Workers to begin with; 0 if it is no number."),
    _SYNCHRONOUS,
    _parameter("s3_sse_kms", "boolean", "Taken and not used: nothing is downloaded."),
    _parameter("output", "string", "picture or array: what predictions answer if not asked."),
)
_ENDINGS = (_SYNCHRONOUS, _TIMEOUT)
_NAMES = (_parameter("name[]", "string", "Name of a metric; all of them if it is not given."),)
_MODEL = "/models/{model_name}"
_VERSION = "/models/{model_name}/{model_version}"


def _management(
    method: str,
    path: str,
    handler: Any,
    summary: str,
    operation: str,
    *,
    parameters: tuple[Mapping[str, Any], ...] = (),
) -> Endpoint:
    return Endpoint(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        listener="management",
        scope="manage",
        operation=operation,
        parameters=parameters,
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    _management("POST", "/models", register, "Register a model", "registerModel",
                parameters=_REGISTER),
    _management("GET", "/models", list_models, "List models", "listModels", parameters=_PAGE),
    _management("PUT", _VERSION + "/set-default", set_default, "Set the default", "setDefault"),
    _management("PUT", _MODEL, scale, "Scale the workers of a model", "setAutoScale",
                parameters=_SCALE),
    _management("PUT", _VERSION, scale, "Scale the workers of a version", "version_setAutoScale",
                parameters=_SCALE),
    _management("GET", _MODEL, describe_model, "Describe a model", "describeModel"),
    _management("GET", _VERSION, describe_model, "Describe a version", "version_describeModel"),
    _management("GET", "/token", token, "Not offered: API keys stand in their place", "token"),
    _management("DELETE", _MODEL, unregister, "Unregister a model", "unregisterModel",
                parameters=_ENDINGS),
    _management("DELETE", _VERSION, unregister, "Unregister a version", "version_unregisterModel",
                parameters=_ENDINGS),
    _management("GET", "/v1/models/{model_name}", ready_v1, "KServe v1: model readiness",
                "kserveReady"),
    *(
        Endpoint(
            method=method,
            path="/metrics",
            handler=prometheus,
            summary="Prometheus metrics",
            listener="metrics",
            scope="metrics",
            parameters=_NAMES,
            operation="metrics" if method == "GET" else "",
        )
        for method in ("GET", "POST")  # TorchServe takes any
    ),
)  # fmt: skip
