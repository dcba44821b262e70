"""KServe: its v1 predictions and the open inference protocol (v2), as TorchServe speaks them."""

import asyncio
import base64
import contextlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.plain import field_types
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects import torchserve_handlers as handlers
from mezzotint.serve.dialects.torchserve_models import find_model, num_workers
from mezzotint.serve.dialects.torchserve_requests import (
    INSTANCE,
    PARAMETERS,
    parameter_schemas,
    plain_picture,
    resolve,
    to_request,
)
from mezzotint.serve.errors import Malformed, TooLarge
from mezzotint.serve.front import Front
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.wire import Body, Endpoint, json_response, parse_json, read_json
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.endings import follow
from mezzotint.types import GenerationResult

__all__ = ["V1", "answer_v1", "endpoints"]


async def predict_v1(front: Front, http: Request) -> Response:
    """KServe v1: one prediction for each instance."""
    model, is_handler = await resolve(front, http.path_params["model_name"], None)
    body = await read_json(http, untyped=True)
    if is_handler:
        rows = [{"body": instance} for instance in _instances(front, body)]
        made = await handlers.run(front, http, model, rows)
        return json_response({"predictions": [_prediction(one) for one in made]}, indent=True)
    return await answer_v1(front, http, model, body)


def _instances(front: Front, body: Mapping[str, Any]) -> list[Any]:
    """Return the instances of a KServe v1 body.

    Raises:
        InvalidRequest: If there are none.
        TooLarge: If there are too many.
    """
    instances = body.get("instances")
    if not isinstance(instances, list) or not instances:
        raise InvalidField("instances must be a list with at least one entry", field="instances")
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


async def answer_v1(front: Front, http: Request, model: str, body: Mapping[str, Any]) -> Response:
    """Answer a KServe v1 body with one prediction for each instance."""
    instances = _instances(front, body)
    requests: list[GenerationRequest] = []
    for position, instance in enumerate(instances):
        row = {"prompt": instance} if isinstance(instance, str) else instance
        if not isinstance(row, dict):
            raise InvalidField(
                f"instances[{position}] must be a text or an object", field="instances"
            )
        requests.append(to_request(model, row)[0])
    results = await _together(front, http, requests)
    predictions: list[Any] = []
    for result in results:
        plain = [plain_picture(i) for i in result.images]
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
        return await follow(front.stream(http, request, quiet=True))

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


def _named(http: Request) -> tuple[str, str | None]:
    """Return the name and the version (None: the default one) that the path has."""
    return http.path_params["model_name"], http.path_params.get("model_version")


async def model_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: metadata of a model, or of one version of it."""
    name, version = _named(http)
    await find_model(front, name, version)
    versions = [m["version"] for m in await front.service.models() if m["name"] == name]
    return json_response(
        {"name": name, "versions": versions, "platform": "mezzotint_pytorch", **_TENSORS}
    )


async def model_ready_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: whether a model, or one version of it, is ready."""
    name, version = _named(http)
    model = await find_model(front, name, version)
    ready = bool(model["ready"]) and num_workers(front, model) > 0
    return json_response({"name": name, "ready": ready}, 200 if ready else 503)


async def infer_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: one row of every input tensor is one request."""
    name, asked = _named(http)
    model, _ = await resolve(front, name, asked, protocol="the open inference protocol")
    body = await read_json(http, untyped=True)
    rows = _rows(body)
    results = await _together(front, http, [to_request(model, row)[0] for row in rows])
    images = [image for result in results for image in result.images]
    version = asked or (await find_model(front, name, None))["version"]
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
                    "data": [plain_picture(i)["b64"] for i in images],
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
        raise InvalidField("inputs must be a list of tensors", field="inputs")
    common = body.get("parameters")
    common = {} if common is None else common
    if not isinstance(common, dict):
        raise InvalidField("parameters must be an object", field="parameters")
    columns: dict[str, list[Any]] = {}
    for position, tensor in enumerate(inputs):
        where = f"inputs[{position}]"
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise InvalidField(f"{where} must be an object with a name", field=where)
        name, data = tensor["name"], tensor.get("data")
        if not isinstance(data, list) or not data:
            raise InvalidField(f"{where}.data must be a list with values", field=f"{where}.data")
        if name in columns or name in common:
            raise InvalidRequest(f"{name} is given twice", field=where)
        columns[name] = _flat(name, data)
    lengths = {name: len(data) for name, data in columns.items()}
    rows = max(lengths.values())
    if any(length not in (1, rows) for length in lengths.values()):
        raise InvalidRequest(f"inputs must have one length, got {lengths}", field="inputs")
    return [
        {**common, **{n: d[k] if len(d) > 1 else d[0] for n, d in columns.items()}}
        for k in range(rows)
    ]


def _flat(name: str, data: list[Any]) -> list[Any]:
    """Return the values of a tensor of shape [n] or [1, n]; those of lists have shape [n]."""
    has_lists = typing.get_origin(field_types(GenerationRequest).get(name)) is tuple
    if len(data) == 1 and isinstance(data[0], list) and data[0] and not has_lists:
        return typing.cast("list[Any]", data[0])
    return data


def _v1(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a KServe v1 body."""
    instances = {"type": "array", "minItems": 1, "items": INSTANCE}
    return {"type": "object", "required": ["instances"], "properties": {"instances": instances}}


def _v2(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a body of the open inference protocol."""
    tensors = [_tensor(name, schema) for name, schema in parameter_schemas(limits).items()]
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "array", "minItems": 1, "items": {"anyOf": tensors}},
            "parameters": {"anyOf": [PARAMETERS.reference, {"type": "null"}]},
        },
    }


def _tensor(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of the tensor of one parameter."""
    values = {"type": "array", "minItems": 1, "items": schema}
    shapes = [values]
    if schema.get("type") != "array":
        shapes.append({"type": "array", "minItems": 1, "maxItems": 1, "items": values})
    return {
        "type": "object",
        "required": ["name", "data"],
        "properties": {"name": {"const": name}, "data": {"anyOf": shapes}},
    }


V1 = Body("KServeV1", _v1, (PARAMETERS,))
V2 = Body("KServeV2", _v2, (PARAMETERS,))


def endpoints() -> tuple[Endpoint, ...]:
    """Return the endpoints of both protocols."""
    plain = {"application/json": ANY_OBJECT}
    root = "/v2/models/{model_name}"

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)

    return (
        endpoint("POST", "/v1/models/{model_name}:predict", predict_v1, "KServe v1: make pictures",
                 body=V1, answers=plain),
        endpoint("GET", "/v2", metadata_v2, "OIP: server metadata", scope=None),
        endpoint("GET", "/v2/health/live", live_v2, "OIP: liveness", scope=None),
        endpoint("GET", "/v2/health/ready", ready_v2, "OIP: readiness", scope=None),
        *(
            one
            for path in (root, root + "/versions/{model_version}")
            for one in (
                endpoint("GET", path, model_v2, "OIP: model metadata"),
                endpoint("GET", path + "/ready", model_ready_v2, "OIP: model readiness"),
                endpoint("POST", path + "/infer", infer_v2, "OIP: make pictures", body=V2,
                         answers=plain),
            )
        ),
    )  # fmt: skip
