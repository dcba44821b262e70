"""KServe: its v1 predictions and the open inference protocol (v2), as TorchServe speaks them."""

import asyncio
import base64
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidField
from mezzotint.plain import is_dict, is_list
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects import torchserve_handlers as handlers
from mezzotint.serve.dialects.inference.binary import read_inference
from mezzotint.serve.dialects.inference.bodies import TENSORS, V2, answer, read_asked
from mezzotint.serve.dialects.torchserve_models import find_model, num_workers
from mezzotint.serve.dialects.torchserve_requests import (
    INSTANCE,
    PARAMETERS,
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

__all__ = ["V1", "V1_ENDPOINT", "V2_ENDPOINTS", "answer_v1"]


async def predict_v1(front: Front, http: Request) -> Response:
    """KServe v1: one prediction for each instance."""
    target = await resolve(front, http.path_params["model_name"], None)
    model = target.name
    body = await read_json(http, untyped=True)
    if target.is_handler:
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
    if not is_list(instances) or not instances:
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
        if not is_dict(row):
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
    extensions = ["kserve", "kubeflow", "binary_tensor_data"]
    return json_response(
        {
            "name": "mezzotint",
            "version": front.memory.get("version", ""),
            "extensions": extensions,
            "extenstion": extensions,
        }
    )


def _named(http: Request) -> tuple[str, str | None]:
    """Return the name and the version (None: the default one) that the path has."""
    return http.path_params["model_name"], http.path_params.get("model_version")


async def model_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: metadata of a model, or of one version of it."""
    name, version = _named(http)
    await find_model(front, name, version)
    versions = [m["version"] for m in await front.service.models() if m["name"] == name]
    return json_response(
        {"name": name, "versions": versions, "platform": "mezzotint_pytorch", **TENSORS}
    )


async def model_ready_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: whether a model, or one version of it, is ready."""
    name, version = _named(http)
    model = await find_model(front, name, version)
    ready = bool(model["ready"]) and num_workers(front, model) > 0
    return json_response({"name": name, "ready": ready}, 200 if ready else 503)


async def infer_v2(front: Front, http: Request) -> Response:
    """Open inference protocol: one row of every input tensor is one request."""
    name, asked_version = _named(http)
    protocol = "the open inference protocol"
    model = (await resolve(front, name, asked_version, protocol=protocol)).name
    asked = read_asked(await read_inference(http))
    results = await _together(front, http, [to_request(model, row)[0] for row in asked.rows])
    images = [image for result in results for image in result.images]
    version = asked_version or (await find_model(front, name, None))["version"]
    message = {
        "id": asked.id or results[0].id,
        "model_name": name,
        "model_version": version,
    }
    return answer(message, asked, images)


def _v1(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a KServe v1 body."""
    instances = {"type": "array", "minItems": 1, "items": INSTANCE}
    return {"type": "object", "required": ["instances"], "properties": {"instances": instances}}


V1 = Body("KServeV1", _v1, (PARAMETERS,))


def _endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
    return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)


_PLAIN: Mapping[str, Mapping[str, Any]] = {"application/json": ANY_OBJECT}
_ROOT = "/v2/models/{model_name}"

V1_ENDPOINT = _endpoint("POST", "/v1/models/{model_name}:predict", predict_v1,
                        "KServe v1: make pictures", body=V1, answers=_PLAIN)  # fmt: skip
V2_ENDPOINTS = (
    _endpoint("GET", "/v2", metadata_v2, "OIP: server metadata", scope=None),
    _endpoint("GET", "/v2/health/live", live_v2, "OIP: liveness", scope=None),
    _endpoint("GET", "/v2/health/ready", ready_v2, "OIP: readiness", scope=None),
    *(
        one
        for path in (_ROOT, _ROOT + "/versions/{model_version}")
        for one in (
            _endpoint("GET", path, model_v2, "OIP: model metadata"),
            _endpoint("GET", path + "/ready", model_ready_v2, "OIP: model readiness"),
            _endpoint("POST", path + "/infer", infer_v2, "OIP: make pictures", body=V2,
                      answers={**_PLAIN, "application/octet-stream": {}}),
        )
    ),
)  # fmt: skip
