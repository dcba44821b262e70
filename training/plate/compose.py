"""Compose pictures through the alpha channel, with captions that are true by construction.

A `Composition` says what is asked for (background, how many, how big, where) and
both the pixels and the caption follow from it, so no caption needs checking.
White is the background that goes without saying.

Dimensions: pictures are (128, 128, 4) uint8, straight alpha; results are
(128, 128, 3) uint8.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE_PX = 128
BACKGROUNDS = {
    "white": (255, 255, 255),
    "red": (214, 48, 49),
    "orange": (243, 146, 55),
    "yellow": (250, 216, 80),
    "green": (76, 175, 80),
    "blue": (52, 110, 219),
    "light blue": (160, 212, 245),
    "purple": (142, 82, 190),
    "pink": (248, 176, 204),
    "brown": (128, 84, 56),
    "gray": (150, 150, 150),
    "black": (18, 18, 20),
}
COLOURS = tuple(name for name in BACKGROUNDS if name != "white")
POSITIONS = {
    "in the top left corner": (0.0, 0.0),
    "at the top": (0.5, 0.0),
    "in the top right corner": (1.0, 0.0),
    "on the left": (0.0, 0.5),
    "on the right": (1.0, 0.5),
    "in the bottom left corner": (0.0, 1.0),
    "at the bottom": (0.5, 1.0),
    "in the bottom right corner": (1.0, 1.0),
}
SIZES_PX = {"normal": 112, "small": 56, "big": 126}
GROUP_SIZES_PX = {2: 60, 3: 56}
GROUP_CENTRES = {2: ((33, 64), (95, 64)), 3: ((64, 34), (33, 94), (95, 94))}
MARGIN_PX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """What is shown: ``count`` equal things of one size on one background."""

    background: str = "white"
    count: int = 1
    size: str = "normal"
    position: str | None = None

    def placements(self) -> list[tuple[int, int, int]]:
        """Return (left, top, side) in pixels of each copy."""
        if self.count > 1:
            side = GROUP_SIZES_PX[self.count]
            centres = GROUP_CENTRES[self.count]
            return [(x - side // 2, y - side // 2, side) for x, y in centres]
        side = SIZES_PX[self.size]
        free = SIZE_PX - side
        if self.position is None:
            return [(free // 2, free // 2, side)]
        margin = min(MARGIN_PX, free // 2)
        right, down = POSITIONS[self.position]
        span = free - 2 * margin
        return [(margin + round(right * span), margin + round(down * span), side)]


def compose(picture: NDArray[np.uint8], composition: Composition) -> NDArray[np.uint8]:
    """Draw a picture as the composition says."""
    canvas = Image.new("RGBa", (SIZE_PX, SIZE_PX), (*BACKGROUNDS[composition.background], 255))
    premultiplied = Image.fromarray(picture).convert("RGBa")
    for left, top, side in composition.placements():
        copy = premultiplied.resize((side, side), Image.Resampling.LANCZOS)
        region = np.asarray(canvas.crop((left, top, left + side, top + side))).astype(np.float32)
        over = np.asarray(copy).astype(np.float32)
        blended = over + region * (1 - over[..., 3:] / 255)
        canvas.paste(
            Image.fromarray(blended.round().clip(0, 255).astype(np.uint8), "RGBa"), (left, top)
        )
    return np.asarray(canvas)[..., :3].copy()


def random_composition(rng: np.random.Generator) -> Composition:
    """Draw a composition, for learning what any of them may look like."""
    background = str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.6 else "white"
    kind = rng.random()
    if kind < 0.2:
        return Composition(background=background, count=int(rng.integers(2, 4)))
    if kind < 0.35:
        position = str(rng.choice(list(POSITIONS)))
        return Composition(background=background, size="small", position=position)
    return Composition(background=background, size="big" if kind < 0.45 else "normal")
