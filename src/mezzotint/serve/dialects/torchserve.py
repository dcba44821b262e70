"""TorchServe: its inference API, KServe v1 and the open inference protocol (WIRE, T1-T5).

``/predictions/{model}`` takes raw text, JSON or a form and answers the bytes of
a picture. ``number_of_images`` (the DCGAN example's parameter) answers a JPEG
grid. Errors are ``{"code", "type", "message"}`` with the Java names that
TorchServe's clients look for.
"""

import asyncio
import base64
import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.plain import exchange
from mezzotint.request import GenerationRequest, Output
from mezzotint.serve.dialects import torchserve_handlers as handlers
from mezzotint.serve.dialects.torchserve_models import ENDPOINTS, NoWorkers, find_model, num_workers
from mezzotint.serve.errors import Malformed, Problem, TooLarge, Unsupported
from mezzotint.serve.front import Front
from mezzotint.serve.schema import ANY_OBJECT, document
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Dialect,
    Endpoint,
    json_response,
    media_type,
    parse_json,
    read_form,
    read_json,
)
from mezzotint.service.base import HandlerAnswer
from mezzotint.types import GenerationResult, ImageInput, ImageOutput

__all__ = ["DIALECT", "error_body", "from_result", "to_request"]

GRID_COLUMNS = 8
_TEXT_NAMES = ("data", "body", "text", "prompt", "input")
_FASHIONGEN = ("input_gender", "input_category", "input_pose")
_TYPES: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "BadRequestException"),
    "unauthorized": (400, "InvalidKeyException"),
    "forbidden": (403, "IllegalArgumentException"),
    "refused": (403, "IllegalArgumentException"),
    "model_not_allowed": (403, "IllegalArgumentException"),
    "not_found": (404, "ResourceNotFoundException"),
    "model_not_found": (404, "ModelNotFoundException"),
    "version_not_found": (404, "ModelVersionNotFoundException"),
    "method_not_allowed": (405, "MethodNotAllowedException"),
    "body_too_slow": (408, "RequestTimeoutException"),
    "deadline_exceeded": (408, "RequestTimeoutException"),
    "conflict": (409, "ConflictStatusException"),
    "too_large": (413, "TooLongFrameException"),
    "too_many_requests": (429, "TooManyRequestsException"),
    "queue_full": (503, "ServiceUnavailableException"),
    "overloaded": (503, "ServiceUnavailableException"),
    "not_ready": (503, "ServiceUnavailableException"),
    "cancelled": (503, "InternalServerException"),
    "work_failed": (503, "InternalServerException"),
    "not_implemented": (501, "NotImplementedException"),
    "out_of_memory": (507, "InternalServerException"),
}
_SENTENCES = {
    "method_not_allowed": "Requested method is not allowed, please refer to API document.",
    "out_of_memory": "Out of resources",
}
_CAUSES: Mapping[str, tuple[int, str]] = {
    "ModelVersionNotFound": (404, "ModelVersionNotFoundException"),
    "DefaultVersion": (403, "InvalidModelVersionException"),
    "NoWorkers": (503, "ServiceUnavailableException"),
    "WorkerDied": (507, "InternalServerException"),
    "OutOfResources": (507, "InternalServerException"),
}


def to_request(model: str, body: Mapping[str, Any]) -> tuple[GenerationRequest, bool]:
    """Translate named parameters; the second answer is whether a grid is wanted.

    Raises:
        InvalidRequest: If a parameter is wrong or not known.
    """
    native = _unwrap(dict(body))
    for name in _FASHIONGEN:
        native.pop(name, None)
    wants_grid = "number_of_images" in native
    if wants_grid:
        native["num_images"] = _whole(native.pop("number_of_images"))
    if native.get("seed") == -1:
        native.pop("seed")
    native.pop("model", None)
    return GenerationRequest.from_dict({**native, "model": model}), wants_grid


