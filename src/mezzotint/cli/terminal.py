"""Terminal: text from strangers as one harmless line.

A prompt, a model's licence or a file's name may hold escape sequences that recolour,
retitle or overwrite a terminal, line breaks that forge further lines, and marks that turn
the direction of reading. Each becomes visible as an escape of Python's.
"""

import os
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import TextIO

__all__ = ["columns", "escaped", "fitted"]

# Cc control, Cf format (bidirectional marks, zero width), Cs lone surrogates, Zl and Zp breaks.
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINER = "\u200d"  # holds emoji and scripts together, and moves nothing


def escaped(text: object) -> str:
    r"""Return text for one line of a terminal.

    Args:
        text: Anything; its ``str`` is taken.

    Returns:
        The text with every control, format and line-breaking character as ``\x1b``,
        ``\n`` or ``\u202e``; other characters, a backslash included, stay.

    Example:
        >>> escaped("red\x1b[31m\nline")
        'red\\x1b[31m\\nline'
    """
    words = str(text)
    if words.isascii() and words.isprintable():
        return words
    return "".join(_visible(character) for character in words)


def _visible(character: str) -> str:
    if character == _JOINER or unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape").decode("ascii")


def fitted(line: str, stream: TextIO, indent: int = 2) -> str:
    """Return a line broken between words where the terminal that shows it ends.

    Where nobody looks (a file, a pipe) the line stays whole, so that scripts read one line.

    Args:
        line: One line of text, escaped.
        stream: Where it will be written.
        indent: Columns before each line but the first.
    """
    try:
        width = os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):  # closed, or no terminal after all
        width = 0
    if width < 2 * indent + 20 or len(line) <= width:
        return line
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines: each column as wide as its widest cell, the last as it is.

    Example:
        >>> columns([("name", "size"), ("plate", "128x128")])
        ['name   size', 'plate  128x128']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [
        "  ".join([*(f"{c:{w}}" for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]
