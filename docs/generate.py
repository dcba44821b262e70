"""Write the parts of the documentation that come from the code, or check them.

    python -m docs.generate            write
    python -m docs.generate --check    exit 1 if a page is stale

A page holds ``<!-- generated: NAME -->`` and ``<!-- /generated -->``; what stands
between them is made by the function ``NAME`` below. ``mkdocs.yml`` holds
``# generated: FOLDER`` and ``# /generated``, with the pages of that folder between them.
Plots of results are drawn anew.
"""

import dataclasses
import inspect
import re
import sys
import tempfile
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from docs.benchmarks import TABLES
from docs.doors_table import DOORS, Claims
from docs.plots import FIGURES, plots
from docs.tables import Rows, table

from mezzotint import errors, plain, request, settings, vocabulary
from mezzotint.gates.registry import GATES
from mezzotint.schedulers import DIFFUSERS, NATIVE, SIGMA_SCHEDULES
from mezzotint.types import ImageInput

PAGES = Path(__file__).resolve().parent
ROOT = PAGES.parent
BLOCK = re.compile(
    r"(<!-- generated: (?P<name>[a-z0-9_]+) -->\n).*?(<!-- /generated -->)", re.DOTALL
)
NAVIGATION = re.compile(
    r"(?P<first> *# generated: (?P<folder>[a-z-]+)\n).*?(?P<last> *# /generated)", re.DOTALL
)
COST = re.compile(r"^\*\*(?:Cost in model calls|What it costs)\.\*\* (.+?\.)(?=\s|$)", re.M | re.S)


def error_tree() -> str:
    """The exception tree, as drawn in its module."""
    drawing = (errors.__doc__ or "").split("::\n", 1)[1].split("\n\nA message", 1)[0]
    return "```text\n" + inspect.cleandoc(drawing) + "\n```\n"


def request_fields() -> str:
    """Every field of the request and of its parts: type, default, what is allowed, meaning."""
    return "\n".join(_part(cls, where) for cls, where in _parts(request.GenerationRequest, ""))


def _parts(cls: Any, where: str) -> Iterator[tuple[Any, str]]:
    """Yield a part of the request with its path, then the parts below it."""
    yield cls, where
    for name, hint in plain.field_types(cls).items():
        for part in _found(hint):
            inner = f"{where}.{name}" if where else name
            yield from _parts(part, inner.replace("gates.gates", "gates.NAME"))


def _found(hint: Any) -> list[Any]:
    if dataclasses.is_dataclass(hint):
        return [hint] if hint is not ImageInput else []
    return [part for inner in typing.get_args(hint) for part in _found(inner)]


def _part(cls: Any, where: str) -> str:
    """The table of one part."""
    hints, kinds, docs = plain.field_hints(cls), plain.field_types(cls), plain.field_docs(cls)
    rows: list[tuple[str, ...]] = []
    for field in dataclasses.fields(cls):
        if (cls, field.name) == (request.Gates, "gates"):
            continue  # in JSON they stand beside the other fields, each by its name
        default = field.default
        shown = "needed" if default is dataclasses.MISSING else f"`{default!r}`"
        if dataclasses.is_dataclass(default):
            shown = f"`{type(default).__name__}()`"
        name = f"`{plain.json_name(field.name)}`"
        rows.append(
            (
                name,
                f"`{_kind(kinds[field.name])}`",
                shown,
                plain.allowed(hints[field.name]),
                docs[field.name],
            )
        )
    heading = f"### `{where}`\n\n" if where else ""
    return heading + table(("field", "type", "default", "allowed", "meaning"), rows)