def _unwrap(body: dict[str, Any]) -> dict[str, Any]:
    """Find the prompt under the names TorchServe's examples use, however nested."""
    for _ in range(4):
        inner = next((body[n] for n in ("data", "body") if isinstance(body.get(n), dict)), None)
        if inner is None:
            break
        body = {k: v for k, v in body.items() if k not in ("data", "body")} | inner
    for name in _TEXT_NAMES:
        if name in body and name != "prompt":
            text = body.pop(name)
            if isinstance(text, list) and len(text) == 1:
                text = text[0]
            if not isinstance(text, str):
                raise InvalidRequest(
                    f"{name} must be a text, got {type(text).__name__}", field=name
                )
            body.setdefault("prompt", text)
    return body


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value) else value


def from_result(result: GenerationResult) -> Response:
    """Answer with the bytes of one picture, or a JSON list of several."""
    if len(result.images) != 1:
        return json_response([_plain(i) for i in result.images], indent=True)
    image = result.images[0]
    headers = {"X-Seed": str(image.seed)}
    return Response(image.data, headers=headers, media_type=CONTENT_TYPES[image.format])


def _plain(image: ImageOutput) -> dict[str, Any]:
    return {
        "b64": base64.b64encode(image.data).decode("ascii"),
        "format": image.format,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
    }


def error_body(problem: Problem) -> dict[str, Any]:
    """Write an error as TorchServe does."""
    status, kind = _CAUSES.get(problem.cause) or _TYPES.get(problem.code) or (0, "")
    if not kind:
        client_error = problem.status in (400, 415, 422)
        bad = (400, "BadRequestException")
        status, kind = bad if client_error else (problem.status, "InternalServerException")
    message = _SENTENCES.get(problem.code, problem.detail)
    if problem.code == "model_not_found":
        message = f"Model not found: {problem.value}"
    elif problem.code == "not_found" and problem.detail.startswith("nothing is"):
        message = "Requested resource is not found, please refer to API document."
    elif problem.code == "work_failed":
        message = f"Prediction failed: {problem.detail}"
    return {"code": status, "type": kind, "message": message}


def _render(problem: Problem, request_id: str) -> Response:
    body = error_body(problem)
    return json_response(body, body["code"], headers={"Connection": "close"}, indent=True)


async def _parameters(http: Request) -> dict[str, Any]:
    """Read a body of any kind into named parameters."""
    kind = media_type(http)
    if http.method in ("GET", "DELETE") and not await http.body():
        return _typed(dict(http.query_params))
    if kind == "application/json" or kind.endswith("+json"):
        value = parse_json(await http.body())
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, str):
            return {"prompt": value}
        if not isinstance(value, dict):
            raise InvalidRequest("the body must be a JSON object or a text", field="body")
        return value
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _form(http)
    if kind.startswith("image/"):
        return {"image": ImageInput(await http.body())}
    try:
        return {"prompt": (await http.body()).decode("utf-8")}
    except UnicodeDecodeError:
        raise Malformed("the body must be text, JSON or a form") from None


async def _form(http: Request) -> dict[str, Any]:
    body: dict[str, Any] = {}
    async with read_form(http) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                body[name] = value
                continue
            data = await value.read()
            if name in _TEXT_NAMES:
                try:
                    body[name] = data.decode("utf-8")
                except UnicodeDecodeError:
                    raise Malformed(f"{name} must be a text file") from None
            else:
                body[name] = ImageInput(data)
    if len(body) == 1 and next(iter(body.values())) == "":  # curl -d "a prompt"
        return {"prompt": next(iter(body))}
    return _typed(body)


def _typed(body: dict[str, Any]) -> dict[str, Any]:
    """Read what a form or query can only say as text: numbers and objects as JSON."""
    texts = (*_TEXT_NAMES, "negative_prompt", "scheduler", "sigma_schedule", "seed", "model")
    typed: dict[str, Any] = {}
    for name, value in body.items():
        typed[name] = value
        if isinstance(value, str) and name not in texts and re.match(r"^[-\d\[{tf]", value):
            try:
                typed[name] = parse_json(value.encode())
            except Malformed:
                continue
    return typed


