"""Model abilities: which fields, techniques and schedulers of a request mean something to a model.

Told from its spec alone, for ``/v1/capabilities``, the page and ``models show``.
"""

from typing import Any

from mezzotint.models.cards import request_defaults
from mezzotint.models.spec import ModelSpec
from mezzotint.plain import field_names
from mezzotint.planning.refusals import techniques_of
from mezzotint.planning.schedulers import fitting_schedulers
from mezzotint.request import GenerationRequest
from mezzotint.techniques.table import TECHNIQUES

__all__ = ["ALL_TECHNIQUES", "describe_abilities"]

ALL_TECHNIQUES = frozenset(technique.field for technique in TECHNIQUES)
"""Fields of the techniques that act on models; gates judge what they drew."""


def describe_abilities(spec: ModelSpec, techniques: frozenset[str]) -> dict[str, Any]:
    """Return the schedulers, fields, techniques, defaults and limits of one model.

    Args:
        spec: The model.
        techniques: What this process has.

    Returns:
        ``schedulers``; ``fields`` of a request that mean something to it; ``techniques``
        among them; ``defaults`` of fields where a request says nothing; ``limits`` in pixels
        and tokens.
    """
    of_model = techniques_of(spec, techniques)
    absent = {*ALL_TECHNIQUES, "gates"} - set(of_model)
    if "image" in absent:
        absent.add("strength")
    if "mask" in absent:
        absent.add("inpaint")
    if not spec.takes_prompt:
        absent |= {"prompt", "negative_prompt", "prompt_dialect"}
    if not spec.takes_negative_prompt:
        absent.add("negative_prompt")
    if not spec.has_steps:
        absent |= {"num_inference_steps", "guidance_scale"}
    if not (spec.takes_guidance or spec.takes_distilled_guidance):
        absent.add("guidance_scale")
    has_choice = spec.has_steps and spec.stepwise
    if not has_choice:
        absent |= {"scheduler", "sigma_schedule"}
    fields = [name for name in field_names(GenerationRequest) if name not in absent]
    return {
        "schedulers": list(fitting_schedulers(spec.prediction_type)) if has_choice else [],
        "fields": fields,
        "techniques": list(of_model),
        "defaults": {k: v for k, v in request_defaults(spec).items() if k in fields},
        "limits": {
            "min_size_px": spec.min_size_px,
            "max_size_px": spec.max_size_px,
            "size_multiple": spec.size_multiple,
            "fixed_size": spec.fixed_size,
            "token_limit": spec.token_limit,
            "image_references": [spec.min_references, spec.max_references],
        },
    }
