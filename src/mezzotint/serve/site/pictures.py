"""Pictures: small ones for the page's gallery, and control pictures as a model sees them."""

import hashlib
import re

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.request import Output
from mezzotint.serve.errors import NotFound
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import kept_picture, owner_of, queue_of
from mezzotint.serve.wire import Body, Endpoint, read_json, visit
from mezzotint.types import PICTURE_TEXT, ImageInput

__all__ = ["ENDPOINTS"]

_SIDES = (64, 512)  # px


async def preprocess(front: Front, http: Request) -> Response:
    """Answer with a control picture as a preprocessor makes it, a PNG."""
    body = await read_json(http)
    for name in ("image", "preprocess"):
        if not isinstance(body.get(name), str):
            raise InvalidRequest(f"{name} must be text, and is needed", field=name)
    data = ImageInput.from_base64(body["image"]).data
    how, name = str(body["preprocess"]), visit(http).caller.name
    made = await front.service.preprocess(data, how, client=name)
    return Response(made, media_type="image/png")


async def thumbnail(front: Front, http: Request) -> Response:
    """Answer with a small WebP of a job's picture, cut to a square.

    Made when first asked for; the answer may be kept for good, since a picture of a job
    never changes.
    """
    job = await queue_of(front).get(http.path_params["id"], client=owner_of(http))
    text = http.path_params["k"]
    index = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else -1
    image = next((i for i in job.images if i.index == index), None)
    if image is None:
        raise NotFound(f"job {job.id} has no picture {text[:40]}")
    asked = http.query_params.get("side", "256")
    side = int(asked) if re.fullmatch(r"[0-9]{1,4}", asked) else 0
    if not _SIDES[0] <= side <= _SIDES[1]:
        raise InvalidRequest(
            f"side must be {_SIDES[0]} to {_SIDES[1]} px, got {asked[:40]}", field="side"
        )
    mark = f'"{hashlib.sha256(f"{image.digest}{side}".encode()).hexdigest()[:32]}"'
    headers = {"ETag": mark, "Cache-Control": "private, max-age=31536000, immutable"}
    if http.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    made = await front.service.upscale(
        await kept_picture(front, job, index),
        factor=1.0,
        output=Output(format="webp", quality=82, metadata=False),
        client=visit(http).caller.name,
        cover=(side, side),
        crop=True,
    )
    return Response(made.data, headers=headers, media_type="image/webp")


_PREPROCESS = {
    "type": "object",
    "required": ["image", "preprocess"],
    "properties": {
        "image": {"type": "string", "contentEncoding": "base64", "pattern": PICTURE_TEXT},
        "preprocess": {"type": "string"},
    },
}

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="POST",
        path="/v1/preprocess",
        handler=preprocess,
        summary="A control picture as a preprocessor makes it",
        body=Body("Preprocessing", lambda _: _PREPROCESS),
        answers={"image/png": {}},
    ),
    Endpoint(
        method="GET",
        path="/v1/jobs/{id}/images/{k}/small",
        handler=thumbnail,
        summary="A small square of a picture of a job",
        answers={"image/webp": {}},
        parameters=(
            {
                "name": "side",
                "in": "query",
                "schema": {"type": "integer", "minimum": _SIDES[0], "maximum": _SIDES[1]},
            },
        ),
    ),
)
