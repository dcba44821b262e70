"""Refusals: techniques that an engine does not have, or that mean nothing to a model."""

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.adapters import check_adapters
from mezzotint.request import GenerationRequest
from mezzotint.techniques.table import TECHNIQUES, Technique

__all__ = ["check_techniques", "techniques_of"]

_TILEABLE = ("sd", "sdxl", "unconditional")
_WHOLE_FILLS = ("original", "surroundings")


def check_techniques(request: GenerationRequest, spec: ModelSpec, abilities: Abilities) -> None:
    """Refuse technique fields that nothing here would honour.

    Raises:
        InvalidRequest: Names the field and what there is.
    """
    asked = {t.field: t.is_asked(request) for t in TECHNIQUES}
    asked["gates"] = request.gates is not None and bool(request.gates.gates)
    for name, is_asked in asked.items():
        if is_asked and name not in abilities.techniques:
            there = ", ".join(sorted(abilities.techniques)) or "none"
            raise InvalidRequest(
                f"{name} cannot be honoured by this engine; techniques it has: {there}",
                field=name,
                allowed=there,
            )
    _check_pictures(request, spec)
    if request.walk is not None and request.num_images != 1:
        raise InvalidRequest(
            f"num_images must be 1 with walk, got {request.num_images}; "
            "walk.frames counts pictures",
            field="num_images",
            value=request.num_images,
            allowed="1",
        )
    if request.walk is not None and not spec.takes_prompt and request.walk.mode != "seed":
        raise InvalidRequest(
            f'walk.mode must be "seed" for {spec.name}: it takes no text', field="walk.mode"
        )
    if request.walk is not None and request.walk.space == "w" and not spec.has_mapping:
        raise InvalidRequest(
            f'walk.space must be "z" for {spec.name}: it has no mapping network to a space w',
            field="walk.space",
            value="w",
            allowed="z",
        )
    _check_tiling(request, spec)
    takes_steps = spec.has_steps and spec.stepwise
    for technique in TECHNIQUES:
        name = technique.field
        is_repainted = technique.repaints and spec.takes_image and spec.takes_mask
        if takes_steps or is_repainted or not (asked[name] and _needs_steps(technique, spec)):
            continue
        kind = "it takes no denoising steps" if not spec.has_steps else "it runs whole"
        raise InvalidRequest(f"{name} cannot be honoured by {spec.name}: {kind}", field=name)
    check_adapters(request, spec)


def techniques_of(spec: ModelSpec, techniques: frozenset[str]) -> tuple[str, ...]:
    """Return which techniques a model may be asked for, sorted.

    Args:
        spec: The model.
        techniques: What there is, as of :class:`~mezzotint.planning.abilities.Abilities`.
    """
    absent: set[str] = set()
    for technique in TECHNIQUES:
        needs_steps = _needs_steps(technique, spec) and not technique.repaints
        if (
            (needs_steps and not (spec.has_steps and spec.stepwise))
            or (technique.repaints and not (spec.takes_image and spec.takes_mask))
            or not technique.is_worn_by(spec.family)
        ):
            absent.add(technique.field)
    if not spec.takes_image:
        absent.add("image")
    if not spec.max_references:
        absent.add("image_references")
    if spec.family not in _TILEABLE:
        absent.add("tiling")
    return tuple(sorted(techniques - absent))


def _needs_steps(technique: Technique, spec: ModelSpec) -> bool:
    """Whether a technique acts within steps; a walk needs them of models that have some."""
    return technique.stepwise or (technique.field == "walk" and spec.has_steps)


def _check_pictures(request: GenerationRequest, spec: ModelSpec) -> None:
    """Refuse pictures that the model does not take, and the want of those that it needs."""
    references = len(request.image_references)
    if request.image is not None and not spec.takes_image:
        reason = (
            "it takes pictures as image_references"
            if spec.max_references
            else "it has no picture encoder"
        )
        raise InvalidRequest(
            f"image cannot be honoured by {spec.name}: {reason}", field="image", allowed="no image"
        )
    if request.image is None and spec.needs_image:
        raise InvalidRequest(
            f"image is needed for {spec.name}: it changes a picture", field="image"
        )
    is_masked = request.mask is not None or request.outpaint is not None
    if spec.needs_mask and not is_masked:
        raise InvalidRequest(
            f"mask is needed for {spec.name}: it repaints a part of image", field="mask"
        )
    if is_masked and not spec.stepwise and request.inpaint.fill not in _WHOLE_FILLS:
        raise InvalidRequest(
            f"inpaint.fill must be {' or '.join(_WHOLE_FILLS)} for {spec.name}, which runs whole, "
            f"got {request.inpaint.fill}",
            field="inpaint.fill",
            value=request.inpaint.fill,
            allowed=", ".join(_WHOLE_FILLS),
        )
    if spec.min_references <= references <= spec.max_references:
        return
    low, high = spec.min_references, spec.max_references
    allowed = "none" if not high else f"{low} to {high}" if low < high else str(high)
    if not references:
        message = f"is needed for {spec.name}: it edits a picture, got none"
    elif not high:
        message = f"cannot be honoured by {spec.name}: it takes none"
    else:
        message = f"must be at most {high} for {spec.name}, got {references}"
    raise InvalidRequest(
        f"image_references {message}", field="image_references", value=references, allowed=allowed
    )


def _check_tiling(request: GenerationRequest, spec: ModelSpec) -> None:
    """Refuse tiling where no convolution could join the edges, or adapters would not."""
    if not request.tiling:
        return
    if spec.family not in _TILEABLE:
        raise InvalidRequest(
            f"tiling cannot be honoured by {spec.name}: only convolutional networks "
            f"({', '.join(_TILEABLE)}) can join the edges of a picture",
            field="tiling",
            value=True,
            allowed="false",
        )
    for technique in TECHNIQUES:
        if technique.pads and technique.is_asked(request):
            raise InvalidRequest(
                f"tiling cannot be used with {technique.field}: they would have to be padded too",
                field="tiling",
                value=True,
                allowed="false",
            )
