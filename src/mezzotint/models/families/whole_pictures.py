"""Whole pictures: those of a request on their way into a pipeline that runs whole.

They travel beside the prompt, as named tensors of its conditioning, at the size at which
the pipeline is to see them; it is called with PIL pictures, as people call it.

Dimensions: H and W picture rows and columns.
"""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mezzotint.models.base import Conditioning
from mezzotint.models.families.whole_calls import WholeCall
from mezzotint.types import Size

__all__ = ["pack_pictures", "picture_arguments", "strength_of"]

_START, _MASK, _STRENGTH, _REFERENCE = "start_image", "start_mask", "strength", "reference"


def pack_pictures(
    image: Any = None,
    mask: Any = None,
    references: Sequence[Any] = (),
    *,
    strength: float = 1.0,
) -> dict[str, Tensor]:
    """Return the pictures of a request as tensors of one row of a conditioning.

    Args:
        image: To begin from, at the size of the plan. Shape (3, H, W), float32, in [-1, 1].
        mask: Of the part to repaint. Shape (H, W), float32, in [0, 1].
        references: To edit. Each of shape (H, W, 3), uint8.
        strength: Share of the steps that is run on ``image``.
    """
    found: dict[str, Tensor] = {}
    if image is not None:
        picture = torch.as_tensor(image, dtype=torch.float32)
        found[_START] = ((picture + 1) * 127.5).round().to(torch.uint8).movedim(0, -1)[None]
        found[_STRENGTH] = torch.tensor([[strength]], dtype=torch.float64)
    if mask is not None:
        covered = torch.as_tensor(mask, dtype=torch.float32)
        found[_MASK] = (covered * 255).round().to(torch.uint8)[None]
    for k, picture in enumerate(references):
        found[f"{_REFERENCE}{k:02d}"] = torch.as_tensor(picture, dtype=torch.uint8)[None]
    return found


def strength_of(row: Conditioning) -> float:
    """Return the share of the steps that is run: 1 without a picture to begin from."""
    return float(row[_STRENGTH][0, 0]) if _STRENGTH in row else 1.0


def picture_arguments(call: WholeCall, row: Conditioning, size: Size) -> dict[str, Any]:
    """Return what a pipeline is called with for the pictures of one row.

    Args:
        call: What its call takes.
        row: With what :func:`pack_pictures` made, one row.
        size: Of the picture that is drawn.
    """
    found: dict[str, Any] = {}
    if _START in row:
        found |= {"image": _to_picture(row[_START]), "strength": strength_of(row)}
    if _MASK in row:
        found["mask_image"] = _to_picture(row[_MASK])
    references = [_to_picture(row[name]) for name in row if name.startswith(_REFERENCE)]
    if references and call.sized_by_picture:
        references = [
            picture.resize((size.width, size.height), Image.Resampling.LANCZOS)
            for picture in references
        ]
    if references and call.reference_name is not None:
        found[call.reference_name] = references if call.references[1] > 1 else references[0]
    return found


def _to_picture(row: Tensor) -> Image.Image:
    """Return a picture or a mask as PIL has it. Shape (1, H, W, 3) or (1, H, W), uint8."""
    return Image.fromarray(row[0].cpu().numpy())
