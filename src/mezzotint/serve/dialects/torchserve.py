"""TorchServe: its inference API, KServe v1 and the open inference protocol (WIRE, T1-T5).

``/predictions/{model_name}`` takes raw text, JSON or a form and answers the bytes of
a picture. ``number_of_images`` (the DCGAN example's parameter) answers a JPEG
grid. Errors are ``{"code", "type", "message"}`` with the Java names that
TorchServe's clients look for.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.plain import exchange
from mezzotint.request import Output
from mezzotint.serve import arrays
from mezzotint.serve.browsers import refuse_drawing_by_get
from mezzotint.serve.dialects import kserve, torchserve_workflows
from mezzotint.serve.dialects import torchserve_handlers as handlers
from mezzotint.serve.dialects.inference import repository
from mezzotint.serve.dialects.torchserve_management import ENDPOINTS
from mezzotint.serve.dialects.torchserve_models import find_model
from mezzotint.serve.dialects.torchserve_requests import (
    FORM,
    INSTANCE,
    PARAMETERS,
    parameter_schemas,
    plain_picture,
    read_parameters,
    resolve,
    to_request,
)
from mezzotint.serve.errors import Problem, Unsupported
from mezzotint.serve.front import Front
from mezzotint.serve.schema import ANY_OBJECT, document
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Body,
    Dialect,
    Endpoint,
    Listener,
    any_bytes,
    json_response,
    visit,
)
from mezzotint.types import GenerationResult

__all__ = ["DIALECT", "OIP", "error_body", "from_result", "to_request"]

GRID_COLUMNS = 8
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
    "in_use": (409, "ConflictStatusException"),
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
    "ModelNotFound": (404, "ModelNotFoundException"),
    "WorkflowNotFound": (404, "WorkflowNotFoundException"),
    "InvalidModel": (400, "InvalidModelException"),
    "DownloadFailed": (400, "DownloadArchiveException"),
    "DefaultVersion": (403, "InvalidModelVersionException"),
    "NoWorkers": (503, "ServiceUnavailableException"),
    "WorkerDied": (507, "InternalServerException"),
    "OutOfResources": (507, "InternalServerException"),
}


def from_result(result: GenerationResult) -> Response:
    """Answer with the bytes of one picture, or a JSON list of several."""
    if len(result.images) != 1:
        return json_response([plain_picture(i) for i in result.images], indent=True)
    image = result.images[0]
    headers = {"X-Seed": str(image.seed)}
    return Response(image.data, headers=headers, media_type=CONTENT_TYPES[image.format])


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
    return _refused(error_body(problem))


def _render_v2(problem: Problem, request_id: str) -> Response:
    """Write an error for clients of the open inference protocol too: they read ``error``."""
    body = error_body(problem)
    return _refused({**body, "error": body["message"]})


def _refused(body: Mapping[str, Any]) -> Response:
    return json_response(body, body["code"], headers={"Connection": "close"}, indent=True)


async def predict(front: Front, http: Request) -> Response:
    """Make pictures: bytes, a JPEG grid, or JSON."""
    refuse_drawing_by_get(http.method, http.headers)
    params = http.path_params
    name = params.get("model_name") or http.query_params.get("model_name", "")
    if not name:
        raise InvalidRequest("Parameter model_name is required.", field="model_name")
    target = await resolve(front, name, params.get("model_version"))
    model = target.name
    if target.is_handler:
        return handlers.answer((await handlers.run(front, http, model))[0])
    body = await read_parameters(http)
    body.pop("model_name", None)
    if isinstance(body.get("instances"), list):
        return await kserve.answer_v1(front, http, model, body)
    wants_array = body.get("output") == "array"
    if wants_array:
        del body["output"]
    request, wants_grid = to_request(model, body)
    accepts = http.headers.get("accept", "")
    is_asked = "output" in body or wants_grid or "image/" in accepts
    if wants_array or (target.answers_array and not is_asked):
        raw = replace(request, output=Output(format="png", metadata=False))
        return await arrays.answer(front, await front.generate(http, raw))
    if not wants_grid:
        result = await front.generate(http, request)
        if "application/json" in accepts:
            return json_response([plain_picture(i) for i in result.images], indent=True)
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
    await find_model(front, http.path_params["model_name"], http.path_params.get("model_version"))
    raise Unsupported("explanations are not offered: these models generate pictures")


async def ping(front: Front, http: Request) -> Response:
    """Tell whether every model can be used."""
    ready = bool((await front.service.health()).get("ready")) and not front.draining
    status = "Healthy" if ready else "Unhealthy"
    return json_response({"status": status}, 200 if ready else 500, indent=True)


async def options(front: Front, http: Request) -> Response:
    """Describe the API of this listener, or the part of one model, as OpenAPI."""
    listener = visit(http).listener
    shown = [e for d in (DIALECT, OIP) for e in d.endpoints if e.listener == listener]
    name = http.path_params.get("model_name")
    if name is not None:
        await find_model(front, name, None)
        root = "/models/{model_name}" if listener == "management" else "/predictions/{model_name}"
        shown = [e for e in shown if e.path.startswith(root) and e.method != "OPTIONS"]
    body = document(
        shown,
        limits=front.config.limits.ends,
        title=_title(listener, name),
        version=front.memory.get("version", ""),
    )
    return json_response({**body, "openapi": "3.0.1"}, indent=True)


def _title(listener: str, name: str | None) -> str:
    """Return what TorchServe calls its description, or that of a model."""
    if name is None:
        return "TorchServe APIs"
    return f"RESTful {'Management ' * (listener == 'management')}API for: {name[:200]}"


def _prediction(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a prediction as JSON: one request, or a KServe v1 body."""
    properties: dict[str, Any] = {**parameter_schemas(limits), "model_name": {}}
    named: dict[str, Any] = {"type": "object", "properties": properties}
    named["additionalProperties"] = False
    one: dict[str, Any] = {"anyOf": [*INSTANCE["anyOf"][:1], named, kserve.V1.reference]}
    return {"anyOf": [*one["anyOf"], {"type": "array", "items": one, "minItems": 1, "maxItems": 1}]}


