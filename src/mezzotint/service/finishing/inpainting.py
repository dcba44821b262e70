"""Inpainting: the pictures of a request at the size of its plan, and the way back.

A start picture may be extended (outpainting), a mask turned round, blurred, or cut to
its own surroundings; what was drawn under a cut mask goes back into the whole picture.
All of it is arithmetic on pixels, the same for the same request.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mezzotint.errors import ImageError, PictureTooLarge
from mezzotint.images.codec import decode_image, decode_mask, read_size, to_images
from mezzotint.images.config import ImageConfig
from mezzotint.images.resize import fit
from mezzotint.planning.plan import OUTSIDE, Plan
from mezzotint.request import GenerationRequest
from mezzotint.types import ImageInput, Size

__all__ = ["Inpainting", "read_inpainting", "reference_size"]

_FILL_RADII_PX = (2, 4, 8, 16, 32, 64, 128, 256)
_KNOWN = 1e-3


@dataclass(frozen=True, slots=True)
class Inpainting:
    """The start picture of a request, extended, and its mask at the same size.

    Args:
        image: Shape (H, W, 3), uint8.
        mask: Where to repaint, turned round and blurred as asked. Shape (H, W),
            float32, 0 to 1; None without a mask.
        box: The part to work on, ``(left, top, right, bottom)`` in pixels, or None for all.
        warnings: What the caller may not have meant.
    """

    image: np.ndarray
    mask: np.ndarray | None
    box: tuple[int, int, int, int] | None
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> Size | None:
        """The size that a picture takes from its start; None where it takes its own."""
        return None if self.box else Size(self.image.shape[1], self.image.shape[0])

    def assets(self, request: GenerationRequest, plan: Plan) -> dict[str, Any]:
        """Return start picture and mask at the plan's size, by the names the plan gives them."""
        image, mask = self.image, self.mask
        if self.box is not None and mask is not None:
            left, top, right, bottom = grown(self.box, image.shape, plan.size)
            image, mask = image[top:bottom, left:right], mask[top:bottom, left:right]
        if mask is not None and request.inpaint.fill == "surroundings":
            image = draw_inwards(image, mask)
        found: dict[str, Any] = {str(plan.techniques.image): to_images(fit(image, plan.size))}
        if mask is not None:
            found[plan.techniques.mask or OUTSIDE] = fit(mask, plan.size)
        return found

    def paste(self, pixels: np.ndarray, plan: Plan) -> np.ndarray:
        """Put what was drawn back into the picture. Shape (H, W, 3), uint8."""
        assert self.mask is not None  # noqa: S101 - only pictures with a mask are pasted
        if self.box is not None:
            left, top, right, bottom = grown(self.box, self.image.shape, plan.size)
            whole, mask = self.image.copy(), self.mask[top:bottom, left:right]
            drawn = fit(pixels, Size(right - left, bottom - top))
            whole[top:bottom, left:right] = _mix(whole[top:bottom, left:right], drawn, mask)
            return whole
        return _mix(fit(self.image, plan.size), pixels, fit(self.mask, plan.size))


def read_inpainting(
    request: GenerationRequest, limits: ImageConfig | None = None
) -> Inpainting | None:
    """Decode the start picture and the mask of a request; None without a picture.

    Raises:
        ImageError: If one of them is no picture, or nothing is left to repaint.
    """
    if request.image is None:
        return None
    limits = limits or ImageConfig()
    _check_worked_on(request, request.image, limits)
    image = decode_image(request.image.data, config=limits)
    warnings: list[str] = []
    mask = _read_mask(request, image, limits, warnings)
    if request.outpaint is not None:
        image, mask = _extend(request, image, mask)
    if mask is None:
        return Inpainting(image, None, None)
    asked = request.inpaint
    box = None
    rows, columns = np.nonzero(mask > 0.5 / 255)
    if not rows.size and asked.area != "masked":
        warnings.append("mask repaints nothing: no pixel of it is white")
    if asked.area == "masked":
        if not rows.size:
            raise ImageError("mask repaints nothing: no pixel of it is white", field="mask")
        pad = asked.padding
        box = (
            max(int(columns.min()) - pad, 0),
            max(int(rows.min()) - pad, 0),
            min(int(columns.max()) + 1 + pad, image.shape[1]),
            min(int(rows.max()) + 1 + pad, image.shape[0]),
        )
    return Inpainting(image, mask, box, tuple(warnings))


def reference_size(request: GenerationRequest, limits: ImageConfig) -> Size | None:
    """Return the size of the first picture to edit, pixels; None without one.

    Raises:
        ImageError: If it is no picture.
    """
    if not request.image_references:
        return None
    return read_size(request.image_references[0].data, field="image_references[0]", config=limits)


