"""The table of techniques: what a request may ask for beyond a prompt, a size and steps.

A technique is declared here once. Its part of a request stands in
:mod:`mezzotint.techniques.parts`; what is refused, listed as a capability, checked for
paths and planned beside the caller's thread follows from its row.
"""

from dataclasses import dataclass
from typing import Any

__all__ = ["ADAPTERS", "TECHNIQUES", "Technique"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Technique:
    """One technique.

    Args:
        field: Of a request; also its name in capabilities.
        stepwise: Whether it acts within denoising steps that the engine takes one by one;
            a model without them, or that runs whole, is refused.
        adapter: Kind of adapter that it puts on the model, "" for none.
        unet: What people call it, where only U-Nets wear it; "" for every network.
        repaints: Whether it needs a model that repaints a part of a picture, which one
            that runs whole may do by itself.
        pads: Whether its own convolutions would have to be padded by ``tiling``.
        is_light: Whether planning it reads no file.
    """

    field: str
    stepwise: bool = False
    adapter: str = ""
    unet: str = ""
    repaints: bool = False
    pads: bool = False
    is_light: bool = False

    def is_asked(self, request: Any) -> bool:
        """Whether a request asks for it."""
        return bool(getattr(request, self.field))


TECHNIQUES = (
    Technique(field="image"),
    Technique(field="mask", stepwise=True, repaints=True),
    Technique(field="image_references"),
    Technique(field="controls", stepwise=True, adapter="control", unet="ControlNets", pads=True),
    Technique(field="loras", stepwise=True, adapter="lora", pads=True),
    Technique(
        field="image_prompts", stepwise=True, adapter="image_prompt", unet="IP-Adapters", pads=True
    ),
    Technique(field="embeddings", stepwise=True, adapter="embedding", unet="textual inversions"),
    Technique(field="regions", stepwise=True),
    Technique(field="ensemble", stepwise=True),
    Technique(field="walk", is_light=True),
    Technique(field="outpaint", stepwise=True, repaints=True),
    Technique(field="hires", stepwise=True),
    Technique(field="variation", is_light=True),
    Technique(field="tiling", stepwise=True, is_light=True),
    Technique(field="upscale"),
)
"""In the order in which they are checked."""

ADAPTERS = {t.field: t.adapter for t in TECHNIQUES if t.adapter}
"""The kind of adapter of each request field that names some."""