def _text(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a prediction as a text."""
    return parameter_schemas(limits)["prompt"]


_OTHERS = (*FORM.also, ("image/*", any_bytes), ("text/plain", _text))
PREDICTION = Body("Prediction", _prediction, (PARAMETERS, kserve.V1), required=False, also=_OTHERS)


def _endpoints() -> tuple[Endpoint, ...]:
    pictures: dict[str, dict[str, Any]] = {kind: {} for kind in CONTENT_TYPES.values()}
    plain = {"application/json": ANY_OBJECT}

    def endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
        return Endpoint(method=method, path=path, handler=handler, summary=summary, **more)

    def predictions(path: str, operation: str) -> tuple[Endpoint, ...]:
        return tuple(
            endpoint(
                m,
                path,
                predict,
                "TorchServe: make pictures",
                body=PREDICTION if m in ("POST", "PUT", "PATCH") else None,
                answers={**pictures, **plain},
                operation=operation if m == "POST" else "",
            )
            for m in ("POST", "PUT", "GET", "DELETE", "PATCH")  # TorchServe takes any
        )

    listeners: tuple[Listener, ...] = ("generation", "management", "metrics")
    descriptions = tuple(
        endpoint(method, path, options, "TorchServe: this API", scope=None, listener=listener,
                 operation=operation)
        for listener in listeners
        for method, path, operation in (
            ("OPTIONS", "/", "apiDescription"),
            ("GET", "/api-description", "api-description"),
            ("POST", "/api-description", ""),
        )
    )  # fmt: skip
    return (
        endpoint("GET", "/ping", ping, "TorchServe: health", scope=None, operation="ping"),
        endpoint("POST", "/ping", ping, "TorchServe: health", scope=None),
        *descriptions,
        endpoint("OPTIONS", "/predictions/{model_name}", options, "TorchServe: a model's API",
                 scope=None),
        endpoint("OPTIONS", "/models/{model_name}", options, "TorchServe: a model's API",
                 scope="manage", listener="management"),
        *predictions("/predictions/{model_name}", "predictions"),
        *predictions("/predictions/{model_name}/{model_version}", "version_predictions"),
        endpoint("POST", "/predictions/{model_name}/{model_version}/{rest:path}", predict,
                 "TorchServe: make pictures", body=PREDICTION, answers=pictures),
        endpoint("POST", "/{model_name}/predict", predict, "TorchServe: make pictures",
                 body=PREDICTION, answers=pictures),
        endpoint("POST", "/{model_name}/{model_version}/predict", predict,
                 "TorchServe: make pictures", body=PREDICTION, answers=pictures),
        endpoint("POST", "/invocations", predict, "SageMaker: make pictures", body=PREDICTION,
                 answers=pictures),
        endpoint("POST", "/models/{model_name}/invoke", predict, "SageMaker: make pictures",
                 body=PREDICTION, answers=pictures),
        endpoint("POST", "/explanations/{model_name}", explain, "TorchServe: not offered"),
        endpoint("POST", "/explanations/{model_name}/{model_version}", explain,
                 "TorchServe: not offered"),
        endpoint("POST", "/v1/models/{model_name}:explain", explain, "KServe v1: not offered"),
        kserve.V1_ENDPOINT,
        *ENDPOINTS,
        *torchserve_workflows.ENDPOINTS,
    )  # fmt: skip


DIALECT = Dialect(
    name="torchserve",
    pattern=re.compile(
        r"^/(ping|predictions|explanations|invocations|api-description|wfpredict)(/|$)"
        r"|^/models/[^/]+/invoke/?$|^/v1/models/[^/]+:|^/[^/]+(/[^/]+)?/predict/?$"
    ),
    endpoints=_endpoints(),
    render=_render,
)

OIP = Dialect(
    name="torchserve",
    pattern=re.compile(r"^/v2(/|$)"),
    endpoints=(*kserve.V2_ENDPOINTS, *repository.ENDPOINTS),
    render=_render_v2,
)
"""The open inference protocol: TorchServe's paths and errors, with the protocol's own ``error``."""
