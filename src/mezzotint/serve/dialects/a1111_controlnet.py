"""ControlNet units of A1111: ``alwayson_scripts.controlnet.args`` into request fields.

A unit's ``module`` is our ``preprocess``, its ``weight`` our ``scale``, its
``guidance_start`` and ``guidance_end`` our ``start`` and ``end``, its ``union_control_type`` our
``mode``. Of its ``control_mode``, "ControlNet is more important" is our ``guess``: it fades the
ControlNet from the picture's edge inwards as diffusers' guess mode does, and steers the prompt's
half alone. A picture is always prepared at the size of what is drawn, as with
``pixel_perfect``. What a unit asks for beyond that is said in the warnings.
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from mezzotint.bounds import Range
from mezzotint.errors import InvalidField, InvalidRequest, UnknownName
from mezzotint.plain import Checked, is_mapping
from mezzotint.preprocessing import A1111_MODULES, PREPROCESSORS, spell_number
from mezzotint.serve.schema import PICTURE, foreign, object_schema
from mezzotint.serve.wire import read_fields
from mezzotint.techniques.parts import ControlScale
from mezzotint.types import ImageInput, Share

__all__ = ["FIELD", "read_units", "scripts_schema"]

FIELD = "alwayson_scripts.controlnet.args"
_THRESHOLDS = ("threshold_a", "threshold_b")
_GUESSES = (2, "ControlNet is more important")
UnionType = Literal[
    "OpenPose", "Depth", "Soft Edge", "Hard Edge", "Normal Map", "Segmentation", "Tile", "Inpaint",
    "Unknown",
]  # fmt: skip
_UNION_TYPES = get_args(UnionType)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit(Checked):
    """What a ControlNet unit takes.

    Args:
        enabled: Whether it acts.
        model: Name of the ControlNet; ``None`` leaves the unit out.
        module: How the picture is prepared.
        image: The picture; that of ``img2img`` if there is none.
        input_image: Older name of ``image``.
        weight: Strength, 0 is off.
        guidance_start: Share of the steps after which it begins to act.
        guidance_end: Share of the steps after which it stops.
        control_mode: What counts more, the prompt or the picture.
        guess_mode: Older name of the mode in which the picture does.
        union_control_type: What a union of ControlNets follows in the picture.
        threshold_a: First number of the module; negative is its own default.
        threshold_b: Second number of the module; negative is its own default.
    """

    enabled: bool = True
    model: str = "None"
    module: str = "none"
    image: Any = None
    input_image: Any = None
    weight: ControlScale = 1.0
    guidance_start: Share = 0.0
    guidance_end: Share = 1.0
    control_mode: Any = 0
    guess_mode: bool = False
    union_control_type: UnionType = "Unknown"
    threshold_a: float = -1.0
    threshold_b: float = -1.0


_LEFT_OUT: Mapping[str, tuple[Any, ...]] = {
    "control_mode": (None, 0, "Balanced", *_GUESSES),
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
    units = script.get("args") if is_mapping(script) else None
    if not isinstance(units, Sequence) or isinstance(units, str):
        raise InvalidField(f"{FIELD} must be a list of units", field=FIELD, allowed="a list")
    controls: list[dict[str, Any]] = []
    for k, unit in enumerate(cast("Sequence[Any]", units)):
        where = f"{FIELD}[{k}]"
        if not is_mapping(unit):
            raise InvalidField(f"{where} must be an object", field=where, allowed="an object")
        fields, _ = read_fields(_Unit, unit, where)
        picture = _picture(fields.image, f"{where}.image")
        picture = picture or _picture(fields.input_image, f"{where}.input_image")
        preprocess = _preprocess(fields, where)
        if fields.enabled and fields.model.lower() in ("none", ""):
            warnings.append(f"{where} names no model and was left out")
        elif fields.enabled:
            control = _read_unit(fields, where, picture or start_image)
            controls.append(control | ({"preprocess": preprocess} if preprocess else {}))
            warnings += [
                f"{where}.{name} {str(unit[name])[:40]!r} is not offered here and was left out"
                for name, plain in _LEFT_OUT.items()
                if name in unit and unit[name] not in plain
            ]
    return controls


def _script(scripts: Any) -> Any:
    if not is_mapping(scripts):
        return None
    return next((v for k, v in scripts.items() if str(k).lower() == "controlnet"), None)


def _picture(value: Any, where: str) -> str | None:
    """Return a picture as text; it may stand in an object of its own."""
    if is_mapping(value):
        value, where = value.get("image"), f"{where}.image"
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise InvalidField(f"{where} must be a picture as base64", field=where)
    ImageInput.from_base64(value, field=where)
    return value


def _read_unit(fields: _Unit, where: str, picture: str | None) -> dict[str, Any]:
    """Read one unit that is on."""
    if picture is None:
        raise InvalidRequest(
            f"{where}.image must be a picture as base64, none came", field=f"{where}.image"
        )
    found: dict[str, Any] = {
        "model": fields.model.partition(" [")[0],
        "image": picture,
        "scale": fields.weight,
        "start": fields.guidance_start,
        "end": fields.guidance_end,
    }
    if fields.guess_mode or fields.control_mode in _GUESSES:
        found["guess"] = True
    if fields.union_control_type != "Unknown":
        found["mode"] = _UNION_TYPES.index(fields.union_control_type)
    return found


def _preprocess(fields: _Unit, where: str) -> str | None:
    """Translate a module and its thresholds; A1111 sends -1 for one that is not set."""
    module = (fields.module or "none").lower()
    name = A1111_MODULES.get(module)
    if name is None:
        raise UnknownName("ControlNet module", module[:80], A1111_MODULES, field=f"{where}.module")
    values: list[float] = []
    for key, number in zip(_THRESHOLDS, PREPROCESSORS[name], strict=False):
        value = getattr(fields, key)
        values.append(value)
        if value >= 0:
            Range(number.low, number.high).check(f"{where}.{key}", value)
    given = list(itertools.takewhile(lambda value: value >= 0, values))
    return None if name == "none" else ":".join((name, *map(spell_number, given)))


def scripts_schema(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return what ``alwayson_scripts`` may hold: anything, and ControlNet units."""
    unit = foreign(object_schema(_Unit, limits))
    del unit["additionalProperties"]
    shown = [PICTURE, {"const": ""}, {"type": "null"}]
    inside = {"type": "object", "properties": {"image": {"anyOf": shown}}}
    for name in ("image", "input_image"):
        unit["properties"][name] = {"anyOf": [*shown, inside]}
    unit["allOf"] = [_thresholds(name) for name, numbers in PREPROCESSORS.items() if numbers]
    units = {"type": "array", "items": unit}
    script = {"type": "object", "required": ["args"], "properties": {"args": units}}
    return {"patternProperties": {f"^{_any_case('controlnet')}$": script}}


def _thresholds(name: str) -> dict[str, Any]:
    """Return the ranges of the thresholds where a module is asked for."""
    modules = [_any_case(module) for module, ours in A1111_MODULES.items() if ours == name]
    asked = {"properties": {"module": {"type": "string", "pattern": f"^(?:{'|'.join(modules)})$"}}}
    ranges = {
        key: {
            "anyOf": [
                {"type": "null"},
                {"type": "number", "exclusiveMaximum": 0},
                {"type": "number", "minimum": number.low, "maximum": number.high},
            ]
        }
        for key, number in zip(_THRESHOLDS, PREPROCESSORS[name], strict=False)
    }
    return {"if": asked | {"required": ["module"]}, "then": {"properties": ranges}}


def _any_case(text: str) -> str:
    """Return the expression of a text in letters of either case."""
    return "".join(f"[{c}{c.upper()}]" if c.isalpha() else re.escape(c) for c in text)
