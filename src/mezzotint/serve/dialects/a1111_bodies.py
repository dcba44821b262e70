"""A1111 bodies: the fields of ``txt2img`` and ``img2img`` that we read, in its words.

The ranges are our own. Fields that are not here are ignored, as A1111 does; those that
are here are checked even where a switch leaves them without effect.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from mezzotint.bounds import Range
from mezzotint.plain import Checked
from mezzotint.request import UpscaleFactor
from mezzotint.serve.dialects.a1111_controlnet import scripts_schema
from mezzotint.serve.schema import PICTURE, foreign, object_schema
from mezzotint.serve.wire import Body
from mezzotint.techniques.parts import HiresScale, MaskBlur, MaskPadding
from mezzotint.types import (
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    GuidanceScale,
    ImageInput,
    NumImages,
    PromptText,
    Share,
    Steps,
)

__all__ = [
    "BODIES",
    "Enlargement",
    "Extra",
    "ExtraBatch",
    "ExtraEntry",
    "ImageToImage",
    "TextToImage",
]

_AnySeed = Annotated[int, Range(-1, MAX_SEED, as_text=True)]
_SideOrOff = Annotated[int, Range(0, MAX_SIDE_PX, "px", limit="side")]
_HiresSide = Annotated[int, Range(0, MAX_SIDE_PX, "px")]
_NoiseSide = Annotated[int, Range(-1, MAX_SIDE_PX, "px")]
_CoverSide = Annotated[int, Range(1, MAX_SIDE_PX, "px")]  # an operator's limit holds where it acts
_StepsOrOff = Annotated[int, Range(0, MAX_STEPS, limit="steps")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextToImage(Checked):
    """What ``txt2img`` takes.

    Args:
        prompt: What to draw.
        negative_prompt: What to steer away from.
        batch_size: Pictures in one round.
        n_iter: Rounds.
        seed: Of the first picture; -1 draws one.
        steps: Solver steps; the model's own if null.
        cfg_scale: How strictly the prompt is followed, 1 is off.
        width: Pixels; 0 and null are the model's own.
        height: Pixels; 0 and null are the model's own.
        sampler_name: Our ``scheduler``, by A1111's name or ours.
        sampler_index: Older name of ``sampler_name``.
        scheduler: Our ``sigma_schedule``, by A1111's name or ours.
        tiling: Whether opposite edges of the picture meet.
        subseed: Seed to vary towards; -1 draws one.
        subseed_strength: Part of the way, 0 is off.
        seed_resize_from_w: Width that the noise is drawn for; 0 and -1 are off.
        seed_resize_from_h: Height that the noise is drawn for; 0 and -1 are off.
        denoising_strength: Share of the steps that a second pass or ``img2img`` runs.
        enable_hr: Whether there is a second pass.
        hr_upscaler: What enlarges between the passes.
        hr_scale: Of both sides.
        hr_second_pass_steps: Steps of the second pass; 0 are those of the first.
        hr_resize_x: Width of the second pass; 0 goes by ``hr_scale``.
        hr_resize_y: Height of the second pass; 0 goes by ``hr_scale``.
        hr_prompt: Of the second pass; the first's if empty.
        hr_negative_prompt: Of the second pass; the first's if empty.
        send_images: Whether the answer holds the pictures.
    """

    prompt: PromptText = ""
    negative_prompt: PromptText = ""
    batch_size: NumImages = 1
    n_iter: NumImages = 1
    seed: _AnySeed = -1
    steps: Steps | None = None
    cfg_scale: GuidanceScale | None = None
    width: _SideOrOff = 0
    height: _SideOrOff = 0
    sampler_name: str = ""
    sampler_index: str = ""
    scheduler: str = ""
    tiling: bool = False
    subseed: _AnySeed = -1
    subseed_strength: Share = 0.0
    seed_resize_from_w: _NoiseSide = 0
    seed_resize_from_h: _NoiseSide = 0
    denoising_strength: Share = 0.75
    enable_hr: bool = False
    hr_upscaler: str = "Latent"
    hr_scale: HiresScale = 2.0
    hr_second_pass_steps: _StepsOrOff = 0
    hr_resize_x: _HiresSide = 0
    hr_resize_y: _HiresSide = 0
    hr_prompt: str = ""
    hr_negative_prompt: str = ""
    send_images: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageToImage(TextToImage):
    """What ``img2img`` takes beside the fields of ``txt2img``.

    Args:
        init_images: The picture to begin from; only the first is used.
        mask: Picture that is white where the first is repainted; empty is none.
        mask_blur: Radius of a blur of the mask.
        inpainting_fill: What the masked part starts from, by its number.
        inpaint_full_res: Work on the masked part alone.
        inpaint_full_res_padding: Pixels around the mask that are taken along.
        inpainting_mask_invert: Repaint where the mask is black.
        include_init_images: Whether ``parameters`` of the answer holds the pictures sent.
    """

    init_images: tuple[ImageInput, ...] = ()
    mask: ImageInput | None = None
    mask_blur: MaskBlur = 4.0
    inpainting_fill: Literal[0, 1, 2, 3] = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: MaskPadding = 0
    inpainting_mask_invert: Literal[0, 1, False, True] = 0
    include_init_images: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlargement(Checked):
    """How pictures are enlarged.

    Args:
        resize_mode: 0 by a factor, 1 to a size.
        upscaling_resize: Of both sides, by a factor.
        upscaling_resize_w: Width that the picture is brought to cover.
        upscaling_resize_h: Height that the picture is brought to cover.
        upscaling_crop: Cut what overhangs that size, around the middle.
        upscaler_1: Name of the upscaler.
    """

    resize_mode: Literal[0, 1] = 0
    upscaling_resize: UpscaleFactor = 2.0
    upscaling_resize_w: _CoverSide = 512
    upscaling_resize_h: _CoverSide = 512
    upscaling_crop: bool = True
    upscaler_1: str = "None"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra(Enlargement):
    """What ``extra-single-image`` takes.

    Args:
        image: The picture.
    """

    image: ImageInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraEntry(Checked):
    """One picture of a batch.

    Args:
        data: The picture.
        name: Its name.
    """

    data: ImageInput
    name: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtraBatch(Enlargement):
    """What ``extra-batch-images`` takes.

    Args:
        imageList: The pictures.
    """

    imageList: tuple[ImageInput | ExtraEntry, ...]


def _text_to_image(limits: Mapping[str, int]) -> dict[str, Any]:
    return _open(TextToImage, limits, alwayson_scripts=scripts_schema(limits))


def _image_to_image(limits: Mapping[str, int]) -> dict[str, Any]:
    schema = _open(ImageToImage, limits, alwayson_scripts=scripts_schema(limits))
    mask = schema["properties"]["mask"]
    mask["anyOf"] = [{"const": ""}, *mask["anyOf"]]
    pictures = object_schema(ImageToImage, limits)["properties"]["init_images"]
    schema["properties"]["init_images"] = pictures | {"minItems": 1}  # 404 without, as A1111
    return schema | {"required": ["init_images"]}


def _open(cls: Any, limits: Mapping[str, int], **more: Any) -> dict[str, Any]:
    """Return the schema of an object that may hold other fields too."""
    schema = foreign(object_schema(cls, limits))
    del schema["additionalProperties"]
    schema["properties"] |= more
    return schema


def _extra(cls: Any) -> Callable[[Mapping[str, int]], dict[str, Any]]:
    return lambda limits: _open(cls, limits)


def _png_info(limits: Mapping[str, int]) -> dict[str, Any]:
    others = {"type": ["null", "boolean", "number", "array", "object"]}
    blank = {"type": "string", "pattern": "^[ \\t\\r\\n]*$"}
    return {"type": "object", "properties": {"image": {"anyOf": [PICTURE, blank, others]}}}


BODIES: Mapping[str, Body] = {
    "txt2img": Body("A1111TextToImage", _text_to_image),
    "img2img": Body("A1111ImageToImage", _image_to_image),
    "extra-single-image": Body("A1111Extra", _extra(Extra)),
    "extra-batch-images": Body("A1111ExtraBatch", _extra(ExtraBatch)),
    "png-info": Body("A1111PngInfo", _png_info),
    "interrogate": Body("A1111Interrogate", lambda _: {"type": "object"}),
}
