"""ControlNet units of A1111: ``alwayson_scripts.controlnet.args`` into request fields.

A unit's ``module`` is our ``preprocess``, its ``weight`` our ``scale``, its
``guidance_start`` and ``guidance_end`` our ``start`` and ``end``. What a unit asks for
beyond that is said in the warnings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.preprocessing import A1111_MODULES, PREPROCESSORS

__all__ = ["FIELD", "read_units"]

FIELD = "alwayson_scripts.controlnet.args"
_THRESHOLDS = ("threshold_a", "threshold_b")
_LEFT_OUT: Mapping[str, tuple[Any, ...]] = {
    "control_mode": (0, "Balanced"),
    "resize_mode": (0, "Just Resize", "Scale to Fit (Inner Fit)", "Crop and Resize", 1),
    "mask": (None, ""),
    "effective_region_mask": (None, ""),
    "hr_option": ("Both", "HiResFixOption.BOTH", 0),
}


def read_units(
    scripts: Any, warnings: list[str], *, start_image: str | None = None
) -> list[dict[str, Any]]:
    """Read ControlNet units out of ``alwayson_scripts``.

    Args:
        scripts: What came.
        warnings: Told what is left out.
        start_image: The picture of img2img, for units without one.

    Returns:
        The units that are on, as plain ``controls``.

    Raises:
        InvalidRequest: If a unit is no object, or has no picture.
        UnknownName: If its module is not offered.
    """
    script = _script(scripts)
    if script is None:
        return []
    units = script.get("args") if isinstance(script, Mapping) else None
    if not isinstance(units, Sequence) or isinstance(units, str):
        raise InvalidRequest(f"{FIELD} must be a list of units", field=FIELD, allowed="a list")
    controls: list[dict[str, Any]] = []
    for k, unit in enumerate(units):
        where = f"{FIELD}[{k}]"
        if not isinstance(unit, Mapping):
            raise InvalidRequest(f"{where} must be an object", field=where, allowed="an object")
        if unit.get("enabled", True):
            control = _read_unit(unit, where, warnings, start_image)
            controls += [control] if control else []
    return controls


def _script(scripts: Any) -> Any:
    if not isinstance(scripts, Mapping):
        return None
    return next((v for k, v in scripts.items() if str(k).lower() == "controlnet"), None)


def _read_unit(
    unit: Mapping[str, Any], where: str, warnings: list[str], start_image: str | None
) -> dict[str, Any] | None:
    """Read one unit that is on; None if it names no model."""
    model = str(unit.get("model") or "None")
    if model.lower() == "none":
        warnings.append(f"{where} names no model and was left out")
        return None
    picture = unit.get("image") or unit.get("input_image") or start_image
    if isinstance(picture, Mapping):
        picture = picture.get("image")
    if not isinstance(picture, str) or not picture:
        raise InvalidRequest(
            f"{where}.image must be a picture as base64, none came", field=f"{where}.image"
        )
    warnings += [
        f"{where}.{name} {str(unit[name])[:40]!r} is not offered here and was left out"
        for name, plain in _LEFT_OUT.items()
        if name in unit and unit[name] not in plain
    ]
    control = {
        "model": model.partition(" [")[0],
        "image": picture,
        "scale": unit.get("weight", 1.0),
        "start": unit.get("guidance_start", 0.0),
        "end": unit.get("guidance_end", 1.0),
    }
    preprocess = _preprocess(unit, where)
    return control if preprocess is None else control | {"preprocess": preprocess}


def _preprocess(unit: Mapping[str, Any], where: str) -> str | None:
    """Translate a module and its thresholds; A1111 sends -1 for one that is not set."""
    module = str(unit.get("module") or "none").lower()
    name = A1111_MODULES.get(module)
    if name is None:
        raise UnknownName("ControlNet module", module[:80], A1111_MODULES, field=f"{where}.module")
    values: list[str] = []
    for key in _THRESHOLDS[: len(PREPROCESSORS[name])]:
        value = unit.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            break
        values.append(f"{value:g}")
    return None if name == "none" else ":".join((name, *values))
