"""Greeting: what ``mezzotint`` alone says, and the verb ``completion``."""

import sys
from typing import Annotated

import typer

import mezzotint
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.session import load_settings
from mezzotint.cli.terminal import columns, escaped

__all__ = ["completion", "greet"]

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_STARTUP = {
    "bash": '~/.bashrc:   eval "$(mezzotint completion bash)"',
    "zsh": '~/.zshrc:   eval "$(mezzotint completion zsh)"',
    "fish": "~/.config/fish/config.fish:   mezzotint completion fish | source",
    "powershell": "$PROFILE:   mezzotint completion powershell | Out-String | Invoke-Expression",
    "pwsh": "$PROFILE:   mezzotint completion pwsh | Out-String | Invoke-Expression",
}


def greet(context: typer.Context) -> None:
    """Say what this is, how it stands here, and what to do next."""
    from mezzotint.cli.local.servers import find_server
    from mezzotint.models.store.store import ModelStore

    settings = load_settings(context).settings
    names = ModelStore(settings.models).names()
    server = find_server(settings.home_path)
    served = f"one runs at {server}" if server else "the web page, and the APIs that you have"
    few = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
    print(f"Mezzotint {mezzotint.__version__} turns words into pictures: the same request, the")
    print("same bytes, and every picture carries the recipe that proves it.")
    print()
    rows = [
        ('  mezzotint generate "a red apple"', "draw one, offline"),
        ("  mezzotint generate -i", "refine a prompt, each line a new picture"),
        (
            "  mezzotint models list",
            f"{len(names)} here: {few}; `models add NAME PATH` brings yours",
        ),
        ("  mezzotint serve", served),
        ("  mezzotint train RUN.toml", "learn a model, or a LoRA of your pictures"),
        ("  mezzotint doctor", "what this machine has, and what would make it faster"),
        ("  mezzotint --help", "everything"),
    ]
    for line in columns(rows):
        print(escaped(line))
    print()
    print(escaped(f"Models, caches and jobs are in {settings.home_path}."))


def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help=f"{', '.join(SHELLS)}.")],
) -> None:
    """Print the completion of a shell: verbs, flags, models, schedulers, adapters, gates."""
    from typer._completion_shared import get_completion_script

    if shell not in SHELLS:
        raise WrongFlag("SHELL", f"must be one of {', '.join(SHELLS)}, got {shell[:60]!r}")
    name = "mezzotint"
    print(get_completion_script(prog_name=name, complete_var="_MEZZOTINT_COMPLETE", shell=shell))
    if sys.stdout.isatty():
        print(f"put this into {_STARTUP[shell]}", file=sys.stderr)
