"""The table of techniques: what a request may ask for beyond a prompt, a size and steps.

A technique is declared here once. Its part of a request stands in
:mod:`mezzotint.techniques.parts`; what is refused, listed as a capability, checked for
paths, planned beside the caller's thread and asked for by flags follows from its row.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ["ADAPTERS", "FLAGS", "TECHNIQUES", "Flag", "Technique"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag of the command line that sets a field of a request.

    Args:
        name: The flag itself.
        field: The field, dotted for one of a part; "" for the technique's own.
        about: What its text looks like, for its help; "" for the field's own doc line.
        many: Whether it may come several times, for a field that is a list.
    """

    name: str
    field: str = ""
    about: str = ""
    many: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One technique.

    Args:
        field: Of a request; also its name in capabilities.
        stepwise: Whether it acts within denoising steps that the engine takes one by one;
            a model without them, or that runs whole, is refused.
        adapter: Kind of adapter that it puts on the model, "" for none.
        folder: Where adapters of that kind lie, below the home folder.
        suffixes: What their files end in, "" for folders.
        named_in: Where a request names one, for errors of its files.
        worn_as: What people call it, where only some families of models wear it.
        families: Those families; () for every one that takes steps.
        repaints: Whether it needs a model that repaints a part of a picture, which one
            that runs whole may do by itself.
        pads: Whether its own convolutions would have to be padded by ``tiling``.
        is_light: Whether planning it reads no file.
        flags: Of the command line; the first one sets the technique itself, and is named where
            the technique is refused.
    """

    field: str
    stepwise: bool = False
    adapter: str = ""
    folder: str = ""
    suffixes: tuple[str, ...] = ()
    named_in: str = ""
    worn_as: str = ""
    families: tuple[str, ...] = ()
    repaints: bool = False
    pads: bool = False
    is_light: bool = False
    flags: tuple[Flag, ...] = ()

    def is_asked(self, request: Any) -> bool:
        """Whether a request asks for it."""
        return bool(getattr(request, self.field))

    def is_worn_by(self, family: str) -> bool:
        """Whether models of a family can wear it."""
        return not self.families or family in self.families


TECHNIQUES = (
    Technique(
        field="image",
        flags=(
            Flag(name="--image", about="Begin from this picture."),
            Flag(name="--strength", field="strength"),
        ),
    ),
    Technique(
        field="mask",
        stepwise=True,
        repaints=True,
        flags=(
            Flag(name="--mask", about="Repaint where this picture is white."),
            Flag(
                name="--inpaint",
                field="inpaint",
                about="invert,blur=4,fill=noise,area=masked,paste.",
            ),
        ),
    ),
    Technique(
        field="image_references",
        flags=(Flag(name="--image-reference", about="A picture to edit; repeatable.", many=True),),
    ),
    Technique(
        field="controls",
        stepwise=True,
        adapter="control",
        folder="controlnets",
        suffixes=("",),
        named_in="controls.model",
        worn_as="ControlNets",
        families=("sd", "sdxl", "sd3", "flux", "qwen-image"),
        pads=True,
        flags=(
            Flag(
                name="--control", about="NAME:PICTURE[:SCALE[:START:END]]; repeatable.", many=True
            ),
        ),
    ),
    Technique(
        field="loras",
        stepwise=True,
        adapter="lora",
        folder="loras",
        suffixes=(".safetensors",),
        named_in="loras",
        pads=True,
        flags=(Flag(name="--lora", about="NAME[:SCALE]; repeatable.", many=True),),
    ),
    Technique(
        field="image_prompts",
        stepwise=True,
        adapter="image_prompt",
        folder="ip_adapters",
        suffixes=("", ".safetensors"),
        named_in="image_prompts.model",
        worn_as="IP-Adapters",
        families=("sd", "sdxl", "sd3", "flux"),
        pads=True,
        flags=(Flag(name="--image-prompt", about="NAME:PICTURE[:SCALE]; repeatable.", many=True),),
    ),
    Technique(
        field="embeddings",
        stepwise=True,
        adapter="embedding",
        folder="embeddings",
        suffixes=(".safetensors", ".pt", ".bin"),
        named_in="embeddings.name",
        worn_as="textual inversions",
        families=("sd", "sdxl"),
        flags=(
            Flag(
                name="--embedding",
                about="NAME[:TOKEN], a textual inversion; repeatable.",
                many=True,
            ),
        ),
    ),
    Technique(
        field="regions",
        stepwise=True,
        flags=(
            Flag(
                name="--region",
                about="PROMPT@X0,Y0,X1,Y1[;weight=W] or PROMPT@MASK.png.",
                many=True,
            ),
        ),
    ),
    Technique(
        field="ensemble",
        stepwise=True,
        flags=(
            Flag(
                name="--ensemble",
                about="MODEL[:W or :W1,W2,...][;box=X0,Y0,X1,Y1]; repeatable.",
                many=True,
            ),
        ),
    ),
    Technique(
        field="walk",
        is_light=True,
        flags=(
            Flag(name="--walk-to", field="walk.to"),
            Flag(name="--frames", field="walk.frames"),
            Flag(name="--walk-mode", field="walk.mode"),
            Flag(name="--to-seed", field="walk.to_seed"),
            Flag(name="--walk-space", field="walk.space"),
        ),
    ),
    Technique(
        field="outpaint",
        stepwise=True,
        repaints=True,
        flags=(Flag(name="--outpaint", about="LEFT,TOP,RIGHT,BOTTOM to add, px."),),
    ),
    Technique(
        field="hires",
        stepwise=True,
        flags=(
            Flag(name="--hires", about="SCALE or WxH[:latent|lanczos|real-esrgan[:STRENGTH]]."),
        ),
    ),
    Technique(
        field="variation",
        is_light=True,
        flags=(Flag(name="--variation", about="SEED:STRENGTH, part of its noise."),),
    ),
    Technique(field="tiling", stepwise=True, is_light=True, flags=(Flag(name="--tiling"),)),
    Technique(field="upscale", flags=(Flag(name="--upscale", about="FACTOR[:MODEL]."),)),
)
"""In the order in which they are checked."""

ADAPTERS = {t.field: t.adapter for t in TECHNIQUES if t.adapter}
"""The kind of adapter of each request field that names some."""

FLAGS = {flag.field or t.field: flag for t in TECHNIQUES for flag in t.flags}
"""The flag of each request field that techniques have one for."""
