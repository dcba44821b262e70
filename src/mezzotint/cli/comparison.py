"""Comparison: a file held against the one that its recipe makes here."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from mezzotint.plain import is_mapping
from mezzotint.types import ImageOutput
from mezzotint.vocabulary import LEAST_DB

__all__ = ["BLOCK_PX", "Comparison", "compare", "flat"]

BLOCK_PX = 16
"""Side of the blocks that keep a tier's promise each on its own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a picture differs from the one its recipe makes here.

    Args:
        differing_pixels: Pixels that differ in any channel; None where the sizes do.
        pixels: Pixels of the picture.
        largest_difference: In levels of 255.
        environment: ``name -> (then, now)`` of what differs.
        decibels: Ratio of peak to noise; None where nothing differs or the sizes do.
        promised_decibels: What the picture's tier promises; None for ``exact``.
        worst_block: ``(x, y, decibels)`` of the 16x16 px that differ most where some differ
            by more than the tier promises; None where all are as near.
        file: What the file holds that is neither the picture nor its recipe, or lacks; one
            sentence each.
    """

    differing_pixels: int | None
    pixels: int
    largest_difference: int
    environment: Mapping[str, tuple[Any, Any]]
    decibels: float | None = None
    promised_decibels: float | None = None
    worst_block: tuple[int, int, float] | None = None
    file: tuple[str, ...] = ()

    @property
    def same_pixels(self) -> bool:
        """Whether every pixel is the same."""
        return self.differing_pixels == 0

    @property
    def other_weights(self) -> tuple[str, ...]:
        """Digests of weights that the recipe claims and that are not those it ran with here."""
        return tuple(name for name in self.environment if name.endswith("digest"))

    @property
    def is_identical(self) -> bool:
        """Whether the file is the one that its recipe makes, byte for byte."""
        return self.same_pixels and not self.file and not self.other_weights

    @property
    def keeps_promise(self) -> bool:
        """Whether the file is its recipe's, and its pixels as near as their tier promises.

        ``exact`` promises every pixel; the other tiers promise decibels, which every 16x16 px
        have to keep, or a part could be painted over within what the whole may differ.
        """
        if self.file or self.other_weights or self.promised_decibels is None:
            return self.is_identical
        if self.same_pixels:
            return True
        near = self.decibels is not None and self.decibels >= self.promised_decibels
        return near and self.worst_block is None


def compare(data: bytes, image: ImageOutput, recipe: Mapping[str, Any]) -> Comparison:
    """Compare a picture with the one that was made again from its recipe."""
    import numpy as np

    from mezzotint.images.canonical import program_of

    before, now = _decode(data, image), _decode(image.data, image)
    environment = _differences(recipe.get("environment", {}), image.recipe.get("environment", {}))
    programs = program_of(data), program_of(image.data)
    if programs[0] != programs[1]:
        environment["program"] = programs
    pixels = before.shape[0] * before.shape[1]
    if before.shape != now.shape:
        return Comparison(
            differing_pixels=None, pixels=pixels, largest_difference=255, environment=environment
        )
    distance = np.abs(before.astype(np.int16) - now.astype(np.int16))
    squares: np.ndarray = distance.astype(np.float64) ** 2
    noise = float(squares.mean())
    promised = LEAST_DB.get(str(recipe.get("request", {}).get("reproducibility", "exact")))
    return Comparison(
        differing_pixels=int((distance.max(axis=-1) > 0).sum()),
        pixels=pixels,
        largest_difference=int(distance.max()),
        environment=environment,
        decibels=_decibels(noise),
        promised_decibels=promised,
        worst_block=None if promised is None else _worst_block(distance, promised),
        file=_file_differences(data, image, recipe, same_pixels=not distance.any()),
    )


def _decibels(noise: float) -> float | None:
    """Return the ratio of peak to a mean squared difference; None where there is none."""
    return round(10 * math.log10(255**2 / noise), 1) if noise else None


def _worst_block(distance: Any, promised: float) -> tuple[int, int, float] | None:
    """Find the 16x16 px that differ most, if by more than is promised.

    Args:
        distance: Shape (H, W, C), in levels.
        promised: Decibels.

    Returns:
        Left and upper edge in pixels, and the decibels there.
    """
    import numpy as np

    rows, columns = (range(0, side, BLOCK_PX) for side in distance.shape[:2])
    noise = np.mean(distance.astype(np.float64) ** 2, axis=-1)
    sums = np.add.reduceat(np.add.reduceat(noise, rows, axis=0), columns, axis=1)
    counts = np.add.reduceat(np.add.reduceat(np.ones_like(noise), rows, axis=0), columns, axis=1)
    means = sums / counts
    row, column = np.unravel_index(int(means.argmax()), means.shape)
    worst = _decibels(float(means[row, column]))
    if worst is None or worst >= promised:
        return None
    return int(column) * BLOCK_PX, int(row) * BLOCK_PX, worst


def _file_differences(
    data: bytes, image: ImageOutput, recipe: Mapping[str, Any], *, same_pixels: bool
) -> tuple[str, ...]:
    """Name what a file holds beside its picture and recipe, or lacks."""
    from mezzotint.images.canonical import canonical_file, name_differences
    from mezzotint.images.codec import decode_image
    from mezzotint.images.png import encode_png
    from mezzotint.textchunks import read_texts

    made = image.data
    if data == made:
        return ()
    can_encode = not same_pixels and image.format == "png" and image.frames == 1
    if can_encode:  # its own pixels, written as we write them: nothing may hide among them
        made = encode_png(decode_image(data), read_texts(made))
    canonical = canonical_file(data, recipe, made)
    return name_differences(data, canonical, pixels_too=same_pixels or can_encode)


def _decode(data: bytes, image: ImageOutput) -> Any:
    """Return the pixels of a file like ``image``; the frames of an animation under each other."""
    import numpy as np

    from mezzotint.images.animation import decode_frames
    from mezzotint.images.codec import decode_image

    if image.format == "mp4":  # not decoded here: its bytes are compared
        return np.frombuffer(data, np.uint8)[:, None, None]
    return np.concatenate(decode_frames(data)) if image.frames > 1 else decode_image(data)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two environments, nested names dotted."""
    before, after = flat(then), flat(now)
    names = sorted({*before, *after})
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a tree's leaves by dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if is_mapping(value) else {name: value}
    return found
