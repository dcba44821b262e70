"""The verb ``keys``: API keys."""

import json
from typing import Annotated

import typer

__all__ = ["keys_app"]

keys_app = typer.Typer(help="API keys.", no_args_is_help=True)


@keys_app.callback()
def keys() -> None:
    """API keys."""


@keys_app.command("new")
def new(
    name: Annotated[str, typer.Option(help="Who it is for; one word.")] = "",
    scopes: Annotated[
        str, typer.Option(help="Any of generate, manage, metrics, with commas between.")
    ] = "generate,manage,metrics",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a new key, once, and the line to put into the keys file."""
    from mezzotint.serve.auth import new_key

    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    key, line = new_key(name, wanted)
    if as_json:
        print(json.dumps({"key": key, "line": line}))
        return
    print(f"key: {key}")
    print(f"line for the keys file: {line}")
    print("The key is shown this once; the file holds only its digest.")
