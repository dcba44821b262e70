r"""Infotext: the generation parameters of a picture as A1111 writes them.

Everybody in the field reads this text, so every picture of ours carries it
beside its recipe. Text only: where it is stored is :mod:`mezzotint.textchunks`'
business. ::

    a cat, sitting
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, RNG: CPU

Source: the grammar of A1111 1.10. A value is JSON-quoted if it holds a comma, a
colon or a line break; a missing key means a default (``RNG`` is then the GPU, so
CPU noise has to say so).
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Infotext", "format_infotext", "parse_infotext"]

_QUOTED = re.compile(r'"(?:\\.|[^\\"])++"(?=,|$)')
_MAX_TEXT = 1_000_000  # real ones have thousands of characters
_MIN_PAIRS = 3  # fewer on the last line, and it belongs to the prompt
_NEGATIVE = "Negative prompt:"

_ORDER = (
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Distilled CFG Scale",
    "Image CFG scale",
    "Seed",
    "Face restoration",
    "Size",
    "Model hash",
    "Model",
    "Variation seed",
    "Variation seed strength",
    "Denoising strength",
    "Clip skip",
    "ENSD",
    "Init image hash",
    "RNG",
)


class Infotext(NamedTuple):
    """A parsed text: prompt, negative prompt, and the last line's pairs as texts."""

    prompt: str
    negative_prompt: str
    fields: dict[str, str]


def format_infotext(
    prompt: str, negative_prompt: str = "", fields: Mapping[str, object] | None = None
) -> str:
    """Write the text.

    Args:
        prompt: May span lines.
        negative_prompt: Left out if empty.
        fields: Pairs of the last line; None values are left out. Known keys come
            in A1111's order, others behind them, ``Version`` last. A one-letter
            key would be lost by readers and is refused.

    Raises:
        ValueError: If a key does not fit the grammar.

    Example:
        >>> print(format_infotext("a cat", fields={"Seed": 1, "Steps": 20}))
        a cat
        Steps: 20, Seed: 1
    """
    lines = [prompt]
    if negative_prompt:
        lines.append(f"{_NEGATIVE} {negative_prompt}")
    entries = {key: value for key, value in (fields or {}).items() if value is not None}
    known = [key for key in _ORDER if key in entries]
    rest = [key for key in entries if key not in _ORDER and key != "Version"]
    version = ["Version"] if "Version" in entries else []
    pairs = [_format_pair(key, _text(entries[key])) for key in (*known, *rest, *version)]
    if pairs:
        lines.append(", ".join(pairs))
    return "\n".join(lines)


def _text(value: object) -> str:
    """Write whole floats as A1111 users write them: 7, not 7.0."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _format_pair(key: str, value: str) -> str:
    if not re.fullmatch(r"\w[\w \-/]+", key):
        raise ValueError(f"an infotext key needs two or more plain characters, got {key!r}")
    if key == value:
        return key
    if any(mark in value for mark in ',:\n"') or value != value.strip():
        value = json.dumps(value, ensure_ascii=False)
    return f"{key}: {value}"


def parse_infotext(text: str) -> Infotext | None:
    """Read the text as A1111 does.

    Returns:
        The parts, or None if the last line holds fewer than three pairs or the text has
        more than a million characters.
    """
    if len(text) > _MAX_TEXT:
        return None
    *lines, last = text.strip().split("\n")
    pairs = _read_pairs(last)
    if len(pairs) < _MIN_PAIRS:
        return None
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        stripped = line.strip()
        if target is prompt and stripped.startswith(_NEGATIVE):
            target = negative
            stripped = stripped[len(_NEGATIVE) :].strip()
        target.append(stripped)
    fields = {key.strip(): _unquote(value.strip()) for key, value in pairs}
    return Infotext("\n".join(prompt).strip(), "\n".join(negative).strip(), fields)


def _read_pairs(line: str) -> list[tuple[str, str]]:
    """Read the pairs of a line in time proportional to its length.

    A key is what stands before a colon: a letter, digit or underscore, then such, spaces,
    dashes and slashes, two characters or more. Text that belongs to no pair is passed over.
    Colons are visited in turn, and what stands before one is looked at once, which a pattern
    for whole pairs, tried at every character, would do again and again.
    """
    pairs: list[tuple[str, str]] = []
    start = 0
    while (colon := line.find(":", start)) >= 0:
        key = _key_before(line, start, colon)
        if key is None:
            start = colon + 1
            continue
        begin = colon + 1
        while begin < len(line) and line[begin].isspace():
            begin += 1
        quoted = _QUOTED.match(line, begin)
        comma = line.find(",", begin)
        end = quoted.end() if quoted else comma if comma >= 0 else len(line)
        pairs.append((key, line[begin:end]))
        start = end + 1
    return pairs


def _key_before(line: str, start: int, colon: int) -> str | None:
    """Return the key that ends at a colon and begins at ``start`` or later, if there is one."""
    first = None
    position = colon - 1
    while position >= start and (_is_word(line[position]) or line[position] in " -/"):
        if _is_word(line[position]):
            first = position
        position -= 1
    return None if first is None or colon - first < 2 else line[first:colon]


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _unquote(value: str) -> str:
    if not (value.startswith('"') and value.endswith('"') and len(value) > 1):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
