"""The verb ``config``: every setting with value, origin and meaning."""

import json
from typing import Annotated, Any

import typer

from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.local import completing
from mezzotint.cli.session import load_settings
from mezzotint.cli.terminal import escaped
from mezzotint.errors import nearest_name
from mezzotint.settings import Setting

__all__ = ["config_app"]

config_app = typer.Typer(help="Settings.", no_args_is_help=True)


@config_app.command("show")
def show(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="A setting (serve.port), a group (serve.limits) or a part of a name (port).",
            autocompletion=completing.settings,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print settings with value, where it came from, and what it means; all without NAME."""
    rows = load_settings(context).rows()
    if names:
        wanted = {row.name for name in names for row in _named(name, rows)}
        rows = [row for row in rows if row.name in wanted]
    if as_json:
        print(json.dumps([row._asdict() for row in rows], ensure_ascii=False, default=str))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        line = f"{row.name:{width}}  {_shown(row.value)}  [{row.origin}]  {row.doc}"
        print(escaped(line))


def _named(name: str, rows: list[Setting]) -> list[Setting]:
    """Return the settings that a name, a group or a part of a name means.

    Raises:
        WrongFlag: If there are none; names the nearest.
    """
    wanted = f".{name.strip('.').lower()}."
    found = [row for row in rows if wanted in f".{row.name}."]
    if found:
        return found
    near = nearest_name(name, [row.name for row in rows])
    hint = f"did you mean {near}?" if near else "mezzotint config show lists all"
    raise WrongFlag("NAME", f"no setting is called {name!r}; {hint}")


def _shown(value: Any) -> str:
    """Return a value as it would be written into the file."""
    return json.dumps(value, ensure_ascii=False, default=str)