def _kind(hint: Any) -> str:
    """A type as a person writes it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_kind(a) for a in arguments)
    if origin is tuple:
        return f"tuple[{', '.join('...' if a is ... else _kind(a) for a in arguments)}]"
    if origin is typing.Literal:
        return "str"
    if origin is Callable:
        return "function"
    return "None" if hint is type(None) else hint.__name__


def settings_table() -> str:
    """Every setting with its default, what it may hold and what it means."""
    loaded = settings.load(environment={})
    home = str(loaded.settings.home)
    rows = []
    for name, value, _, doc, allowed in loaded.rows():
        shown = f"`{value}`"
        if name == "home":
            shown = "the platform's user data folder"
        elif home in str(value):
            shown = f"`{str(value).replace(home, 'HOME')}`"
        rows.append((f"`{name}`", shown, allowed.replace("|", "\\|"), " ".join(doc.split())))
    return table(("setting", "default", "allowed", "meaning"), rows)


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


def doors_table() -> str:
    """What each door honours, ignores and refuses, and the client that it was tried with."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    versions = dict(line.split("==") for line in pins.splitlines() if "==" in line)
    rows = []
    for door in DOORS:
        version = versions.get(door.pin, "").split()
        ours = "every field of the request" if door.takes_ours else ""
        honoured = [*([ours] if ours else []), *(f"`{n}`" for n in door.honoured)]
        lost = [f"`{n}`" for n in door.ignored]
        warned = [f"`{n}`" + _value(door, n) for n in door.warned]
        refused = [f"`{n}`" + _value(door, n, of="refused") for n in door.refused]
        client = f"{door.client} {version[0]}" if version else door.client
        cells = (door.door, client, *(", ".join(c) for c in (honoured, warned, lost, refused)))
        rows.append(cells)
    header = ("door", "client", "honoured", "ignored with a warning", "ignored", "refused")
    return table(header, rows)


def _value(door: Claims, name: str, *, of: str = "warned") -> str:
    """The value of an entry, where other values of the field are honoured or ignored."""
    others = {**door.honoured, **door.ignored}
    value = getattr(door, of)[name]
    if name in others:
        return f" (`{value}`)"
    return " (unknown)" if name == "promt" else ""


def techniques_table() -> str:
    """Every page of a technique with its cost: in the order of the index, newer ones last."""
    folder = PAGES / "techniques"
    order = re.findall(r"^\| \[[^]]+\]\(([\w-]+\.md)\)", (folder / "index.md").read_text(), re.M)
    names = {page.name for page in folder.glob("*.md")} - {"index.md"}
    listed = [name for name in order if name in names]
    rows: Rows = []
    for name in (*listed, *sorted(names - {*listed})):
        text = (folder / name).read_text(encoding="utf-8")
        title, cost = text.partition("\n")[0].removeprefix("# "), COST.search(text)
        if cost is None:
            raise ValueError(f"docs/techniques/{name} does not say what it costs")
        rows.append((f"[{title}]({name})", " ".join(cost[1].split())))
    return table(("technique", "cost in model calls"), rows)


GENERATORS: dict[str, Callable[[], str]] = {
    "error_tree": error_tree,
    "request_fields": request_fields,
    "settings_table": settings_table,
    "schedulers_table": schedulers_table,
    "a1111_samplers": a1111_samplers,
    "gates_table": gates_table,
    "doors_table": doors_table,
    "techniques_table": techniques_table,
    **TABLES,
}


def refreshed(text: str) -> str:
    """Return a page with every generated block made again."""
    return BLOCK.sub(lambda m: m[1] + GENERATORS[m["name"]]() + m[3], text)


def navigated(text: str) -> str:
    """Return the site's navigation with the pages of every folder that is marked, index first."""

    def listed(block: re.Match[str]) -> str:
        folder, indent = block["folder"], " " * block["first"].index("#")
        pages = sorted((PAGES / folder).glob("*.md"), key=lambda p: (p.stem != "index", p.name))
        lines = (f"{indent}- {folder}/{page.name}\n" for page in pages)
        return block["first"] + "".join(lines) + block["last"]

    return NAVIGATION.sub(listed, text)


def main() -> int:
    """Write or check every page, and the navigation."""
    check = "--check" in sys.argv[1:]
    stale = []
    for page in sorted([*PAGES.rglob("*.md"), ROOT / "README.md", ROOT / "mkdocs.yml"]):
        text = page.read_text(encoding="utf-8")
        fresh = navigated(text) if page.suffix == ".yml" else refreshed(text)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if not check:
                page.write_text(fresh, encoding="utf-8")
    for name, draw in plots().items():
        target = FIGURES / name
        with tempfile.TemporaryDirectory() as folder:
            fresh_plot = Path(folder) / name
            draw(fresh_plot)
            if not target.is_file() or fresh_plot.read_bytes() != target.read_bytes():
                stale.append(target.relative_to(ROOT))
                if not check:
                    target.write_bytes(fresh_plot.read_bytes())
    for page in stale:
        print(f"{'stale' if check else 'wrote'}: {page}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
