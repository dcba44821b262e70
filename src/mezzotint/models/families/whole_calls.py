"""Whole calls: what the call of a diffusers pipeline takes and answers, from its class alone.

No weights are read: a pipeline that draws no picture, or needs what a request cannot give,
is refused by the reason before anything is loaded.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from mezzotint.types import MAX_REFERENCES, Size

__all__ = ["WholeCall", "read_call", "why_refused"]

GUIDANCE = (
    "guidance_scale",
    "true_cfg_scale",
    "prior_guidance_scale",
    "distilled_guidance_scale",
    "decoder_guidance_scale",
)
"""Names that pipelines give to the scale, the first that is there counts."""

_GIVEN = frozenset(
    {
        "self", "prompt", "negative_prompt", "height", "width", "num_inference_steps",
        "generator", "output_type", "class_labels", "image", "input_images", "mask_image",
        "strength", *GUIDANCE,
    }
)  # fmt: skip

_ANSWERS = {
    "frames": "answers video; video is not drawn here",
    "video": "answers video; video is not drawn here",
    "audios": "answers audio; audio is not made here",
    "texts": "answers text, no picture",
    "text": "answers text beside pictures, by the mode it guesses",
    "prediction": "answers a map of a picture (depth, normals), no picture of its own",
    "image_embeds": "answers embeddings for a second pipeline, no picture",
    "image_embeddings": "answers embeddings for a second pipeline, no picture",
}

_UNFIT = {
    "CycleDiffusionPipeline": "needs the prompt of the picture that it changes",
    "FluxPriorReduxPipeline": "answers embeddings for a second pipeline, no picture",
    "ShapEImg2ImgPipeline": "answers a 3D shape; 3D is not made here",
    "ShapEPipeline": "answers a 3D shape; 3D is not made here",
    "StableDiffusionDiffEditPipeline": "needs latents that another call has inverted",
    "StableDiffusionGLIGENPipeline": "needs phrases and boxes, which a request has not",
    "StableDiffusionGLIGENTextImagePipeline": "needs phrases and boxes, which a request has not",
    "StableDiffusionPix2PixZeroPipeline": "needs directions of an edit, which a request has not",
    "StableDiffusionPipelineSafe": "is an outdated pipeline with remote parts",
    "LEditsPPPipelineStableDiffusion": "needs a picture that another call has inverted",
    "LEditsPPPipelineStableDiffusionXL": "needs a picture that another call has inverted",
    "TextToVideoZeroPipeline": "answers video; video is not drawn here",
    "TextToVideoZeroSDXLPipeline": "answers video; video is not drawn here",
    "VersatileDiffusionPipeline": "is three pipelines without a call of its own",
}
"""Pipelines whose call does not show why a request cannot be drawn by them."""

_REFERENCES = {
    "BriaFibo2Pipeline": (0, MAX_REFERENCES),
    "BriaFiboEditPipeline": (1, MAX_REFERENCES),
    "DreamLiteMobilePipeline": (0, 1),
    "DreamLitePipeline": (0, 1),
    "Flux2KleinKVPipeline": (0, MAX_REFERENCES),
    "Flux2KleinPipeline": (0, MAX_REFERENCES),
    "Flux2Pipeline": (0, MAX_REFERENCES),
    "FluxKontextPipeline": (0, 1),
    "GlmImagePipeline": (0, MAX_REFERENCES),
    "JoyImageEditPipeline": (0, 1),
    "LongCatImageEditPipeline": (1, 1),
    "OmniGenPipeline": (0, MAX_REFERENCES),
    "QwenImage21Pipeline": (0, MAX_REFERENCES),
    "QwenImageEditPipeline": (1, 1),
    "QwenImageEditPlusPipeline": (1, MAX_REFERENCES),
    "StableCascadeCombinedPipeline": (0, 0),
    "StableDiffusionInstructPix2PixPipeline": (1, 1),
    "StableDiffusionXLInstructPix2PixPipeline": (1, 1),
    "ZImageOmniPipeline": (0, MAX_REFERENCES),
}
"""Fewest and most pictures that a pipeline edits or draws from, as its code has it."""

_SIZED_BY_REFERENCE = frozenset(
    {"StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"}
)
"""Pipelines that draw at the size of the picture that they change."""

_REFERENCE_NAMES = ("image", "input_images")


Start = Literal["image", "masked"]
"""A picture to begin from, or one with a mask of the part to repaint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCall:
    """What a pipeline's call takes.

    Args:
        names: Its parameters.
        steps: ``num_inference_steps`` where nobody says.
        guidance: The parameter that ``guidance_scale`` of a request speaks to, or None.
        guidance_scale: Its value where nobody says; 1 without one.
        tells_steps: The parameter through which it tells of its steps, or None.
        size: Width and height in pixels where nobody says; None is the network's own.
        takes_negative: Whether a negative prompt acts without a second scale.
        references: Fewest and most pictures that it edits or draws from.
        reference_name: The parameter that takes them, or None.
        start: Whether it begins from a picture, or repaints a part of one.
        sized_by_picture: Whether it draws at the size of the picture that it is given.
    """

    names: frozenset[str]
    steps: int
    guidance: str | None
    guidance_scale: float
    tells_steps: Literal["callback_on_step_end", "callback"] | None
    takes_negative: bool
    size: Size | None = None
    references: tuple[int, int] = (0, 0)
    reference_name: str | None = None
    start: Start | None = None
    sized_by_picture: bool = False

    @property
    def is_true_guidance(self) -> bool:
        """Whether guidance acts only beside a negative prompt, be it empty."""
        return self.guidance == "true_cfg_scale"


