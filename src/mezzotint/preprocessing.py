"""Preprocessing: the words for how a control picture is prepared, without a pixel.

A preprocessor is written as its name and, behind colons, its numbers:
``canny``, ``canny:100:200``, ``blur:8``. Every text that means the same has one
spelling, which is what plans and cache keys hold; what is done to pixels stands in
:mod:`mezzotint.images.preprocess`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.bounds import SPACE, whole_numbers
from mezzotint.errors import InvalidField, InvalidRequest, UnknownName

__all__ = [
    "A1111_MODULES",
    "PREPROCESSORS",
    "Number",
    "Preprocess",
    "read_preprocess",
    "spell_number",
    "spell_preprocess",
]


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a preprocessor: its name, its default and its range."""

    name: str
    default: float
    low: float
    high: float


PREPROCESSORS: Mapping[str, tuple[Number, ...]] = {
    "none": (),
    "canny": (Number("low", 100, 0, 2040), Number("high", 200, 0, 2040)),
    "invert": (),
    "threshold": (Number("level", 127, 0, 255),),
    "blur": (Number("radius_px", 8, 0, 256),),
    "tile": (Number("factor", 4, 1, 64),),
}
"""Every preprocessor and its numbers, in order."""

_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]*)?")

A1111_MODULES: Mapping[str, str] = {
    "none": "none",
    "canny": "canny",
    "invert": "invert",
    "invert (from white bg & black line)": "invert",
    "threshold": "threshold",
    "blur_gaussian": "blur",
    "tile_resample": "tile",
}
"""What A1111's ControlNet extension calls them."""


def read_preprocess(text: str | None, field: str) -> tuple[str, tuple[float, ...]]:
    """Read a preprocessor and its numbers.

    Args:
        text: E.g. ``canny:100:200``; None is ``none``.
        field: Request field to name in errors.

    Returns:
        The name, and all its numbers.

    Raises:
        UnknownName: If there is no such preprocessor.
        InvalidRequest: If there are too many numbers, or one is out of range.

    Example:
        >>> read_preprocess("canny:50", "controls.preprocess")
        ('canny', (50.0, 200.0))
    """
    name, *given = (text or "none").strip(SPACE).lower().split(":")
    if name not in PREPROCESSORS:
        raise UnknownName("preprocessor", name[:80], PREPROCESSORS, field=field)
    numbers = PREPROCESSORS[name]
    if len(given) > len(numbers):
        shape = ":".join((name, *(number.name.upper() for number in numbers)))
        raise InvalidField(
            f"{field} must look like {shape}, got {(text or '')[:80]!r}", field=field, allowed=shape
        )
    values = [_number(part, numbers[k], name, field) for k, part in enumerate(given)]
    values += [number.default for number in numbers[len(given) :]]
    if name == "canny" and values[0] > values[1]:
        raise InvalidRequest(
            f"{field}: canny's low threshold must not exceed the high one, "
            f"got {values[0]:g} > {values[1]:g}",
            field=field,
        )
    return name, tuple(values)


def spell_preprocess(text: str | None, field: str) -> str | None:
    """Return the one spelling of a preprocessor, None where nothing is done.

    Example:
        >>> spell_preprocess("canny", "controls.preprocess")
        'canny:100:200'
    """
    name, values = read_preprocess(text, field)
    return None if name == "none" else ":".join((name, *map(spell_number, values)))


def _number(text: str, number: Number, name: str, field: str) -> float:
    allowed = f"{number.low:g} to {number.high:g}"
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    if not number.low <= value <= number.high:
        raise InvalidField(
            f"{field}: {name}'s {number.name} must be {allowed}, got {text[:40]!r}",
            field=field,
            value=text[:40],
            allowed=allowed,
        )
    return value


def spell_number(value: float) -> str:
    """Return a number as a preprocessor's text has it: six digits, no exponent."""
    short = f"{value:g}"
    return short if "e" not in short else f"{value:.12f}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Texts that :func:`read_preprocess` reads, as a bound of a field."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a text that cannot be read."""
        if isinstance(value, str):
            read_preprocess(value, name)

    def schema(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return a pattern: every preprocessor with numbers in their ranges."""
        shapes = "|".join(_shape(name, numbers) for name, numbers in PREPROCESSORS.items())
        return {"pattern": f"^(?:[{SPACE}]*(?:{shapes})[{SPACE}]*)?$"}

    @property
    def words(self) -> str:
        """The preprocessors and their numbers."""
        return ", ".join(
            ":".join((name, *(number.name.upper() for number in numbers)))
            for name, numbers in PREPROCESSORS.items()
        )


def _shape(name: str, numbers: tuple[Number, ...]) -> str:
    """Return the expression of one preprocessor, whose numbers may be left out from the end."""
    rest = ""
    for number in reversed(numbers):
        high = int(number.high)
        less = f"{whole_numbers(high - 1, low=int(number.low))}(?:\\.[0-9]*)?"
        rest = f"(?::(?:{less}|0*{high}(?:\\.0*)?){rest})?"
    return "".join(f"[{c}{c.upper()}]" for c in name) + rest
