"""The verb ``bench``: runs the benchmarks of a checkout."""

import ast
import contextlib
import importlib.util
import json
import runpy
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.terminal import fitted
from mezzotint.errors import UnknownName, WorkFailed

__all__ = ["bench"]


def bench(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which; lists them if not given.")
    ] = None,
    *,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON: the list, or what the benchmark measured."),
    ] = False,
) -> None:
    """Run a benchmark of the checkout; arguments after NAME are its own."""
    found = (path for path in sorted(_folder().glob("*.py")) if path.stem[0] != "_")
    known = {path.stem.replace("_", "-"): path for path in found}
    if name is None:
        about = {stem: _summary(path) for stem, path in known.items()}
        lines = [fitted(f"{stem:20} {text}", sys.stdout, 21) for stem, text in about.items()]
        print(json.dumps(about, indent=2) if as_json else "\n".join(lines))
        return
    name = name.replace("_", "-")
    if name not in known:
        raise UnknownName("benchmark", name, known)
    sys.argv = [str(known[name]), *context.args]
    sys.path.insert(0, str(_folder().parent))
    if not as_json:
        runpy.run_path(str(known[name]), run_name="__main__")
        return
    results = known[name].parent / "results"
    before = _stamps(results)
    with contextlib.redirect_stdout(sys.stderr):
        runpy.run_path(str(known[name]), run_name="__main__")
    written = [path for path, stamp in _stamps(results).items() if before.get(path) != stamp]
    measured: dict[str, Any] = {path.stem: json.loads(path.read_bytes()) for path in written}
    print(json.dumps(measured, indent=2))


def _stamps(folder: Path) -> dict[Path, int]:
    """Return when each result of a folder was written, in ns."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.glob("*.json"))}


def _folder() -> Path:
    """Return the folder of benchmarks: beside the sources, or in the current folder."""
    package = importlib.util.find_spec("mezzotint")
    places = [Path.cwd() / "bench"]
    if package and package.origin:
        places.insert(0, Path(package.origin).parents[2] / "bench")
    for place in places:
        if place.is_dir():
            return place
    raise WorkFailed("benchmarks come with a checkout of Mezzotint; there is no folder bench here")


def _summary(path: Path) -> str:
    """Return the first line of a script's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
