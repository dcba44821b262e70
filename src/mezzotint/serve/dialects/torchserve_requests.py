"""TorchServe requests: bodies of any kind into named parameters, and those into requests."""

import base64
import re
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from mezzotint.errors import InvalidRequest
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects import torchserve_handlers as handlers
from mezzotint.serve.dialects.torchserve_models import NoWorkers, find_model, num_workers
from mezzotint.serve.errors import Malformed
from mezzotint.serve.front import Front
from mezzotint.serve.wire import media_type, parse_json, read_form
from mezzotint.types import ImageInput, ImageOutput

__all__ = ["plain_picture", "read_parameters", "resolve", "to_request"]

_TEXT_NAMES = ("data", "body", "text", "prompt", "input")
_FASHIONGEN = ("input_gender", "input_category", "input_pose")


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


async def resolve(
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
