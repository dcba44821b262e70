"""JSON faults: which field of a body makes it no JSON that could be read.

The reader of JSON tells a line and a column. A person who wrote NaN, a number beyond all
floats, a lone surrogate or bytes that are no UTF-8 wants to know the field. Here a body
that was refused is read again, leniently, to find the first such value.
"""

import json
import math
import re
from typing import Any, NamedTuple, cast

__all__ = ["Fault", "find_fault"]

_MOST_BYTES = 4 << 20
"""Longer bodies are not read twice: their fault stays a line and a column."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTES = re.compile("[\udc80-\udcff]")


class Fault(NamedTuple):
    """A value that no JSON reader takes.

    Args:
        field: Its path, e.g. ``regions[1].weight``.
        what: What it is, for people.
        is_number: Whether it is a number that JSON could write and no float could hold.
    """

    field: str
    what: str
    is_number: bool = False


class _Word(str):
    """One of the words that are no JSON: NaN, Infinity, -Infinity."""

    __slots__ = ()


class _Huge(str):
    """A number that no float could hold."""

    __slots__ = ()


def find_fault(body: bytes) -> Fault | None:
    """Return the first value of a refused body that is to blame, None if it is the grammar.

    Args:
        body: What came; no JSON.

    Example:
        >>> find_fault(b'{"seed": 1, "strength": NaN}')
        Fault(field='strength', what='NaN', is_number=False)
    """
    if len(body) > _MOST_BYTES:
        return None
    text = body.decode("utf-8", "surrogateescape")
    try:
        value = json.loads(text, parse_constant=_Word, parse_float=_number, parse_int=_number)
    except (ValueError, RecursionError):
        return None
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, one = waiting.pop()
        fault = _fault_of(path, one)
        if fault is not None:
            return fault
        if isinstance(one, dict):
            inside = [
                (f"{path}.{key}" if path else key, entry)
                for key, entry in cast("dict[str, Any]", one).items()
            ]
        elif isinstance(one, list):
            entries = enumerate(cast("list[Any]", one))
            inside = [(f"{path}[{place}]", entry) for place, entry in entries]
        else:
            continue
        bad = next((key for key, _ in inside if _SURROGATE.search(key)), None)
        if bad is not None:
            name = path or "the body"
            return Fault(path or "body", f"a field of {name} whose name is no Unicode text")
        waiting += reversed(inside)
    return None


def _number(text: str) -> float | _Huge:
    """Read a number; how large a whole one is does not matter here."""
    value = float(text)
    return value if math.isfinite(value) else _Huge(text[:40])


def _fault_of(path: str, value: object) -> Fault | None:
    if isinstance(value, _Word):
        return Fault(path, str(value))
    if isinstance(value, _Huge):
        return Fault(path, f"the number {value}", is_number=True)
    if not isinstance(value, str):
        return None
    if _BYTES.search(value):
        return Fault(path, "bytes that are no UTF-8 or half of a surrogate pair")
    if _SURROGATE.search(value):
        return Fault(path, "half of a surrogate pair")
    return None
