"""Tiers: what a request gives up of its bits for speed, decided while planning.

``exact`` gives up nothing. ``stable`` computes the same numbers in calls of any size,
certified or not, so pictures differ in the last bits. ``turbo`` also computes in lower
precision, and lets every second evaluation reuse what the one before found: deep
features of a U-Net, what the blocks of a transformer added, and the difference that the
prompt makes. Each image decides for itself, from its plan and its own numbers alone, so
the picture does not depend on who else is there.
"""

from dataclasses import dataclass

from mezzotint.models.spec import ModelSpec
from mezzotint.planning.plan import Techniques
from mezzotint.vocabulary import EIGHT_BITS

__all__ = ["Shortcuts", "choose", "has_low_precision", "has_step_cache"]

_INT8_FAMILIES = frozenset({"dit", "flux", "sd", "sd3", "sdxl", "unconditional"})
_DEEP, _BLOCKS = "deep features", "blocks that changed little"
_STEP_CACHES = {
    **dict.fromkeys(("sd", "sdxl"), _DEEP),
    **dict.fromkeys(
        ("dit", "flux", "flux2", "flux2-dev", "pixart", "qwen-image", "sana", "sd3"), _BLOCKS
    ),
}
"""What the step cache of each family that has one reuses, for the recipe."""
_FEWEST_STEPS = 8  # below, neighbouring noise levels are too far apart to share


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcuts:
    """What a plan's tier changes.

    Args:
        rows: For each evaluation how many rows the image sends.
        reused: For each evaluation whether it reuses what the one before found; () for none.
        names: What is done, for the recipe.
        warnings: What was asked for and has no effect.
    """

    rows: tuple[int, ...]
    reused: tuple[bool, ...] = ()
    names: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def has_step_cache(spec: ModelSpec) -> bool:
    """Tell whether a model's denoiser can be called in two parts."""
    return spec.family in _STEP_CACHES


def has_low_precision(spec: ModelSpec) -> bool:
    """Tell whether a model of this family may compute in low precision."""
    return spec.family in _INT8_FAMILIES


def choose(
    tier: str,
    spec: ModelSpec,
    techniques: Techniques,
    *,
    steps: tuple[int, ...],
    rows: tuple[int, ...],
    precision: str = "",
) -> Shortcuts:
    """Decide what a plan gives up.

    Args:
        tier: ``exact``, ``stable`` or ``turbo``.
        spec: The model.
        techniques: What the image asks for beyond prompt and seed.
        steps: As in the plan.
        rows: Rows of each evaluation without shortcuts.
        precision: Low precision that the model's backend has, "" for none.
    """
    if tier != "turbo":
        return Shortcuts(rows=rows)
    names: list[str] = []
    t = techniques
    is_whole = not (t.adapters or t.ensemble or t.tiling)  # the model as it is
    if precision and has_low_precision(spec) and rows and is_whole:
        is_linear = precision in EIGHT_BITS.values()
        what = "linear layers of the denoiser" if is_linear else "denoiser and decoder"
        names.append(f"{what} in {precision}")
    is_plain = not (t.adapters or t.ensemble or t.regions or t.tiling)
    is_single = len(set(steps)) == len(steps)  # one evaluation per step
    reused = _alternate(rows) if is_plain and is_single else (False,) * len(rows)
    shares_guidance = any(r and n > 1 for r, n in zip(reused, rows, strict=True))
    if not has_step_cache(spec) and not shares_guidance:
        reused = (False,) * len(rows)
    if any(reused):
        what = [_STEP_CACHES[spec.family]] if has_step_cache(spec) else []
        what += ["guidance"] if shares_guidance else []
        names.append(f"every second evaluation reuses {' and '.join(what)}")
    warnings = () if names else (f"turbo has no shortcut for this on {spec.name}: it is stable",)
    return Shortcuts(
        rows=tuple(1 if r else n for r, n in zip(reused, rows, strict=True)),
        reused=reused if any(reused) else (),
        names=tuple(names),
        warnings=warnings,
    )


def _alternate(rows: tuple[int, ...]) -> tuple[bool, ...]:
    """Reuse at every second evaluation, never the first or last, nor where guidance sets in."""
    if len(rows) < _FEWEST_STEPS:
        return (False,) * len(rows)
    last = len(rows) - 1
    return tuple(k % 2 == 1 and k < last and rows[k] <= rows[k - 1] for k in range(len(rows)))