async def _resolve(
    front: Front, name: str, version: str | None, *, protocol: str = ""
) -> tuple[str, bool]:
    """Return the name to ask the service for, and whether it is handler code.

    Args:
        front: The desk.
        name: Name of the model.
        version: Its version, None for the default one.
        protocol: What refuses handler code, "" if it is welcome.

    Raises:
        NoWorkers: If the model has no workers at this door.
        Unsupported: If it is handler code and the protocol does not take it.
    """
    model = await find_model(front, name, version, recent=True)
    if not num_workers(front, model):
        raise NoWorkers(
            f'Model "{name}" has no worker to serve inference request. '
            "Please use scale workers API to add workers."
        )
    is_handler = handlers.is_handler(model)
    if is_handler and protocol:
        raise handlers.unsupported(protocol)
    return (name if version is None else f"{name}@{version}"), is_handler


async def predict(front: Front, http: Request) -> Response:
    """Make pictures: bytes, a JPEG grid, or JSON."""
    params = http.path_params
    name = params.get("model") or http.query_params.get("model_name", "")
    model, is_handler = await _resolve(front, name, params.get("version"))
    if is_handler:
        return handlers.answer((await handlers.run(front, http, model))[0])
    body = await _parameters(http)
    body.pop("model_name", None)
    if isinstance(body.get("instances"), list):
        return await _predict_v1(front, http, model, body)
    request, wants_grid = to_request(model, body)
    if not wants_grid:
        result = await front.generate(http, request)
        if "application/json" in http.headers.get("accept", ""):
            return json_response([_plain(i) for i in result.images], indent=True)
        return from_result(result)
    output = Output(format="jpeg", quality=95)
    if request.num_pictures == 1:  # torchvision frames no single picture; it keeps its recipe
        return from_result(await front.generate(http, exchange(request, output=output)))
    raw = replace(request, output=Output(format="png", metadata=False))
    result = await front.generate(http, raw)
    grid = await front.service.grid(
        [i.data for i in result.images], columns=GRID_COLUMNS, padding_px=2, output=output
    )
    headers = {"X-Seed": str(result.images[0].seed)}
    return Response(grid, headers=headers, media_type="image/jpeg")


async def explain(front: Front, http: Request) -> Response:
    """Explain nothing: a generator has no attributions."""
    await find_model(front, http.path_params["model"], http.path_params.get("version"))
    raise Unsupported("explanations are not offered: these models generate pictures")


async def predict_v1(front: Front, http: Request) -> Response:
    """KServe v1: one prediction for each instance."""
    model, is_handler = await _resolve(front, http.path_params["model"], None)
    body = await read_json(http)
    if is_handler:
        rows = [{"body": instance} for instance in _instances(front, body)]
        made = await handlers.run(front, http, model, rows)
        return json_response({"predictions": [_prediction(one) for one in made]}, indent=True)
    return await _predict_v1(front, http, model, body)


def _instances(front: Front, body: Mapping[str, Any]) -> list[Any]:
    """Return the instances of a KServe v1 body.

    Raises:
        InvalidRequest: If there are none.
        TooLarge: If there are too many.
    """
    instances = body.get("instances")
    if not isinstance(instances, list) or not instances:
        raise InvalidRequest("instances must be a list with at least one entry", field="instances")
    most = front.config.limits.images
    if len(instances) > most:
        raise TooLarge(
            f"instances has {len(instances)} entries, at most {most} in one request",
            field="instances",
            value=len(instances),
            allowed=f"at most {most}",
        )
    return instances


def _prediction(made: HandlerAnswer) -> Any:
    """Return what handler code answered as JSON: itself, text, or base64 of bytes."""
    if made.content_type.startswith("application/json"):
        with contextlib.suppress(Malformed):
            return parse_json(made.data)
    with contextlib.suppress(UnicodeDecodeError):
        return made.data.decode("utf-8")
    return {"b64": base64.b64encode(made.data).decode("ascii")}


async def _predict_v1(front: Front, http: Request, model: str, body: Mapping[str, Any]) -> Response:
    instances = _instances(front, body)
    requests: list[GenerationRequest] = []
    for position, instance in enumerate(instances):
        row = {"prompt": instance} if isinstance(instance, str) else instance
        if not isinstance(row, dict):
            raise InvalidRequest(
                f"instances[{position}] must be a text or an object", field="instances"
            )
        requests.append(to_request(model, row)[0])
    results = await _together(front, http, requests)
    predictions: list[Any] = []
    for result in results:
        plain = [_plain(i) for i in result.images]
        predictions.append(plain[0] if len(plain) == 1 else plain)
    return json_response({"predictions": predictions}, indent=True)


