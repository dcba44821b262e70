"""Hugging Face: the inference API as ``huggingface_hub.InferenceClient`` calls it.

``POST /hf/{model}`` takes ``{"inputs", "parameters"}`` and answers the bytes of
one picture. With a picture as ``inputs`` (base64, or raw bytes as the body) it is
image to image, and the prompt is a parameter.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import ImageError, InvalidRequest, UnknownName
from mezzotint.request import GenerationRequest
from mezzotint.serve.errors import Problem
from mezzotint.serve.front import Front
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Body,
    Dialect,
    Endpoint,
    Fields,
    json_response,
    media_type,
    read_json,
)
from mezzotint.types import GenerationResult, ImageInput

__all__ = ["DIALECT", "error_body", "from_result", "to_request"]

_PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_TASKS = ("inputs", "parameters", "options", "extra_body")


def to_request(model: str, body: Mapping[str, Any]) -> GenerationRequest:
    """Translate a body.

    Raises:
        InvalidRequest: If a field is wrong; parameters are named ``parameters.x``.
    """
    fields = Fields(body)
    inputs = fields.take("inputs", str)
    if inputs is None:
        raise InvalidRequest("inputs is needed: the prompt, or a picture as base64", field="inputs")
    parameters = fields.rest().get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise InvalidRequest("parameters must be an object", field="parameters")
    fields.drop("parameters", "options")
    fields.refuse_rest(_TASKS)
    native: dict[str, Any] = {k: v for k, v in parameters.items() if v is not None}
    size = native.pop("target_size", None)
    if size is not None:
        if not isinstance(size, Mapping) or not size.keys() <= {"width", "height"}:
            raise InvalidRequest(
                "parameters.target_size must be {width, height}", field="parameters.target_size"
            )
        native |= size
    if "num_images_per_prompt" in native:
        native["num_images"] = native.pop("num_images_per_prompt")
    if "prompt" in native or _is_picture(inputs):
        native["image"] = ImageInput.from_base64(inputs, field="inputs")
    else:
        native["prompt"] = inputs
    if "model" in native:
        raise UnknownName(
            "field", "parameters.model", GenerationRequest.__dataclass_fields__,
            field="parameters.model",
        )  # fmt: skip
    request = GenerationRequest.from_dict({**native, "model": model})
    if request.num_files != 1:
        raise InvalidRequest(
            "num_images must be 1: this API answers one picture",
            field="num_images",
            value=request.num_images,
            allowed="1",
        )
    return request


def _is_picture(text: str) -> bool:
    """Tell whether a text is base64 of a picture rather than a prompt."""
    if len(text) < 64 and not text.startswith("data:"):
        return False
    try:
        return ImageInput.from_base64(text).data.startswith(_PICTURE_STARTS)
    except ImageError:
        return False


def from_result(result: GenerationResult) -> Response:
    """Answer with the bytes of the picture."""
    image = result.images[0]
    headers = {"X-Seed": str(image.seed), "X-Recipe-Digest": image.recipe_digest}
    return Response(image.data, headers=headers, media_type=CONTENT_TYPES[image.format])


def error_body(problem: Problem) -> dict[str, Any]:
    """Write an error as the inference API does."""
    body: dict[str, Any] = {"error": problem.detail, "error_type": problem.code}
    if problem.field is not None:
        body["field"] = problem.field
    if problem.status == 503:
        body["estimated_time"] = problem.retry_after_s
    return body


def _render(problem: Problem, request_id: str) -> Response:
    return json_response(error_body(problem), problem.status)


async def infer(front: Front, http: Request) -> Response:
    """Make one picture."""
    model = http.path_params["model"]
    kind = media_type(http)
    body = await http.body()
    if kind.startswith("image/") or body.startswith(_PICTURE_STARTS):
        request = GenerationRequest(model=model, image=ImageInput(body))
    else:
        request = to_request(model, await read_json(http))
    return from_result(await front.generate(http, request))


async def status(front: Front, http: Request) -> Response:
    """Tell whether a model can be used."""
    name = http.path_params["model"]
    models = {m["name"]: m for m in await front.service.models()}
    if name not in models:
        raise UnknownName("model", name[:200], models, field="model")
    task = "text-to-image" if models[name]["takes_prompt"] else "unconditional-image-generation"
    return json_response({"id": name, "pipeline_tag": task, "loaded": models[name]["ready"]})


_BODY = {
    "type": "object",
    "required": ["inputs"],
    "properties": {"inputs": {"type": "string"}, "parameters": {"type": "object"}},
    "additionalProperties": False,
}

DIALECT = Dialect(
    name="huggingface",
    pattern=re.compile(r"^/hf(/|$)"),
    endpoints=(
        Endpoint(
            method="POST",
            path="/hf/{model:path}",
            handler=infer,
            summary="Hugging Face: make one picture",
            body=Body("HuggingFace", lambda _: _BODY),
            answers={kind: {} for kind in CONTENT_TYPES.values()},
        ),
        Endpoint(
            method="GET",
            path="/hf/{model:path}",
            handler=status,
            summary="Hugging Face: whether a model can be used",
        ),
    ),
    render=_render,
)