def read_call(cls: Any) -> WholeCall:
    """Read what the call of a pipeline class takes, and what it means by default."""
    parameters = inspect.signature(cls.__call__).parameters
    guidance = _guidance_name(parameters)
    tells: Literal["callback_on_step_end", "callback"] | None = None
    if "callback_on_step_end" in parameters:
        tells = "callback_on_step_end"
    elif {"callback", "callback_steps"} <= set(parameters):
        tells = "callback"
    embeds = guidance == "guidance_scale" and "true_cfg_scale" in parameters
    steps = _number(parameters, "num_inference_steps")
    references = _REFERENCES.get(str(cls.__name__), (0, 0))
    start = None if references[1] else _start(parameters)
    return WholeCall(
        names=frozenset(parameters),
        steps=50 if steps is None else int(steps),
        guidance=guidance,
        guidance_scale=_guidance_default(parameters, guidance),
        tells_steps=tells if "num_inference_steps" in parameters else None,
        takes_negative="negative_prompt" in parameters and not embeds,
        size=_size_default(parameters),
        references=references,
        reference_name=next((n for n in _REFERENCE_NAMES if n in parameters), None)
        if references[1]
        else None,
        start=start,
        sized_by_picture=start is not None or cls.__name__ in _SIZED_BY_REFERENCE,
    )


def _start(parameters: Mapping[str, inspect.Parameter]) -> Start | None:
    """Return what a call with a strength begins from, or None for a call without one."""
    if not {"image", "strength"} <= set(parameters):
        return None
    return "masked" if "mask_image" in parameters else "image"


def why_refused(cls: Any) -> str | None:
    """Return why no request can be drawn by a pipeline class, or None if one can."""
    name = str(cls.__name__)
    if name in _UNFIT:
        return _UNFIT[name]
    answers = _answers(cls)
    for field, reason in _ANSWERS.items():
        if field in answers:
            return reason
    if answers and "images" not in answers:
        return f"answers {', '.join(sorted(answers))} in place of images"
    parameters = inspect.signature(cls.__call__).parameters
    names = set(parameters)
    if {"num_frames", "audio_length_in_s"} & names:
        return "makes no single pictures"
    if any("conditioning_scale" in n for n in names) or "control_image" in names:
        return "takes a control picture; name a ControlNet in controls of its base model instead"
    pictures = {"image", "images", "mask_image", "original_image"} & names
    if pictures and name not in _REFERENCES and not _is_started(parameters):
        return f"needs {', '.join(sorted(pictures))} in a way that a request does not give it"
    needed = {
        n
        for n, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    if missing := sorted(needed - _GIVEN):
        given = "text, pictures, size, steps and guidance"
        return f"needs {', '.join(missing)}; a request gives {given} only"
    return None


def _is_started(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether a call begins from the picture of a request, with its mask at its size."""
    start = _start(parameters)
    if start is None or "original_image" in parameters:
        return False
    return start == "image" or {"width", "height"} <= set(parameters)


def _answers(cls: Any) -> set[str]:
    """Return the fields of the outputs that a call names."""
    from diffusers.utils.outputs import BaseOutput

    function = inspect.unwrap(cls.__call__)
    code, found = getattr(function, "__code__", None), set[str]()
    for name in code.co_names if code is not None else ():
        output = function.__globals__.get(name)
        is_output = inspect.isclass(output) and issubclass(output, BaseOutput)
        if is_output and dataclasses.is_dataclass(output):
            found |= {field.name for field in dataclasses.fields(output)}
    return found


def _guidance_name(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """Return which parameter the scale speaks to: the one that acts by default."""
    true = _number(parameters, "true_cfg_scale")
    if true is not None and true > 1:
        return "true_cfg_scale"
    return next((name for name in GUIDANCE if name in parameters), None)


def _guidance_default(parameters: Mapping[str, inspect.Parameter], name: str | None) -> float:
    """Return the scale where nobody says; a schedule is read at its first step."""
    value = _number(parameters, name) if name else None
    if value is None and "guidance_schedule" in parameters:
        schedule = parameters["guidance_schedule"].default
        value = float(cast("tuple[Any, ...]", schedule)[0]) if isinstance(schedule, tuple) else None
    return 1.0 if value is None else value


def _size_default(parameters: Mapping[str, inspect.Parameter]) -> Size | None:
    """Return the size that a call has by default, None where it asks the network."""
    width, height = _number(parameters, "width"), _number(parameters, "height")
    return Size(int(width), int(height)) if width and height else None


def _number(parameters: Mapping[str, inspect.Parameter], name: str) -> float | None:
    value = parameters[name].default if name in parameters else None
    return float(value) if isinstance(value, int | float) else None
