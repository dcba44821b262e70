"""One request for every technique, in native JSON: tests of all techniques go through these.

A technique that is new needs a row here. It is then drawn, read out of its picture and drawn
again with the same bytes; drawn in a storm of others; looked through for pictures and texts;
and changed field by field for the cache key.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mezzotint.types import ImageInput

__all__ = ["DISC", "EXAMPLES", "PHOTO", "TINY", "Example", "disc", "photo", "png"]


def png(array: np.ndarray) -> ImageInput:
    """Return pixels (H, W) or (H, W, 3), uint8, as a picture of a request."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return ImageInput(stream.getvalue())


def photo(height: int = 64, width: int = 64) -> np.ndarray:
    """Return a picture of slopes (H, W, 3), uint8."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def disc(height: int = 64, width: int = 64, radius: int = 14, level: int = 255) -> np.ndarray:
    """Return a mask (H, W), uint8: a disc in the middle."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2
    return (inside * level).astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A request that asks for one technique.

    Args:
        fields: What it says beside a prompt of the built-in model; None takes a field out.
        is_long: Whether it is drawn with the slow tests alone.
    """

    fields: dict[str, Any]
    is_long: bool = False

    @property
    def has_files(self) -> bool:
        """Whether it names weights that no installation has: a tiny model's, made for a test."""
        return "model" in self.fields


PHOTO, DISC = png(photo()).to_base64(), png(disc()).to_base64()
TINY = {"model": "sd", "width": None, "height": None}
"""A tiny Stable Diffusion with a ControlNet ``edges``, a LoRA ``ink``, an IP-Adapter ``style``
and a textual inversion ``blot``."""
_CONTROLS = [
    {"model": "edges", "image": PHOTO, "preprocess": "canny", "scale": 0.7, "end": 0.5},
    {"model": "edges", "image": DISC, "start": 0.5},
]
_REGIONS = [
    {"prompt": "sky", "box": [0, 0, 1, 0.5], "weight": 2},
    {"prompt": "sea", "negative_prompt": "boat", "mask": DISC, "feather": 0.1},
]
_ENSEMBLE = [{"model": "plate"}, {"model": "plate-quick", "weight": 0.5}]
_WALK = {"to": "a leaf", "frames": 2, "mode": "both", "to_seed": 2**64 - 1}
_INK = [{"name": "blot", "token": "<ink>"}]

EXAMPLES = {
    "image": Example(fields={"image": PHOTO, "strength": 0.6}),
    "mask": Example(
        fields={
            "image": PHOTO,
            "mask": DISC,
            "strength": 0.8,
            "inpaint": {"blur": 2, "fill": "noise"},
        }
    ),
    "image_references": Example(
        fields={
            "model": "edit",
            "image_references": [PHOTO, DISC],
            "scheduler": None,
            "guidance_scale": None,
        },
        is_long=True,
    ),
    "controls": Example(fields=TINY | {"controls": _CONTROLS}, is_long=True),
    "loras": Example(fields=TINY | {"loras": [{"name": "ink", "scale": 0.5}]}, is_long=True),
    "image_prompts": Example(
        fields=TINY
        | {"image_prompts": [{"model": "style", "images": [PHOTO, DISC], "scale": 0.6}]},
        is_long=True,
    ),
    "embeddings": Example(
        fields=TINY | {"prompt": "a blot of <ink>", "embeddings": _INK}, is_long=True
    ),
    "regions": Example(fields={"regions": _REGIONS}, is_long=True),
    "ensemble": Example(fields={"ensemble": _ENSEMBLE}, is_long=True),
    "walk": Example(fields={"walk": _WALK}, is_long=True),
    "outpaint": Example(
        fields={"image": PHOTO, "width": None, "height": None, "outpaint": {"left": 16}}
    ),
    "hires": Example(
        fields={"hires": {"scale": 1.5, "strength": 0.5, "upscaler": "lanczos"}}, is_long=True
    ),
    "variation": Example(fields={"variation": {"seed": 8, "strength": 0.5}}),
    "tiling": Example(fields={"tiling": True}, is_long=True),
    "upscale": Example(fields={"upscale": {"factor": 2}}),
}
"""By the technique's field."""
