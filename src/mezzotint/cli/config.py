"""The verb ``config``: every setting with value, origin and meaning."""

import json
from typing import Annotated, Any

import typer

from mezzotint.cli.session import load_settings

__all__ = ["config_app"]

config_app = typer.Typer(help="Settings.", no_args_is_help=True)


@config_app.command("show")
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every setting with its value, where it came from, and what it means."""
    rows = load_settings(context).rows()
    if as_json:
        print(json.dumps([row._asdict() for row in rows], ensure_ascii=False, default=str))
        return
    names = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:{names}}  {_shown(row.value)}  [{row.origin}]  {row.doc}")


def _shown(value: Any) -> str:
    """Return a value as it would be written into the file."""
    return json.dumps(value, ensure_ascii=False, default=str)