async def _together(
    front: Front, http: Request, requests: Sequence[GenerationRequest]
) -> list[GenerationResult]:
    """Run several requests at once, so that they share the engine's batches."""
    most = front.config.limits.images
    count = sum(r.num_images for r in requests)
    if count > most:
        raise TooLarge(
            f"instances ask for {count} pictures, at most {most} in one request",
            field="instances",
            value=count,
            allowed=f"at most {most}",
        )
    if len(requests) == 1:
        return [await front.generate(http, requests[0])]

    async def run(request: GenerationRequest) -> GenerationResult:
        return await front.finish(front.stream(http, request, quiet=True))

    async def run_all() -> list[GenerationResult]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(r)) for r in requests]
        return [t.result() for t in tasks]

    try:
        return await front.watched(http, run_all())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


async def live_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: whether the server lives."""
    return json_response({"live": True})


async def ready_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: whether the server is ready."""
    ready = bool((await front.service.health()).get("ready")) and not front.draining
    return json_response({"ready": ready}, 200 if ready else 503)


async def metadata_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: the server's metadata, TorchServe's spelling included."""
    extensions = ["kserve", "kubeflow"]
    return json_response(
        {
            "name": "mezzotint",
            "version": front.memory.get("version", ""),
            "extensions": extensions,
            "extenstion": extensions,
        }
    )


_TENSORS = {
    "inputs": [
        {"name": "prompt", "datatype": "BYTES", "shape": [-1]},
        {"name": "seed", "datatype": "UINT64", "shape": [-1]},
    ],
    "outputs": [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "seed", "datatype": "UINT64", "shape": [-1]},
    ],
}


async def model_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: a model's metadata."""
    name = http.path_params["model"]
    await find_model(front, name, None)
    versions = [m["version"] for m in await front.service.models() if m["name"] == name]
    return json_response(
        {"name": name, "versions": versions, "platform": "mezzotint_pytorch", **_TENSORS}
    )


async def model_ready_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: whether a model is ready."""
    name = http.path_params["model"]
    model = await find_model(front, name, None)
    ready = bool(model["ready"]) and num_workers(front, model) > 0
    return json_response({"name": name, "ready": ready}, 200 if ready else 503)


async def model_version_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: versions, which TorchServe does not offer either."""
    raise Unsupported("versions are not offered here; use /v2/models/{model}")


async def infer_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: one row of every input tensor is one request."""
    name = http.path_params["model"]
    model, _ = await _resolve(front, name, None, protocol="the open inference protocol")
    body = await read_json(http)
    rows = _rows(body)
    results = await _together(front, http, [to_request(model, row)[0] for row in rows])
    images = [image for result in results for image in result.images]
    version = (await find_model(front, name, None))["version"]
    return json_response(
        {
            "id": str(body.get("id", "") or results[0].id),
            "model_name": name,
            "model_version": version,
            "outputs": [
                {
                    "name": "image",
                    "shape": [len(images)],
                    "datatype": "BYTES",
                    "parameters": {"content_type": "base64", "format": images[0].format},
                    "data": [_plain(i)["b64"] for i in images],
                },
                {
                    "name": "seed",
                    "shape": [len(images)],
                    "datatype": "UINT64",
                    "data": [i.seed for i in images],
                },
            ],
        }
    )


def _rows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turn named tensors into one set of parameters for each row."""
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidRequest("inputs must be a list of tensors", field="inputs")
    common = body.get("parameters") or {}
    if not isinstance(common, dict):
        raise InvalidRequest("parameters must be an object", field="parameters")
    columns: dict[str, list[Any]] = {}
    for position, tensor in enumerate(inputs):
        where = f"inputs[{position}]"
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise InvalidRequest(f"{where} must be an object with a name", field=where)
        data = tensor.get("data")
        if not isinstance(data, list) or not data:
            raise InvalidRequest(f"{where}.data must be a list with values", field=f"{where}.data")
        while len(data) == 1 and isinstance(data[0], list) and data[0]:
            data = data[0]  # shape [1, n]
        columns[tensor["name"]] = data
    lengths = {name: len(data) for name, data in columns.items()}
    rows = max(lengths.values())
    if any(length not in (1, rows) for length in lengths.values()):
        raise InvalidRequest(f"inputs must have one length, got {lengths}", field="inputs")
    return [
        {**common, **{n: d[k] if len(d) > 1 else d[0] for n, d in columns.items()}}
        for k in range(rows)
    ]


