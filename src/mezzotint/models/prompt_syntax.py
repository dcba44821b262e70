"""Prompt dialects: what weights, edits and breaks in a text mean.

Three tools read the same characters differently, so a request names its
dialect. This module only reads text: it splits a prompt into spans with weights.
Texts that change on the way are :mod:`mezzotint.models.prompt_editing`'s business,
applying the weights to embeddings is the encoder's.

========  ===========================================  ==========================
dialect   up and down                                  nested weights
========  ===========================================  ==========================
plain     none; every character is text                --
a1111     ``(x)`` 1.1, ``[x]`` 1/1.1, ``(x:1.3)``      multiply
comfyui   ``(x)`` 1.1, ``(x:1.3)``                     an explicit one replaces
compel    ``x+`` 1.1, ``x-`` 0.9, ``(x y)1.3``         multiply
========  ===========================================  ==========================

Source: the grammars as their own tools document them; torch-free.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mezzotint.errors import InvalidRequest
from mezzotint.techniques.tags import weight_of

__all__ = [
    "BREAK",
    "MAX_DEPTH",
    "Span",
    "check_brackets",
    "spans",
    "word_pattern",
]

UP = 1.1
DOWN = 1 / 1.1
COMPEL_UP, COMPEL_DOWN = 1.1, 0.9
MAX_DEPTH = 40  # brackets nested deeper than this are text; nobody means them
MAX_BRACKETS = 1000  # reading time grows with their square


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text and its weight."""

    text: str
    weight: float = 1.0


BREAK = Span("BREAK", -1.0)
"""Ends the current chunk of tokens (A1111)."""


def spans(text: str, dialect: str) -> tuple[Span, ...]:
    """Split a prompt into weighted spans.

    Args:
        text: The prompt.
        dialect: ``plain``, ``a1111``, ``comfyui`` or ``compel``.

    Returns:
        Spans in order; neighbours of one weight are joined; never empty.

    Raises:
        InvalidRequest: If the dialect is unknown, the text opens more than 1000
            brackets, or it uses a function of compel (``.blend()``, ``.and()``,
            ``.swap()``) that a prompt cannot hold.

    Example:
        >>> [(s.text, s.weight) for s in spans("an (important) word", "a1111")]
        [('an ', 1.0), ('important', 1.1), (' word', 1.0)]
    """
    readers: dict[str, Callable[[str], list[Span]]] = {
        "plain": lambda plain: [Span(plain)],
        "a1111": _a1111,
        "comfyui": _comfyui,
        "compel": _compel,
    }
    if dialect not in readers:
        raise InvalidRequest(
            f"prompt_dialect must be one of {', '.join(readers)}, got {dialect!r}",
            field="prompt_dialect",
        )
    if dialect != "plain":
        check_brackets(text)
    return tuple(_joined(readers[dialect](text)))


def check_brackets(text: str) -> None:
    """Refuse a text that opens too many brackets.

    Raises:
        InvalidRequest: If it opens more than 1000.
    """
    count = sum(text.count(bracket) for bracket in "([")
    if count > MAX_BRACKETS:
        raise InvalidRequest(
            f"prompt must open at most {MAX_BRACKETS} brackets, got {count}; "
            'prompt_dialect "plain" takes them as text',
            field="prompt",
        )


def _joined(pieces: list[Span]) -> list[Span]:
    """Join neighbours of equal weight; an empty prompt is one empty span."""
    result: list[tuple[list[str], float]] = []
    for piece in pieces:
        if result and piece != BREAK and result[-1][1] == piece.weight:
            result[-1][0].append(piece.text)
        elif piece.text:
            result.append(([piece.text], piece.weight))
    return [Span("".join(texts), weight) for texts, weight in result] or [Span("")]


# --- A1111 ------------------------------------------------------------------------------------

_A1111_TOKEN = re.compile(
    r"\\[\\()\[\]]|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:", re.DOTALL
)
_BREAK = re.compile(r"\bBREAK\b")


def _a1111(text: str) -> list[Span]:
    """Read A1111 emphasis; brackets left open act to the end of the text.

    A weight acts on groups, which hold all text between two brackets: there are at most two
    groups a bracket, while a text may have thousands of pieces.
    """
    groups: list[list[str | None]] = [[]]  # None is a BREAK
    weights = [1.0]
    round_starts: list[int] = []
    square_starts: list[int] = []

    def begin() -> int:
        if groups[-1]:
            groups.append([])
            weights.append(1.0)
        return len(groups) - 1

    def multiply(start: int, factor: float) -> None:
        for k in range(start, len(groups)):
            weights[k] *= factor
        weights[begin()] = 1.0  # what follows stands outside

    for match in _A1111_TOKEN.finditer(text):
        mark, weight = match[0], match[1]
        if mark.startswith("\\") and len(mark) == 2:
            groups[-1].append(mark[1])
        elif mark == "(":
            round_starts.append(begin())
        elif mark == "[":
            square_starts.append(begin())
        elif weight is not None and round_starts:
            multiply(round_starts.pop(), weight_of(weight))
        elif mark == ")" and round_starts:
            multiply(round_starts.pop(), UP)
        elif mark == "]" and square_starts:
            multiply(square_starts.pop(), DOWN)
        else:
            groups[-1] += _at_breaks(mark)
    for start in round_starts:
        multiply(start, UP)
    for start in square_starts:
        multiply(start, DOWN)
    return [
        BREAK if piece is None else Span(piece, weight)
        for group, weight in zip(groups, weights, strict=True)
        for piece in group
    ]


