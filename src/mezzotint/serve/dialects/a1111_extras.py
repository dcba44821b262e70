"""A1111 extras: enlarging pictures, and reading what stands in them."""

import base64
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.bounds import SPACE
from mezzotint.errors import UnknownName
from mezzotint.serve.dialects.a1111_bodies import (
    BODIES,
    Enlargement,
    Extra,
    ExtraBatch,
    ExtraEntry,
)
from mezzotint.serve.dialects.a1111_lists import upscaler_names
from mezzotint.serve.errors import NotFound, TooLarge
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Endpoint, json_response, read_fields, read_json, visit
from mezzotint.types import ImageInput, ImageOutput

__all__ = ["ENDPOINTS", "enlarge", "post"]


async def png_info(front: Front, http: Request) -> Response:
    """Read the parameters inside a picture."""
    text = (await read_json(http)).get("image")
    if not isinstance(text, str) or not text.strip(SPACE):
        return json_response({"info": "", "items": {}, "parameters": {}})
    found = await front.service.inspect(
        ImageInput.from_base64(text).data, client=visit(http).caller.name
    )
    return json_response(
        {
            "info": found["parameters"],
            "items": {k: v for k, v in found["items"].items() if isinstance(v, str)},
            "parameters": found["request"] or {},
        }
    )


async def enlarge(
    front: Front,
    http: Request,
    data: bytes,
    factor: float,
    upscaler: str,
    *,
    cover: tuple[int, int] | None = None,
    crop: bool = False,
) -> ImageOutput:
    """Enlarge a picture with an upscaler by A1111's name.

    Args:
        front: The service behind the door.
        http: The request.
        data: The encoded picture.
        factor: Of both sides, where ``cover`` is None.
        upscaler: A1111's name, or ours.
        cover: Width and height to cover in place of a factor, pixels.
        crop: Cut what overhangs ``cover``.

    Raises:
        MezzotintError: If the picture cannot be enlarged.
    """
    model = "real-esrgan" if "esrgan" in upscaler.lower() else upscaler
    model = None if upscaler in ("None", "Lanczos", "Nearest") else model
    return await front.upscale(http, data, factor=factor, model=model, cover=cover, crop=crop)


async def _upscale(front: Front, http: Request, fields: Enlargement, picture: ImageInput) -> str:
    cover = (fields.upscaling_resize_w, fields.upscaling_resize_h)
    try:
        image = await enlarge(
            front,
            http,
            picture.data,
            fields.upscaling_resize,
            fields.upscaler_1,
            cover=cover if fields.resize_mode else None,
            crop=fields.upscaling_crop,
        )
    except UnknownName as error:
        known = ("None", *(await upscaler_names(front)))
        name = fields.upscaler_1[:200]
        raise UnknownName(error.kind, name, known, field="upscaler_1") from None
    return base64.b64encode(image.data).decode("ascii")


async def extra_single(front: Front, http: Request) -> Response:
    """Enlarge one picture."""
    fields, _ = read_fields(Extra, await read_json(http))
    image = await _upscale(front, http, fields, fields.image)
    return json_response({"html_info": "", "image": image})


async def extra_batch(front: Front, http: Request) -> Response:
    """Enlarge several pictures."""
    fields, _ = read_fields(ExtraBatch, await read_json(http))
    pictures = [e.data if isinstance(e, ExtraEntry) else e for e in fields.imageList]
    most = front.config.limits.images
    if len(pictures) > most:
        raise TooLarge(
            f"imageList has {len(pictures)} pictures, at most {most} in one request",
            field="imageList",
            value=len(pictures),
            allowed=f"at most {most}",
        )
    images = [await _upscale(front, http, fields, picture) for picture in pictures]
    return json_response({"html_info": "", "images": images})


async def interrogate(front: Front, http: Request) -> Response:
    """Describe a picture: not offered, no captioner is built in."""
    raise NotFound("Model not found: interrogate has no captioner here")


def post(path: str, handler: Any, summary: str, *, body: bool = True) -> Endpoint:
    """Return an endpoint that takes a POST."""
    return Endpoint(
        method="POST",
        path=f"/sdapi/v1/{path}",
        handler=handler,
        summary=f"A1111: {summary}",
        body=BODIES[path] if body else None,
    )


ENDPOINTS: tuple[Endpoint, ...] = (
    post("extra-single-image", extra_single, "enlarge a picture"),
    post("extra-batch-images", extra_batch, "enlarge pictures"),
    post("png-info", png_info, "read the parameters in a picture"),
    post("interrogate", interrogate, "not offered"),
)
