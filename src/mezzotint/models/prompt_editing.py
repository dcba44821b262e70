"""Prompt editing: what A1111's ``[before:after:when]`` and ``[a|b]`` mean at each step.

This module only reads text: it resolves a prompt into one text per range of steps.

Source: the grammar as A1111 documents it; torch-free.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mezzotint.models.prompt_syntax import MAX_DEPTH, check_brackets

__all__ = ["PromptEdit", "edits"]

MAX_PIECES = 320_000  # looked at while a text is read, ten a character; then brackets are text


@dataclass(frozen=True, slots=True)
class PromptEdit:
    """A text and the last step (from 1) at which it holds."""

    until_step: int
    text: str


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
        first_pass_steps: Steps of the pass before a second pass, 0 if there is
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
    check_brackets(text)
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
