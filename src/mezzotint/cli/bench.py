"""The verb ``bench``: runs the benchmarks of a checkout."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.errors import UnknownName, WorkFailed

__all__ = ["bench"]


def bench(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which; lists them if not given.")
    ] = None,
) -> None:
    """Run a benchmark of the checkout; arguments after NAME are its own."""
    found = (path for path in sorted(_folder().glob("*.py")) if path.stem[0] != "_")
    known = {path.stem.replace("_", "-"): path for path in found}
    if name is None:
        for stem, path in known.items():
            print(f"{stem:20} {_summary(path)}")
        return
    name = name.replace("_", "-")
    if name not in known:
        raise UnknownName("benchmark", name, known)
    sys.argv = [str(known[name]), *context.args]
    sys.path.insert(0, str(_folder().parent))
    runpy.run_path(str(known[name]), run_name="__main__")


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
