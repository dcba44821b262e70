"""Bounds: what a field may hold, declared once beside the field.

A bound stands in the field's type and is all that is said about its range::

    width: Annotated[int, Range(1, 16384, "px")] | None = None
    controls: Annotated[tuple[Control, ...], Count(0, 16)] = ()

Everything else is derived from it: the check (:class:`mezzotint.plain.Checked`), the
JSON Schema that a server publishes, the help of the command line and the reference
pages. A bound speaks of one field alone; what two fields say about each other is
checked by the class that holds both.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from mezzotint.errors import InvalidField

__all__ = ["SPACE", "Bound", "Count", "Length", "Pattern", "Range", "Unicode", "whole_numbers"]

SPACE = " \t\r\n"
"""White space that may stand around a number written as text, as JSON has it."""


@runtime_checkable
class Bound(Protocol):
    """What one field may hold, for a value of a type that it knows."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value out of bounds; leave values of other types alone.

        Raises:
            InvalidField: If it is out of bounds; names the field and what is allowed.
        """
        ...

    def schema(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return the keywords of JSON Schema that say the same.

        Args:
            limits: Upper ends that the operator lowered, by their name.
        """
        ...

    @property
    def words(self) -> str:
        """What is allowed, for people: ``1 to 1000 px``."""
        ...


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; never NaN or infinity.

    Args:
        low: The least number.
        high: The greatest.
        unit: Of both, e.g. ``px``.
        limit: Name of the operator's limit that may lower ``high`` at a server.
        as_text: Whether JSON may also hold the number as a text of digits, as it must
            beyond 2**53 where a client's numbers are floats.
    """

    low: float
    high: float
    unit: str = ""
    limit: str = ""
    as_text: bool = False

    def check(self, name: str, value: Any) -> None:
        """Refuse a number out of range."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return
        if not (math.isfinite(value) and self.low <= value <= self.high):
            raise InvalidField(
                f"{name} must be {self.words}, got {value}",
                field=name,
                value=value,
                allowed=self.words,
            )

    def schema(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return the ends of the range, the operator's where it is lower."""
        high = min(self.high, limits.get(self.limit, self.high)) if self.limit else self.high
        return {"minimum": self.low, "maximum": max(high, self.low)}

    def text_schema(self) -> dict[str, Any]:
        """Return the schema of the number as a text; there is no text of a negative one."""
        numbers = whole_numbers(int(self.high), low=1 if self.low >= 1 else 0)
        return {"type": "string", "pattern": f"^[{SPACE}]*{numbers}[{SPACE}]*$"}

    @property
    def words(self) -> str:
        """The range with its unit."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{_exact(self.low)} to {_exact(self.high)}{unit}"


def _exact(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


@dataclass(frozen=True, slots=True)
class Length:
    """Texts of ``least`` to ``most`` characters.

    Args:
        least: Fewest characters.
        most: Most characters, None for any number.
        empty: What to say of an empty text, in place of the numbers.
    """

    least: int = 0
    most: int | None = None
    empty: str = ""

    def check(self, name: str, value: Any) -> None:
        """Refuse a text that is too short or too long."""
        if not isinstance(value, str):
            return
        if len(value) < self.least or (self.most is not None and len(value) > self.most):
            said = f"must be {self.words}, got {len(value)}"
            said = self.empty if self.empty and not value else said
            raise InvalidField(f"{name} {said}", field=name, value=len(value), allowed=self.words)

    def schema(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return the lengths."""
        most = {} if self.most is None else {"maxLength": self.most}
        return ({"minLength": self.least} if self.least else {}) | most

    @property
    def words(self) -> str:
        """The lengths, in characters."""
        return f"{_span(self.least, self.most)} characters"


@dataclass(frozen=True, slots=True)
class Count:
    """Lists of ``least`` to ``most`` entries.

    Args:
        least: Fewest entries.
        most: Most entries.
        of: What they are, for people.
    """

    least: int
    most: int
    of: str = ""

    def check(self, name: str, value: Any) -> None:
        """Refuse a list that is too short or too long."""
        count = len(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else self.least
        if not self.least <= count <= self.most:
            raise InvalidField(
                f"{name} must {'hold' if self.of else 'be'} {self.words}, got {count}",
                field=name,
                value=count,
                allowed=self.words,
            )

    def schema(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return the numbers of entries."""
        return ({"minItems": self.least} if self.least else {}) | {"maxItems": self.most}

    @property
    def words(self) -> str:
        """The numbers of entries."""
        return _span(self.least, self.most) + (f" {self.of}" if self.of else "")


def _span(least: int, most: int | None) -> str:
    if most is None:
        return f"at least {least}"
    if least == most:
        return str(most)
    return f"{least} to {most}" if least else f"at most {most}"


@dataclass(frozen=True, slots=True)
class Pattern:
    """Texts in which a regular expression is found.

    Args:
        regex: One that Python, JavaScript and JSON Schema's validators read alike.
        words: What such a text is, for people.
    """

    regex: str
    words: str

    def check(self, name: str, value: Any) -> None:
        """Refuse a text that is not so."""
        regex = re.sub(r"\$$", r"\\Z", self.regex)  # Python's $ lets a line end follow
        if isinstance(value, str) and re.search(regex, value) is None:
            raise InvalidField(
                f"{name} must be {self.words}, got {value[:80]!r}",
                field=name,
                value=value[:80],
                allowed=self.words,
            )

    def schema(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return the expression."""
        return {"pattern": self.regex}


@dataclass(frozen=True, slots=True)
class Unicode:
    """Texts that any program can write down: no NUL, no half of a surrogate pair."""

    def check(self, name: str, value: Any) -> None:
        """Refuse a text that holds either; what came is told by its place alone."""
        if not isinstance(value, str):
            return
        found = None if value.isascii() else _SURROGATE.search(value)
        place = value.find("\0") if found is None else found.start()
        if place >= 0:
            kind = "NUL" if found is None else "half of a surrogate pair"
            raise InvalidField(
                f"{name} must be {self.words}, got {kind} at character {place}",
                field=name,
                value=f"{kind} at character {place}",
                allowed=self.words,
            )

    def schema(self, limits: Mapping[str, int]) -> dict[str, Any]:
        """Return the expression; JSON that is read whole holds no lone surrogate."""
        return {"pattern": r"^[^\x00]*$"}

    @property
    def words(self) -> str:
        """What such a text is."""
        return "text without NUL and without lone surrogates"


_SURROGATE = re.compile("[\ud800-\udfff]")


def whole_numbers(high: int, *, low: int = 0) -> str:
    """Return a regular expression of the whole numbers ``low`` to ``high`` in digits.

    Args:
        high: The greatest, >= 1.
        low: 0 or 1.

    Zeros may stand in front.

    Example:
        >>> whole_numbers(250, low=1)
        '0*(?:[1-9][0-9]{0,1}|1[0-9]{2}|2[0-4][0-9]{1}|250)'
    """
    digits = str(high)
    same: list[str] = []
    for place, digit in enumerate(digits):
        least = 1 if place == 0 else 0
        rest = len(digits) - place - 1
        if int(digit) > least:
            before = str(least) if int(digit) - 1 == least else f"[{least}-{int(digit) - 1}]"
            same.append(digits[:place] + before + (f"[0-9]{{{rest}}}" if rest else ""))
    fewer = [f"[1-9][0-9]{{0,{len(digits) - 2}}}"] if len(digits) > 1 else []
    some = f"0*(?:{'|'.join([*fewer, *same, digits])})"
    return some if low else f"(?:0+|{some})"
