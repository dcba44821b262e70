"""Write the parts of the documentation that come from the code, or check them.

    python -m docs.generate            write
    python -m docs.generate --check    exit 1 if a page is stale

A page holds ``<!-- generated: NAME -->`` and ``<!-- /generated -->``; what stands
between them is made by the function ``NAME`` below.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

from mezzotint import errors, request, settings, vocabulary
from mezzotint.gates.registry import GATES
from mezzotint.schedulers import DIFFUSERS, NATIVE, SIGMA_SCHEDULES

PAGES = Path(__file__).resolve().parent
ROOT = PAGES.parent
BLOCK = re.compile(
    r"(<!-- generated: (?P<name>[a-z0-9_]+) -->\n).*?(<!-- /generated -->)", re.DOTALL
)


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def error_tree() -> str:
    """The exception tree, as drawn in its module."""
    drawing = (errors.__doc__ or "").split("::\n", 1)[1].split("\n\nA message", 1)[0]
    return "```text\n" + inspect.cleandoc(drawing) + "\n```\n"


def request_fields() -> str:
    """Every field of the request with its type and default."""
    rows = []
    for field in dataclasses.fields(request.GenerationRequest):
        default = field.default
        shown = "" if default is dataclasses.MISSING else f"`{default!r}`"
        if dataclasses.is_dataclass(default):
            shown = f"`{type(default).__name__}()`"
        kind = field.type if isinstance(field.type, str) else inspect.formatannotation(field.type)
        kind = re.sub(r"(mezzotint\.\w+|typing)\.", "", str(kind))
        rows.append((f"`{field.name}`", f"`{kind}`", shown))
    return table(("field", "type", "default"), rows)


def settings_table() -> str:
    """Every setting with its default and what it means."""
    loaded = settings.load(environment={})
    home = str(loaded.settings.home)
    rows = []
    for name, value, _, doc in loaded.rows():
        shown = f"`{value}`"
        if name == "home":
            shown = "the platform's user data folder"
        elif home in str(value):
            shown = f"`{str(value).replace(home, 'HOME')}`"
        rows.append((f"`{name}`", shown, " ".join(doc.split())))
    return table(("setting", "default", "meaning"), rows)


def schedulers_table() -> str:
    """The built-in schedulers, the sigma schedules and the other classes."""
    lines = [
        "Built in, stepped together in one batch: "
        + ", ".join(f"`{name}`" for name in NATIVE.builtin)
        + ".",
        "",
        "Sigma schedules: " + ", ".join(f"`{name}`" for name in SIGMA_SCHEDULES) + ".",
        "",
        "Other diffusers schedulers, by class name, one object per image: "
        + ", ".join(f"`{name}`" for name in DIFFUSERS)
        + ".",
        "",
    ]
    return "\n".join(lines)


def a1111_samplers() -> str:
    """What A1111's sampler names mean here."""
    rows = []
    for name in vocabulary.A1111_SAMPLERS:
        match = vocabulary.match_sampler(name)
        if match is not None:
            rows.append((name, f"`{match.scheduler}`", "" if match.exact else "nearest"))
    return table(("A1111", "ours", ""), rows)


def gates_table() -> str:
    """The gates that are built in."""
    return ", ".join(f"`{name}`" for name in GATES.names()) + "\n"


GENERATORS: dict[str, Callable[[], str]] = {
    "error_tree": error_tree,
    "request_fields": request_fields,
    "settings_table": settings_table,
    "schedulers_table": schedulers_table,
    "a1111_samplers": a1111_samplers,
    "gates_table": gates_table,
}


def refreshed(text: str) -> str:
    """Return a page with every generated block made again."""
    return BLOCK.sub(lambda m: m[1] + GENERATORS[m["name"]]() + m[3], text)


def main() -> int:
    """Write or check every page."""
    check = "--check" in sys.argv[1:]
    stale = []
    for page in sorted([*PAGES.rglob("*.md"), ROOT / "README.md"]):
        text = page.read_text(encoding="utf-8")
        fresh = refreshed(text)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(fresh, encoding="utf-8")
    for page in stale:
        print(f"{'stale' if check else 'wrote'}: {page}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