def _read_mask(
    request: GenerationRequest, image: np.ndarray, limits: ImageConfig | None, warnings: list[str]
) -> np.ndarray | None:
    """Decode, resize, turn round and blur the mask; warn where it is of another size."""
    if request.mask is None:
        return None
    mask = decode_mask(request.mask.data, config=limits)
    height, width = mask.shape
    if (height, width) != image.shape[:2]:
        warnings.append(
            f"mask is {width}x{height} and was resized to the size of image, "
            f"{image.shape[1]}x{image.shape[0]}"
        )
    mask = fit(mask, Size(image.shape[1], image.shape[0]))
    if request.inpaint.invert:
        mask = np.float32(1) - mask
    return _blurred(mask, request.inpaint.blur) if request.inpaint.blur else mask


def _check_worked_on(request: GenerationRequest, image: ImageInput, limits: ImageConfig) -> None:
    """Refuse a picture that is worked on at its own size and has too many pixels for that.

    A start picture is brought to the size of the plan first; extended, filled under a
    mask, blurred or put back into, it is not. Its head tells the size.

    Raises:
        PictureTooLarge: If there are more than may be answered.
    """
    out, asked = request.outpaint, request.inpaint
    is_masked = request.mask is not None or out is not None
    is_whole = asked.area == "masked" or asked.fill == "surroundings" or bool(asked.blur)
    if not (out is not None or (is_masked and is_whole)):
        return
    width, height = read_size(image.data, config=limits)
    if out is not None:
        width, height = width + out.left + out.right, height + out.top + out.bottom
    if width * height > limits.most_output_pixels:
        field = "image" if out is None else "outpaint"
        raise PictureTooLarge(
            f"{field} must give at most {limits.most_output_pixels} pixels, got {width}x{height}: "
            "it is worked on at its own size; send a smaller picture",
            field=field,
            value=f"{width}x{height}",
            allowed=f"at most {limits.most_output_pixels} pixels",
        )


def _extend(
    request: GenerationRequest, image: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Add pixels on the sides: the edge goes on, and all of them are repainted."""
    out = request.outpaint
    assert out is not None  # noqa: S101 - the caller saw to it
    pad = ((out.top, out.bottom), (out.left, out.right))
    inner = np.zeros(image.shape[:2], np.float32) if mask is None else mask
    wide = np.pad(inner, pad, constant_values=np.float32(1))
    return np.pad(image, (*pad, (0, 0)), mode="edge"), wide


def grown(
    box: tuple[int, int, int, int], shape: tuple[int, ...], size: Size
) -> tuple[int, int, int, int]:
    """Widen a box to the proportions of the plan as far as the picture goes."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    wanted_width = max(width, round(height * size.width / size.height))
    wanted_height = max(height, round(width * size.height / size.width))
    left, right = _widen(left, right, wanted_width, shape[1])
    top, bottom = _widen(top, bottom, wanted_height, shape[0])
    return left, top, right, bottom


def _widen(low: int, high: int, wanted: int, limit: int) -> tuple[int, int]:
    wanted = min(wanted, limit)
    low = min(max(low - (wanted - (high - low)) // 2, 0), limit - wanted)
    return low, low + wanted


def draw_inwards(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Replace what a mask covers by what lies around it, softer further in.

    Args:
        image: Shape (H, W, 3), uint8.
        mask: Shape (H, W), 0 to 1; 1 is replaced.

    Returns:
        Shape (H, W, 3), uint8.
    """
    known = (1 - mask)[..., None].astype(np.float32)
    colours = image.astype(np.float32)
    filled, missing = colours * known, 1 - known
    for radius in _FILL_RADII_PX:
        if not (missing.any() and known.any()):  # a wider look round would add nothing
            break
        weight = _blurred(known[..., 0], radius)[..., None]
        planes = [_blurred(colours[..., c] * known[..., 0], radius) for c in range(3)]
        around = np.stack(planes, -1) / np.maximum(weight, 1e-6)
        share = missing * (weight > _KNOWN)
        filled, missing = filled + share * around, missing - share
    mean = (colours * known).sum((0, 1)) / max(float(known.sum()), 1e-6)
    return np.rint((filled + missing * mean).clip(0, 255)).astype(np.uint8)


def _blurred(plane: np.ndarray, radius: float) -> np.ndarray:
    """Blur one plane of floats, its edges going on outside. Shape (H, W)."""
    return _gauss(np.asarray(plane, np.float32), radius)


def _gauss(plane: np.ndarray, radius: float) -> np.ndarray:
    """Convolve with a Gaussian of this standard deviation, three boxes wide. Shape kept."""
    width = max(round((radius**2 * 12 / 3 + 1) ** 0.5), 1) | 1
    half = width // 2
    array = plane.astype(np.float64)
    for _ in range(3):
        for axis in (0, 1):
            pads = [(0, 0), (0, 0)]
            pads[axis] = (half + 1, half)
            total = np.cumsum(np.pad(array, pads, mode="edge"), axis=axis)
            upper, lower = (total[width:], total[:-width]) if not axis else (
                total[:, width:], total[:, :-width]
            )  # fmt: skip
            array = upper - lower
            array /= width
    return array.astype(np.float32)


def _mix(below: np.ndarray, above: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lay one picture over another where a mask says so."""
    share = mask[..., None].astype(np.float32)
    mixed = below.astype(np.float32) * (1 - share) + above.astype(np.float32) * share
    return np.rint(mixed).clip(0, 255).astype(np.uint8)
