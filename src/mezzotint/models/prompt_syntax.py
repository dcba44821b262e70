"""Prompt dialects: what weights, edits and breaks in a text mean.

Three tools read the same characters differently, so a request names its
dialect. This module only reads text: it splits a prompt into spans with weights
and resolves A1111's prompt editing into one text per range of steps. Applying
the weights to embeddings is the encoder's business.

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

__all__ = ["BREAK", "LoraTag", "PromptEdit", "Span", "edits", "lora_tags", "spans", "word_pattern"]

UP = 1.1
DOWN = 1 / 1.1
COMPEL_UP, COMPEL_DOWN = 1.1, 0.9
MAX_DEPTH = 40  # brackets nested deeper than this are text; nobody means them
MAX_BRACKETS = 1000  # reading time grows with their square
MAX_PIECES = 320_000  # looked at while editing is read, ten a character; then brackets are text


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text and its weight."""

    text: str
    weight: float = 1.0


BREAK = Span("BREAK", -1.0)
"""Ends the current chunk of tokens (A1111)."""


@dataclass(frozen=True, slots=True)
class PromptEdit:
    """A text and the last step (from 1) at which it holds."""

    until_step: int
    text: str


@dataclass(frozen=True, slots=True)
class LoraTag:
    """A ``<lora:name:scale>`` tag found in a prompt."""

    name: str
    scale: float


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
        _check_brackets(text)
    return tuple(_joined(readers[dialect](text)))


def _check_brackets(text: str) -> None:
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
            multiply(round_starts.pop(), _number(weight))
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


def _number(text: str) -> float:
    """Read a weight such as ``1.3``; what is no number weighs 1."""
    try:
        return float(text)
    except ValueError:
        return 1.0


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
    groups, current, depth = [], "", 0
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


# --- A1111 prompt editing ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Switch:
    """``[before:after:when]``."""

    before: "tuple[_Node, ...]"
    after: "tuple[_Node, ...]"
    when: str


@dataclass(frozen=True, slots=True)
class _Alternate:
    """``[a|b|...]``, one option per step in turn."""

    options: "tuple[tuple[_Node, ...], ...]"


_Node = str | _Switch | _Alternate
_PLAIN_RUN = re.compile(r"(?:\\.|[^\\\[\]():|])+", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\]")


def edits(
    text: str, num_inference_steps: int, *, first_pass_steps: int = 0
) -> tuple[PromptEdit, ...]:
    """Resolve A1111 prompt editing and alternation into one text per range of steps.

    Args:
        text: The prompt, e.g. ``"a [cat:dog:0.5] on [grass|snow]"``.
        num_inference_steps: Steps of this pass, >= 1.
        first_pass_steps: Steps of the pass before a hires pass, 0 if there is
            none: whole numbers count on from it, fractions run from 1 to 2.

    Returns:
        Texts in order; the last one holds until ``num_inference_steps``. A text
        without editing is returned once, unchanged.

    Raises:
        InvalidRequest: If the text opens more than 1000 brackets.

    Example:
        >>> [(e.until_step, e.text) for e in edits("a [b:3]", 10)]
        [(3, 'a '), (10, 'a b')]
    """
    _check_brackets(text)
    nodes, _ = _EditReader(text).nodes(0, "")

    def resolve_when(when: str) -> int:
        value = float(when)
        fraction_offset = 1.0 if first_pass_steps else 0.0
        if "." in when:
            value = (value - fraction_offset) * num_inference_steps
        else:
            value -= first_pass_steps
        return min(num_inference_steps, int(value))

    boundaries = {num_inference_steps}
    _collect(nodes, num_inference_steps, resolve_when, boundaries)
    return tuple(
        PromptEdit(step, _text_at(nodes, step, resolve_when)) for step in sorted(boundaries)
    )


def _collect(
    nodes: tuple[_Node, ...], steps: int, when: Callable[[str], int], into: set[int]
) -> None:
    """Gather the steps after which the text may change."""
    for node in nodes:
        if isinstance(node, _Switch):
            if (step := when(node.when)) >= 1:
                into.add(step)
            _collect(node.before, steps, when, into)
            _collect(node.after, steps, when, into)
        elif isinstance(node, _Alternate):
            into.update(range(1, steps + 1))
            for option in node.options:
                _collect(option, steps, when, into)


