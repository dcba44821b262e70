"""The commands of the documentation's pages, read as a person reads them.

A ``console`` block is run line by line; a comment before it says how: ``<!-- run: parse, WHY -->``
checks only that the program takes the arguments and says why no more can be done (a server,
somebody's files, a network), ``<!-- run: slow -->`` is run for real, with the slow tests. What is typed in answer to a prompt
stands behind ``>``.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs"
FOLDERS = ("tutorials", "how-to", "techniques")
LEVELS = ("run", "parse", "slow")
_BLOCK = re.compile(
    r"(?:<!-- run: (?P<level>\w+)(?P<why>, [^>]+)? -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```",
    re.DOTALL,
)


class Command(NamedTuple):
    """One line after a prompt.

    Attributes:
        level: ``run``, ``parse`` or ``slow``.
        words: Program and arguments.
    """

    level: str
    words: list[str]


def pages() -> list[Path]:
    """Return the pages whose commands are tested."""
    found = [path for folder in FOLDERS for path in sorted((PAGES / folder).glob("*.md"))]
    return [PAGES / "index.md", *found]


def every_page() -> list[Path]:
    """Return all pages that show commands: those that are run, and those that are only read."""
    found = [path for path in PAGES.rglob("*.md") if "decisions" not in path.parts]
    return sorted([ROOT / "README.md", *found, *(ROOT / "training").rglob("*.md")])


def commands(page: Path) -> list[Command]:
    """Return the commands of a page, in order; a comment behind one is none of it."""
    found: list[Command] = []
    for block in _BLOCK.finditer(page.read_text("utf-8")):
        if block["language"] == "console":
            level = block["level"] or "run"
            assert level in LEVELS, f"{page.name}: there is no level {level}"
            assert bool(block["why"]) == (level == "parse"), f"{page.name}: only parse says why"
            lines = block["text"].splitlines()
            for line in lines:
                if line.startswith("$ "):
                    words = shlex.split(line[2:], comments=True)
                    found += [Command(level, part) for part in _parts(words)]
    return found


def _parts(words: list[str]) -> Iterator[list[str]]:
    """Split what is to be done one after the other (``&&``)."""
    while "&&" in words:
        at = words.index("&&")
        yield words[:at]
        words = words[at + 1 :]
    yield words


def programs(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    blocks = _BLOCK.finditer(page.read_text("utf-8"))
    return [block["text"] for block in blocks if block["language"] == "python"]
