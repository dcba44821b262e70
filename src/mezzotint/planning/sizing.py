"""Sizing: how large pictures are drawn, and what is too large. Sides are in pixels."""

import math

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.request import GenerationRequest
from mezzotint.types import Size

__all__ = ["check_pixels", "check_side", "check_upscaled", "fit_side", "resolve_size"]


def resolve_size(
    request: GenerationRequest, spec: ModelSpec, image_size: Size | None, warnings: list[str]
) -> Size:
    """Take the asked sides, or the picture's, or the model's own, and check them.

    Args:
        request: What was asked.
        spec: The model.
        image_size: Of the picture in the request, where there is one. A picture to begin
            from gives its sides, one to edit its proportions.
        warnings: Grows where the picture is resized.

    Raises:
        InvalidRequest: If the model cannot draw a side.
    """
    own = spec.default_size
    if image_size is not None and not spec.fixed_size:
        sides = image_size if request.image is not None else _proportioned(image_size, own)
        own = Size(*(fit_side(side, spec) for side in sides))
        if (
            request.image is not None
            and (request.width, request.height) == (None, None)
            and own != image_size
        ):
            warnings.append(f"the picture of {image_size} px was resized to {own} px")
    size = Size(
        request.width if request.width is not None else own.width,
        request.height if request.height is not None else own.height,
    )
    for name, side, fixed in zip(("width", "height"), size, spec.default_size, strict=True):
        if spec.fixed_size and side != fixed:
            raise InvalidRequest(
                f"{name} must be {fixed} px for {spec.name}, got {side}",
                field=name,
                value=side,
                allowed=str(fixed),
            )
        if not spec.fixed_size:
            check_side(name, side, spec)
    return size


def _proportioned(image: Size, own: Size) -> Size:
    """Return a size of about the pixels of ``own`` with the proportions of a picture."""
    scale = math.sqrt(own.width * own.height / (image.width * image.height))
    return Size(round(image.width * scale), round(image.height * scale))


def fit_side(side: int, spec: ModelSpec) -> int:
    """Round a side to the nearest one that the model can draw."""
    multiple = spec.size_multiple
    low = -(-spec.min_size_px // multiple) * multiple
    high = spec.max_size_px // multiple * multiple
    return min(max(round(side / multiple) * multiple, low), high)


def check_side(name: str, side: int, spec: ModelSpec) -> None:
    """Refuse a side outside the limits or off the multiple.

    Raises:
        InvalidRequest: Names the field and what is allowed.
    """
    low, high, multiple = spec.min_size_px, spec.max_size_px, spec.size_multiple
    if not low <= side <= high:
        raise InvalidRequest(
            f"{name} must be {low} to {high} px for {spec.name}, got {side}",
            field=name,
            value=side,
            allowed=f"{low} to {high} px",
        )
    if side % multiple:
        below = side // multiple * multiple
        near = [s for s in (below, below + multiple) if low <= s <= high]
        nearest = (
            f"nearest are {near[0]} and {near[1]}" if len(near) > 1 else f"nearest is {near[0]}"
        )
        raise InvalidRequest(
            f"{name} must be a multiple of {multiple} px for {spec.name}, got {side}; {nearest}",
            field=name,
            value=side,
            allowed=f"multiples of {multiple} px, {low} to {high}",
        )


def check_pixels(
    request: GenerationRequest, size: Size, abilities: Abilities, *, field: str = "width"
) -> None:
    """Refuse more pixels than one picture or one request may have.

    Raises:
        InvalidRequest: Names the field and what is allowed.
    """
    pixels = size.width * size.height
    if pixels > abilities.max_pixels:
        height = field.replace("width", "height")
        raise InvalidRequest(
            f"{field} x {height} must be at most {abilities.max_pixels} pixels, got {pixels}",
            field=field,
            value=str(size),
            allowed=f"at most {abilities.max_pixels} pixels",
        )
    count = request.num_pictures
    if pixels * count > abilities.max_request_pixels:
        raise InvalidRequest(
            f"num_images must keep a request at {abilities.max_request_pixels} pixels or fewer, "
            f"got {count} pictures of {size}",
            field="num_images",
            value=count,
            allowed=f"at most {abilities.max_request_pixels // pixels}",
        )


def check_upscaled(request: GenerationRequest, size: Size, abilities: Abilities) -> None:
    """Refuse pictures that nobody here could read again after their enlargement.

    Raises:
        InvalidRequest: Names the field and what is allowed.
    """
    if request.upscale is None:
        return
    factor, most = request.upscale.factor, abilities.max_output_pixels
    pixels = size.width * size.height
    if pixels * factor**2 > most:
        allowed = f"at most {math.floor(100 * math.sqrt(most / pixels)) / 100:g} for {size} px"
        raise InvalidRequest(
            f"upscale.factor must give at most {most} pixels, got {factor:g} for {size} px",
            field="upscale.factor",
            value=factor,
            allowed=allowed,
        )