def _text_at(nodes: tuple[_Node, ...], step: int, when: Callable[[str], int]) -> str:
    """Return the text that holds at a step, counted from 1."""
    result = ""
    for node in nodes:
        if isinstance(node, str):
            result += node
        elif isinstance(node, _Switch):
            result += _text_at(node.before if step <= when(node.when) else node.after, step, when)
        else:
            result += _text_at(node.options[(step - 1) % len(node.options)], step, when)
    return result


class _EditReader:
    """Reads nodes by recursive descent; remembers what each place came to.

    Without the memory, brackets that never close would be tried again at every
    level, which is exponential in their number.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._pieces = 0
        self._brackets: dict[int, tuple[list[_Node], int] | None] = {}

    def nodes(self, start: int, stops: str) -> tuple[tuple[_Node, ...], int]:
        """Read until one of ``stops`` or the end; a bracket that fits nothing is text."""
        found: list[_Node] = []
        position = start
        self._pieces += 1
        while position < len(self._text) and self._text[position] not in stops:
            self._pieces += 1
            char = self._text[position]
            if char in "[(" and (read := self._bracket(position)) is not None:
                nodes, position = read
                found += nodes
                continue
            if char in ")]:" and stops:
                break  # inside a bracket, a stray delimiter means that the bracket is text
            run = _PLAIN_RUN.match(self._text, position)
            piece = run[0] if run else char
            found.append(piece)
            position += len(piece)
        return tuple(found), position

    def _bracket(self, start: int) -> tuple[list[_Node], int] | None:
        if self._depth >= MAX_DEPTH or self._pieces > MAX_PIECES:
            return None
        if start not in self._brackets:
            self._depth += 1
            read = self._square if self._text[start] == "[" else self._round
            self._brackets[start] = read(start)
            self._depth -= 1
        return self._brackets[start]

    def _at(self, position: int) -> str:
        return self._text[position : position + 1]

    def _round(self, start: int) -> tuple[list[_Node], int] | None:
        """Read ``(...)`` or ``(...:...)``; emphasis stays text, what is inside may switch."""
        inner, position = self.nodes(start + 1, ":)")
        found: list[_Node] = ["(", *inner]
        if self._at(position) == ":":
            rest, position = self.nodes(position + 1, ":)")
            found += [":", *rest]
        if self._at(position) != ")":
            return None
        return [*found, ")"], position + 1

    def _square(self, start: int) -> tuple[list[_Node], int] | None:
        """Read ``[x]``, ``[x|y]``, ``[x:3]`` or ``[x:y:3]``."""
        for stops in (":|]", ":]"):  # the second try takes "|" as text
            first, position = self.nodes(start + 1, stops)
            delimiter = self._at(position)
            if delimiter == "]":
                return ["[", *first, "]"], position + 1
            if delimiter == "|":
                if (found := self._options(first, position)) is not None:
                    return found
            elif delimiter == ":":
                return self._switch(first, position)
        return None

    def _options(self, first: tuple[_Node, ...], position: int) -> tuple[list[_Node], int] | None:
        options = [first]
        while self._at(position) == "|":
            option, position = self.nodes(position + 1, "|]:")
            options.append(option)
        if self._at(position) != "]":
            return None
        return [_Alternate(tuple(options))], position + 1

    def _switch(self, first: tuple[_Node, ...], position: int) -> tuple[list[_Node], int] | None:
        if when := _WHEN.match(self._text, position + 1):
            return [_Switch((), first, when[1])], when.end()
        second, position = self.nodes(position + 1, ":]")
        if self._at(position) == ":" and (when := _WHEN.match(self._text, position + 1)):
            return [_Switch(first, second, when[1])], when.end()
        return None


# --- LoRA tags --------------------------------------------------------------------------------

_LORA = re.compile(r"<lora:([^:<>]+)(?::([+-]?[\d.]+))?(?::[^<>]*)?>")


def lora_tags(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """Take ``<lora:name:scale>`` tags out of a prompt.

    Returns:
        The text without the tags, and the tags in order; a tag without a scale
        has scale 1.

    Example:
        >>> lora_tags("a cat <lora:ink:0.8>")
        ('a cat ', (LoraTag(name='ink', scale=0.8),))
    """
    found = tuple(LoraTag(m[1], _number(m[2]) if m[2] else 1.0) for m in _LORA.finditer(text))
    return _LORA.sub("", text), found


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