def _at_breaks(text: str) -> list[str | None]:
    """Split at the word BREAK, which takes the spaces around it along; None stands for it."""
    first, *rest = _BREAK.split(text)
    pieces: list[str | None] = [first.rstrip() if rest else first]
    for k, part in enumerate(rest, 1):
        pieces += [None, part.strip() if k < len(rest) else part.lstrip()]
    return pieces


# --- ComfyUI ----------------------------------------------------------------------------------

_OPEN, _CLOSE = "\x00\x01", "\x00\x02"  # escaped parentheses while nesting is read


def _comfyui(text: str) -> list[Span]:
    """Read ComfyUI weights: an explicit weight replaces the one around it."""
    hidden = text.replace(r"\(", _OPEN).replace(r"\)", _CLOSE)
    return [
        Span(s.text.replace(_OPEN, "(").replace(_CLOSE, ")"), s.weight)
        for s in _comfyui_nested(hidden, 1.0, 0)
    ]


def _comfyui_nested(text: str, weight: float, depth: int) -> list[Span]:
    pieces: list[Span] = []
    for group in _top_level_groups(text):
        if depth >= MAX_DEPTH or not (len(group) >= 2 and group[0] == "(" and group[-1] == ")"):
            pieces.append(Span(group, weight))
            continue
        inner, inner_weight = group[1:-1], weight * UP
        head, colon, tail = inner.rpartition(":")
        if colon and head:
            try:
                inner, inner_weight = head, float(tail)
            except ValueError:
                inner = group[1:-1]
        pieces += _comfyui_nested(inner, inner_weight, depth + 1)
    return pieces


def _top_level_groups(text: str) -> list[str]:
    """Split into outermost ``(...)`` groups and the text between them."""
    groups: list[str] = []
    current, depth = "", 0
    for char in text:
        if char == "(" and depth == 0:
            groups.append(current)
            current = char
        elif char == ")" and depth == 1:
            groups.append(current + char)
            current = ""
        else:
            current += char
        depth += (char == "(") - (char == ")" and depth > 0)
    groups.append(current)
    return [g for g in groups if g]


# --- compel -----------------------------------------------------------------------------------

_COMPEL_FUNCTION = re.compile(r"[\")]\s*\.\s*(blend|and|swap)\s*\(")
_COMPEL_SUFFIX = re.compile(r"(\++|-+|\d+\.\d*|\.\d+|\d+)")
_COMPEL_RUN = re.compile(r"(?:\\.|[^\s()\\+\-]|[+-](?=\w))+")
_COMPEL_WORD = re.compile(r"((?:\\.|[^\s()\\+\-]|[+-](?=\w))+)(\++|-+)(?=[\s,.;:!?)]|$)")


def _compel(text: str) -> list[Span]:
    """Read compel's ``word+``, ``word-`` and ``(phrase)1.3``."""
    if function := _COMPEL_FUNCTION.search(text):
        instead = {"blend": "walk", "and": "regions", "swap": "image and strength"}[function[1]]
        raise InvalidRequest(
            f"prompt: compel's .{function[1]}() is not read inside a prompt; "
            f"use the request field {instead}",
            field="prompt",
        )
    pieces: list[Span] = []
    position = 0
    while position < len(text):
        found, position = _compel_group(text, position, depth=0)
        pieces += found
        if position < len(text):  # a closing parenthesis without its opening one is text
            pieces.append(Span(text[position]))
            position += 1
    return pieces


def _compel_group(text: str, start: int, *, depth: int) -> tuple[list[Span], int]:
    """Read until the matching ``)`` or the end; returns the spans and where it stopped."""
    pieces: list[Span] = []
    position = start
    while position < len(text):
        char = text[position]
        if char == ")":
            return pieces, position
        if char == "(" and depth < MAX_DEPTH:
            inner, close = _compel_group(text, position + 1, depth=depth + 1)
            if close >= len(text):  # never closed: the parenthesis is text
                return [*pieces, Span("("), *inner], len(text)
            position = close + 1
            suffix = _COMPEL_SUFFIX.match(text, position)
            weight = _compel_weight(suffix[0]) if suffix else 1.0
            position += len(suffix[0]) if suffix else 0
            pieces += [Span(s.text, s.weight * weight) for s in inner]
        elif word := _COMPEL_WORD.match(text, position):
            pieces.append(Span(_unescape(word[1]), _compel_weight(word[2])))
            position = word.end()
        elif run := _COMPEL_RUN.match(text, position):  # no weight behind any part of it
            pieces.append(Span(_unescape(run[0])))
            position = run.end()
        elif char == "\\" and position + 1 < len(text):
            pieces.append(Span(text[position + 1]))
            position += 2
        else:
            plain = re.compile(r"[^\s()\\]+|\s+").match(text, position)
            piece = plain[0] if plain else char
            pieces.append(Span(piece))
            position += len(piece)
    return pieces, position


def _compel_weight(suffix: str) -> float:
    if suffix[0] == "+":
        return COMPEL_UP ** len(suffix)
    if suffix[0] == "-":
        return COMPEL_DOWN ** len(suffix)
    return float(suffix)


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


# --- names in a prompt -------------------------------------------------------------------------


def word_pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Return what finds words in a prompt: whatever their case, whole, the longest first.

    Example:
        >>> [m[0] for m in word_pattern(["ink", "<cat>"]).finditer("pink Ink <CAT>s")]
        ['Ink', '<CAT>']
    """
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    parts = [
        ("(?<!\\w)" if word[:1].isalnum() else "")
        + re.escape(word)
        + ("(?!\\w)" if word[-1:].isalnum() else "")
        for word in longest_first
    ]
    return re.compile("|".join(parts) or r"(?!)", re.IGNORECASE)
