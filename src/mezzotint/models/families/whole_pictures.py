"""Whole pictures: those of a request on their way into a pipeline that runs whole.

They travel beside the prompt, as named tensors of its conditioning, at the size at which
the pipeline is to see them; it is called with PIL pictures, as people call it.

Dimensions: H and W picture rows and columns.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor

from mezzotint.models.base import Conditioning
from mezzotint.models.exported import exported_class
from mezzotint.models.families.whole_calls import WholeCall
from mezzotint.plain import is_list
from mezzotint.types import Size

__all__ = ["pack_pictures", "picture_arguments", "picture_processors", "strength_of"]

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


def picture_processors(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Load the processors of text and pictures of a pipeline, without what they do with videos.

    transformers reads videos with torchvision alone, and loads no such processor where that is
    missing, though no pipeline that answers pictures gives it one. Pictures are read with PIL
    everywhere, so that a machine with torchvision draws what others draw.

    Args:
        path: The pipeline's folder.
        index: Its ``model_index.json``.

    Returns:
        Arguments of ``from_pretrained``, by role; empty where no part is of this kind.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, ProcessorMixin

    images, texts = cast("Any", AutoImageProcessor), cast("Any", AutoTokenizer)
    found: dict[str, Any] = {}
    for role, entry in index.items():
        if not is_list(entry) or len(entry) != 2 or entry[0] != "transformers":
            continue
        cls = exported_class("transformers", entry[1], where=path / "model_index.json")
        if not issubclass(cls, ProcessorMixin) or "video_processor" not in cls.get_attributes():
            continue
        folder = str(path / role)
        tokenizer = texts.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found[role] = _without_videos(cls)(
            image_processor=images.from_pretrained(
                folder, backend="pil", local_files_only=True, trust_remote_code=False
            ),
            tokenizer=tokenizer,
            video_processor=None,
            chat_template=tokenizer.chat_template,
        )
    return found


def _without_videos(cls: Any) -> Any:
    """Return a kind of processor that needs no processor of videos."""
    usual = cls.check_argument_for_proper_class

    def check(self: Any, argument_name: str, argument: object) -> Any:
        is_for_videos = argument_name == "video_processor"
        return type(argument) if is_for_videos else usual(self, argument_name, argument)

    return type(cls.__name__, (cls,), {"check_argument_for_proper_class": check})