async def ping(front: Front, http: Request) -> Response:
    """Tell whether every model can be used."""
    ready = bool((await front.service.health()).get("ready")) and not front.draining
    status = "Healthy" if ready else "Unhealthy"
    return json_response({"status": status}, 200 if ready else 500, indent=True)


async def options(front: Front, http: Request) -> Response:
    """Describe this API as OpenAPI."""
    shown = [e for e in DIALECT.endpoints if e.listener != "metrics"]
    model = http.path_params.get("model")
    if model is not None:
        await find_model(front, model, None)
        shown = [e for e in shown if e.path == "/predictions/{model}"]
    body = document(shown, title="TorchServe APIs", version=front.memory.get("version", ""))
    return json_response({**body, "openapi": "3.0.1"}, indent=True)


def _endpoints() -> tuple[Endpoint, ...]:
    pictures = {kind: {} for kind in CONTENT_TYPES.values()}
    plain = {"application/json": ANY_OBJECT}

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)

    def predictions(path: str) -> tuple[Endpoint, ...]:
        return tuple(
            endpoint(m, path, predict, "TorchServe: make pictures", answers={**pictures, **plain})
            for m in ("POST", "PUT", "GET", "DELETE", "PATCH")  # TorchServe takes any
        )

    v1 = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": {"type": "array"}},
    }
    v2 = {"type": "object", "required": ["inputs"], "properties": {"inputs": {"type": "array"}}}
    return (
        endpoint("GET", "/ping", ping, "TorchServe: health", scope=None),
        endpoint("OPTIONS", "/", options, "TorchServe: this API", scope=None),
        endpoint(
            "OPTIONS", "/", options, "TorchServe: this API", scope=None, listener="management"
        ),
        endpoint("OPTIONS", "/predictions/{model}", options, "TorchServe: a model's API",
                 scope=None),
        *predictions("/predictions/{model}"),
        *predictions("/predictions/{model}/{version}"),
        endpoint("POST", "/invocations", predict, "SageMaker: make pictures", answers=pictures),
        endpoint("POST", "/models/{model}/invoke", predict, "SageMaker: make pictures",
                 answers=pictures),
        endpoint("POST", "/explanations/{model}", explain, "TorchServe: not offered"),
        endpoint("POST", "/explanations/{model}/{version}", explain, "TorchServe: not offered"),
        endpoint("POST", "/v1/models/{model}:predict", predict_v1, "KServe v1: make pictures",
                 body=v1, answers=plain),
        endpoint("POST", "/v1/models/{model}:explain", explain, "KServe v1: not offered"),
        endpoint("GET", "/v2", metadata_v2, "OIP: server metadata", scope=None),
        endpoint("GET", "/v2/health/live", live_v2, "OIP: liveness", scope=None),
        endpoint("GET", "/v2/health/ready", ready_v2, "OIP: readiness", scope=None),
        endpoint("GET", "/v2/models/{model}", model_v2, "OIP: model metadata"),
        endpoint("GET", "/v2/models/{model}/ready", model_ready_v2, "OIP: model readiness"),
        endpoint("GET", "/v2/models/{model}/versions/{rest:path}", model_version_v2,
                 "OIP: not offered"),
        endpoint("POST", "/v2/models/{model}/versions/{rest:path}", model_version_v2,
                 "OIP: not offered"),
        endpoint("POST", "/v2/models/{model}/infer", infer_v2, "OIP: make pictures", body=v2,
                 answers=plain),
        *ENDPOINTS,
    )  # fmt: skip


DIALECT = Dialect(
    name="torchserve",
    pattern=re.compile(
        r"^/(ping|predictions|explanations|invocations|models|v2)(/|$)|^/v1/models/[^/]+:"
    ),
    endpoints=_endpoints(),
    render=_render,
)
