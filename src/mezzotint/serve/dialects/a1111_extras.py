"""A1111 extras: enlarging pictures, and reading what stands in them."""

import base64
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import ImageError, InvalidRequest
from mezzotint.request import Output
from mezzotint.serve.errors import NotFound
from mezzotint.serve.front import Front
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.wire import Body, Endpoint, Fields, json_response, read_json
from mezzotint.types import ImageInput

__all__ = ["ENDPOINTS", "post"]


async def png_info(front: Front, http: Request) -> Response:
    """Read the parameters inside a picture."""
    text = (await read_json(http)).get("image")
    if not isinstance(text, str) or not text.strip():
        return json_response({"info": "", "items": {}, "parameters": {}})
    found = await front.service.inspect(ImageInput.from_base64(text).data)
    return json_response(
        {
            "info": found["parameters"],
            "items": {k: v for k, v in found["items"].items() if isinstance(v, str)},
            "parameters": found["request"] or {},
        }
    )


def _factor(body: Mapping[str, Any]) -> tuple[float, str | None]:
    """Read how much to enlarge, and with what."""
    fields = Fields(body)
    if fields.take("resize_mode", int, 0) != 0:
        raise InvalidRequest(
            "resize_mode must be 0 (by a factor), resizing to a size is not offered",
            field="resize_mode",
            allowed="0",
        )
    factor = float(fields.number("upscaling_resize", 1, 8, 2.0))
    name = fields.take("upscaler_1", str, "None")
    if name in ("None", "Lanczos", "Nearest"):
        return factor, None
    return factor, "real-esrgan" if "esrgan" in name.lower() else name


async def _upscale(front: Front, body: Mapping[str, Any], picture: Any) -> str:
    if not isinstance(picture, str):
        raise ImageError("image must be a picture as base64 text", field="image")
    factor, model = _factor(body)
    data = ImageInput.from_base64(picture).data
    image = await front.service.upscale(data, factor=factor, model=model, output=Output())
    return base64.b64encode(image.data).decode("ascii")


async def extra_single(front: Front, http: Request) -> Response:
    """Enlarge one picture."""
    body = await read_json(http)
    image = await _upscale(front, body, body.get("image"))
    return json_response({"html_info": "", "image": image})


async def extra_batch(front: Front, http: Request) -> Response:
    """Enlarge several pictures."""
    body = await read_json(http)
    entries = body.get("imageList")
    if not isinstance(entries, list):
        raise InvalidRequest("imageList must be a list", field="imageList")
    pictures = [e.get("data") if isinstance(e, Mapping) else e for e in entries]
    images = [await _upscale(front, body, p) for p in pictures[: front.config.limits.images]]
    return json_response({"html_info": "", "images": images})


async def interrogate(front: Front, http: Request) -> Response:
    """Describe a picture: not offered, no captioner is built in."""
    raise NotFound("Model not found")


def post(path: str, handler: Any, summary: str, *, body: bool = True) -> Endpoint:
    """Return an endpoint that takes a POST."""
    return Endpoint(
        method="POST",
        path=f"/sdapi/v1/{path}",
        handler=handler,
        summary=f"A1111: {summary}",
        body=Body("A1111", lambda _: ANY_OBJECT) if body else None,
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    post("extra-single-image", extra_single, "enlarge a picture"),
    post("extra-batch-images", extra_batch, "enlarge pictures"),
    post("png-info", png_info, "read the parameters in a picture"),
    post("interrogate", interrogate, "not offered"),
)
