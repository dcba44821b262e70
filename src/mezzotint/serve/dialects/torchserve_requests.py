"""TorchServe requests: bodies of any kind into named parameters, and those into requests."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from starlette.requests import Request

from mezzotint.bounds import Length, Range
from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.plain import Checked, is_dict, is_list, read
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects import torchserve_handlers as handlers
from mezzotint.serve.dialects.torchserve_models import (
    NoWorkers,
    answers_array,
    find_model,
    num_workers,
)
from mezzotint.serve.errors import Malformed
from mezzotint.serve.forms import form_body, read_parts, read_text
from mezzotint.serve.front import Front
from mezzotint.serve.schema import object_schema, request_schema
from mezzotint.serve.wire import MULTIPART, URLENCODED, Body, media_type, parse_json
from mezzotint.types import MAX_IMAGES, MAX_TEXT, ImageInput, ImageOutput

__all__ = [
    "FORM",
    "INSTANCE",
    "PARAMETERS",
    "Target",
    "parameter_schemas",
    "plain_picture",
    "read_parameters",
    "resolve",
    "to_request",
    "typed",
]

_TEXT_NAMES = ("data", "body", "text", "prompt", "input")
_FASHIONGEN = ("input_gender", "input_category", "input_pose")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Examples(Checked):
    """Parameters of TorchServe's own examples.

    Args:
        number_of_images: Pictures, answered as one grid.
    """

    number_of_images: Annotated[int, Range(1, MAX_IMAGES, limit="images", as_text=True)]


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
        count = read(_Examples, {"number_of_images": native.pop("number_of_images")})
        _add(native, {"num_images": count.number_of_images})
    if native.get("seed") in (-1, "-1"):
        native.pop("seed")
    native.pop("model", None)
    return GenerationRequest.from_dict({**native, "model": model}), wants_grid


def _unwrap(body: dict[str, Any]) -> dict[str, Any]:
    """Find the prompt under the names TorchServe's examples use, however nested."""
    while name := next((n for n in ("data", "body") if isinstance(body.get(n), dict)), None):
        inner = body.pop(name)
        _add(body, inner)
    for name in _TEXT_NAMES:
        if name in body and name != "prompt":
            text = body.pop(name)
            if is_list(text) and len(text) == 1:
                text = text[0]
            if not isinstance(text, str):
                raise InvalidField(f"{name} must be a text, got {type(text).__name__}", field=name)
            Length(most=MAX_TEXT).check(name, text)
            body.setdefault("prompt", text)
    return body


def _add(body: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add parameters; none may be given twice.

    Raises:
        InvalidRequest: If one is there already.
    """
    for name, value in more.items():
        if name in body:
            raise InvalidRequest(f"{name} is given twice", field=name)
        body[name] = value


def parameter_schemas(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of each named parameter that :func:`to_request` knows."""
    native = request_schema(limits)["properties"]
    text = {"type": "string", "maxLength": MAX_TEXT}
    texts = [text, {"type": "array", "items": text, "minItems": 1, "maxItems": 1}]
    nested = {"anyOf": [*texts, PARAMETERS.reference]}
    return {
        **native,
        **object_schema(_Examples, limits)["properties"],
        **{name: {"anyOf": texts} for name in _TEXT_NAMES if name != "prompt"},
        "data": nested,
        "body": nested,
        "seed": native["seed"] | {"anyOf": [{"enum": [-1, "-1"]}, *native["seed"]["anyOf"]]},
        "model": {},
        **{name: {} for name in _FASHIONGEN},
    }


def _named(limits: Mapping[str, int]) -> dict[str, Any]:
    properties = parameter_schemas(limits)
    return {"type": "object", "properties": properties, "additionalProperties": False}


PARAMETERS = Body("NamedParameters", _named)
"""Named parameters of one request, as the protocols of TorchServe and KServe take them."""
FORM = form_body(PARAMETERS, urlencoded=True, model_name={"type": "string"})
"""The same as the parts of a form, or of a query."""
INSTANCE: Mapping[str, Any] = {
    "anyOf": [{"type": "string", "maxLength": MAX_TEXT}, PARAMETERS.reference]
}


def plain_picture(image: ImageOutput) -> dict[str, Any]:
    """Write a picture as JSON."""
    return {
        "b64": base64.b64encode(image.data).decode("ascii"),
        "format": image.format,
        "seed": image.seed,
        "width": image.width,
        "height": image.height,
    }


async def read_parameters(http: Request) -> dict[str, Any]:
    """Read a body of any kind into named parameters."""
    kind = media_type(http)
    if http.method in ("GET", "DELETE") and not await http.body():
        return typed(dict(http.query_params))
    if kind == "application/json" or kind.endswith("+json"):
        value = parse_json(await http.body())
        if is_list(value) and len(value) == 1:
            value = value[0]
        if isinstance(value, str):
            return {"prompt": value}
        if not is_dict(value):
            raise InvalidField("the body must be a JSON object or a text", field="body")
        return value
    if kind in (MULTIPART, URLENCODED):
        return await _form(http)
    if kind.startswith("image/"):
        return {"image": ImageInput(await http.body())}
    try:
        return {"prompt": (await http.body()).decode("utf-8")}
    except UnicodeDecodeError:
        raise Malformed("the body must be text, JSON or a form") from None


async def _form(http: Request) -> dict[str, Any]:
    body = await read_parts(http, FORM)
    if media_type(http) == URLENCODED and list(body.values()) == [""]:  # curl -d "a prompt"
        return {"prompt": next(iter(body))}
    return body


def typed(body: Mapping[str, Any]) -> dict[str, Any]:
    """Read what a query can only say as text: numbers and objects as JSON."""
    return {
        name: read_text(FORM, name, value) if isinstance(value, str) else value
        for name, value in body.items()
    }


@dataclass(frozen=True, slots=True)
class Target:
    """Who answers a prediction.

    Args:
        name: The name to ask the service for.
        is_handler: Whether it is handler code.
        answers_array: Whether it answers lists of pixels where a request says nothing.
    """

    name: str
    is_handler: bool
    answers_array: bool


async def resolve(front: Front, name: str, version: str | None, *, protocol: str = "") -> Target:
    """Find who answers a prediction.

    Args:
        front: What all doors share: the service, its limits, the callers.
        name: Name of the model.
        version: Its version, None for the default one.
        protocol: What refuses handler code, "" if it is welcome.

    Raises:
        NoWorkers: If the model has no workers at this door.
        Unsupported: If it is handler code and the protocol does not take it.
    """
    model = await find_model(front, name, version, recent=True)
    if not num_workers(front, model):
        of_version = "" if version is None else f' Version {version}"'  # the quote is TorchServe's
        raise NoWorkers(
            f'Model "{name}"{of_version} has no worker to serve inference request. '
            "Please use scale workers API to add workers. If this is a sequence inference, please "
            "check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
        )
    is_handler = handlers.is_handler(model)
    if is_handler and protocol:
        raise handlers.unsupported(protocol)
    full_name = name if version is None else f"{name}@{version}"
    return Target(full_name, is_handler, answers_array(front, model))
