"""Hugging Face: the inference API as ``huggingface_hub.InferenceClient`` calls it.

``POST /hf/{model}`` takes ``{"inputs", "parameters"}`` and answers the bytes of
one picture. With a picture as ``inputs`` (base64, or raw bytes as the body) it is
image to image, and the prompt is a parameter. ``POST /`` takes the same for the default model,
as an Inference Endpoint does, whose address alone a client is given.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import ImageError, InvalidField, InvalidRequest, UnknownName
from mezzotint.plain import Checked, field_names, is_mapping
from mezzotint.request import GenerationRequest, Output
from mezzotint.serve.accept import choose
from mezzotint.serve.errors import Problem
from mezzotint.serve.front import Front
from mezzotint.serve.schema import PICTURE, foreign, object_schema, request_schema
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    Body,
    Dialect,
    Endpoint,
    json_response,
    media_type,
    read_fields,
    read_json,
)
from mezzotint.types import (
    MAX_TEXT,
    GenerationResult,
    ImageInput,
    NumImages,
    OutputFormat,
    Side,
)

__all__ = ["DIALECT", "error_body", "from_result", "to_request"]

_PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"BM")
_STILL: Mapping[str, OutputFormat] = {
    "image/png": "png",
    "image/jpeg": "jpeg",
    "image/webp": "webp",
}
_FIELDS = ("inputs", "parameters", "options")
_SAME = {"num_images_per_prompt": ("num_images",), "target_size": ("width", "height")}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Size(Checked):
    """Size of the answer.

    Args:
        width: Pixels.
        height: Pixels.
    """

    where: ClassVar[str] = "target_size"
    width: Side | None = None
    height: Side | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameters(Checked):
    """What the inference API calls otherwise than we do.

    Args:
        target_size: Size of the answer, as ``width`` and ``height``.
        num_images_per_prompt: Pictures, as ``num_images``.
    """

    target_size: _Size = _Size()
    num_images_per_prompt: NumImages | None = None


def to_request(model: str | None, body: Mapping[str, Any]) -> GenerationRequest:
    """Translate a body.

    Args:
        model: Name in the store, None for the default one.
        body: ``inputs``, ``parameters``, ``options``.

    Raises:
        InvalidRequest: If a field is wrong; parameters are named ``parameters.x``.
    """
    inputs = body.get("inputs")
    if not isinstance(inputs, str):
        raise InvalidField("inputs is needed: the prompt, or a picture as base64", field="inputs")
    asked = body.get("parameters")
    parameters: object = {} if asked is None else asked
    if not is_mapping(parameters):
        raise InvalidField("parameters must be an object", field="parameters")
    for name in body:
        if name not in _FIELDS:
            raise UnknownName("field", name, _FIELDS, field=name)
    native = _native(parameters)
    if "prompt" in native or _is_picture(inputs):
        _refuse_both("inputs", native, ("image",))
        try:
            native["image"] = ImageInput.from_base64(inputs, field="inputs")
        except ImageError as error:
            if "prompt" not in native:
                raise
            # that inputs has to be a picture follows from another field
            raise InvalidRequest(f"with parameters.prompt, {error}", field="inputs") from None
    else:
        native["prompt"] = inputs
    request = GenerationRequest.from_dict(native | _named(model))
    if request.num_files != 1:
        raise InvalidRequest(
            "num_images must be 1: this API answers one picture",
            field="num_images",
            value=request.num_images,
            allowed="1",
        )
    return request


def _named(model: str | None) -> dict[str, Any]:
    """Return the field of a model that was named."""
    return {} if model is None else {"model": model}


def _native(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters under our names."""
    theirs, rest = read_fields(_Parameters, parameters)
    if "model" in rest:
        known = {*field_names(GenerationRequest), *_SAME} - {"model"}
        raise UnknownName("field", "parameters.model", known, field="parameters.model")
    native = {name: value for name, value in rest.items() if value is not None}
    for name, ours in _SAME.items():
        if parameters.get(name) is not None:
            _refuse_both(f"parameters.{name}", native, ours)
    sides = {"width": theirs.target_size.width, "height": theirs.target_size.height}
    sides["num_images"] = theirs.num_images_per_prompt
    return native | {name: value for name, value in sides.items() if value is not None}


def _refuse_both(name: str, native: Mapping[str, Any], ours: tuple[str, ...]) -> None:
    """Refuse two fields that say the same."""
    for other in ours:
        if other in native:
            raise InvalidRequest(
                f"{name} and parameters.{other} say the same, give one", field=f"parameters.{other}"
            )


def _is_picture(text: str) -> bool:
    """Tell whether a text is base64 of a picture rather than a prompt."""
    if len(text) < 64 and not text.startswith("data:"):
        return False
    try:
        data = ImageInput.from_base64(text).data
    except ImageError:
        return False
    return data.startswith(_PICTURE_STARTS) or len(text) > MAX_TEXT  # no prompt is that long


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
    model = http.path_params.get("model")
    kind = media_type(http)
    body = await http.body()
    if kind.startswith("image/") or body.startswith(_PICTURE_STARTS):
        request = GenerationRequest(**_named(model), image=ImageInput(body))
    else:
        request = to_request(model, await read_json(http))
    return from_result(await front.generate(http, _in_format(http, request)))


def _in_format(http: Request, request: GenerationRequest) -> GenerationRequest:
    """Let ``Accept`` choose the format where the parameters leave it."""
    output = request.output
    if output != Output() and (output.animation is not None or output.format != Output().format):
        return request
    choice = choose(http.headers.get("accept", ""), tuple(_STILL))
    if choice is None or not choice.is_named:
        return request
    return replace(request, output=replace(output, format=_STILL[choice.media]))


async def status(front: Front, http: Request) -> Response:
    """Tell whether a model can be used."""
    name = http.path_params["model"]
    models = {m["name"]: m for m in await front.service.models()}
    if name not in models:
        raise UnknownName("model", name[:200], models, field="model")
    task = "text-to-image" if models[name]["takes_prompt"] else "unconditional-image-generation"
    return json_response({"id": name, "pipeline_tag": task, "loaded": models[name]["ready"]})


def _schema(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a body."""
    ours = foreign(request_schema(limits))["properties"]
    parameters = foreign(object_schema(_Parameters, limits))
    del ours["model"]
    parameters["properties"] |= ours
    prompt = {"type": "string", "maxLength": MAX_TEXT}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"anyOf": [prompt, PICTURE], "description": "The prompt, or a picture."},
            "parameters": {"anyOf": [parameters, {"type": "null"}]},
            "options": {},
        },
        "additionalProperties": False,
    }


def _inference(path: str, summary: str) -> Endpoint:
    """Return the endpoint that makes one picture."""
    return Endpoint(
        method="POST",
        path=path,
        handler=infer,
        summary=summary,
        body=Body("HuggingFace", _schema, also=(("image/*", lambda _: {}),)),
        answers={kind: {} for kind in CONTENT_TYPES.values()},
    )


DIALECT = Dialect(
    name="huggingface",
    pattern=re.compile(r"^/(hf(/|$)|$)"),
    endpoints=(
        _inference("/hf/{model:path}", "Hugging Face: make one picture"),
        _inference("/", "Hugging Face: make one picture with the default model"),
        Endpoint(
            method="GET",
            path="/hf/{model:path}",
            handler=status,
            summary="Hugging Face: whether a model can be used",
        ),
    ),
    render=_render,
)
