"""The verb ``keys``: API keys, and keys that sign pictures."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.terminal import escaped

__all__ = ["keys_app"]

keys_app = typer.Typer(help="API keys, and keys that sign pictures.", no_args_is_help=True)


@keys_app.callback()
def keys() -> None:
    """API keys, and keys that sign pictures."""


@keys_app.command("sign")
def sign(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File of the private key; .pub stands beside it.")
    ] = Path("mezzotint-signing.pem"),
    name: Annotated[str, typer.Option(help="Who signs with it; one word.")] = "mezzotint",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make an Ed25519 key pair that signs pictures, for images.signing_key and output.sign."""
    from mezzotint.images.signing import make_key_pair

    line = make_key_pair(output, name)
    if as_json:
        print(json.dumps({"path": str(output), "line": line}))
        return
    print(f"private key: {output} (images.signing_key; keep it to yourself)")
    print(f"line for whoever trusts it: {line}")


@keys_app.command("new")
def new(
    name: Annotated[str, typer.Option(help="Who it is for; one word.")] = "",
    scopes: Annotated[
        str, typer.Option(help="Any of generate, manage, metrics, with commas between.")
    ] = "generate,manage,metrics",
    file: Annotated[
        Path | None, typer.Option(help="Keys file to put the line into; made if it is not there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a new key, once, and the line to put into the keys file."""
    from mezzotint.serve.auth import new_key

    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    key, line = new_key(name, wanted)
    if file is not None:
        _add(file, line)
    if as_json:
        print(json.dumps({"key": key, "line": line}))
        return
    print(f"key: {key}")
    if file is None:
        print(f"line for the keys file: {line}")
    else:
        print(escaped(f"its line was put into {file}"))
    print("The key is shown this once; the file holds only its digest.")


def _add(file: Path, line: str) -> None:
    """Put a line at the end of a keys file that stays readable for the server.

    Raises:
        InvalidRequest: If the file has other lines, a key of that name, or cannot be written.
    """
    from mezzotint.serve.auth import read_keys
    from mezzotint.serve.config import Limits

    path = file.expanduser()
    try:
        before = path.read_text("utf-8") if path.exists() else ""
        text = before if not before or before.endswith("\n") else f"{before}\n"
        read_keys(f"{text}{line}\n", Limits())
        with open(path, "a", encoding="utf-8", opener=_private) as stream:
            stream.write(f"{text[len(before) :]}{line}\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WrongFlag("--file", f"cannot write the keys file {file}: {error}") from None


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
