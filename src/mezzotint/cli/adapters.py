"""The verbs ``loras`` and ``controls``: what models can wear, by name."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.session import load_settings
from mezzotint.cli.terminal import columns, escaped

__all__ = ["controls_app", "loras_app"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name in the store, or a path.")]
NewName = Annotated[str, typer.Argument(metavar="NAME", help="Name to give it.")]


def _files(context: typer.Context) -> Any:
    """Open the adapters of this installation."""
    from mezzotint.service.provision.adapter_files import AdapterFiles

    return AdapterFiles(load_settings(context).settings.home_path, allow_paths=True)


def _app(kind: str, noun: str, source: str, about: str) -> typer.Typer:
    """Return the verbs of one kind of adapter."""
    app = typer.Typer(help=about, no_args_is_help=True)

    @app.command("list", help=f"List every {noun} with size and layers.")
    def list_(context: typer.Context, as_json: AsJson = False) -> None:
        from mezzotint.service.provision.adapter_descriptions import describe_adapter

        files = _files(context)
        found = [
            describe_adapter(kind, name, files.path(kind, name)) for name in files.usable(kind)
        ]
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
            return
        if not found:
            print(f"no {noun} is here; mezzotint {kind}s add NAME PATH adds one")
            return
        rows = [("name", "MB", "about")]
        rows += [(a["name"], f"{a['bytes'] / 1e6:.1f}", a["error"] or a["about"]) for a in found]
        for line in columns(rows):
            print(escaped(line))

    @app.command("show", help=f"Show path, digest and contents of a {noun}.")
    def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
        from mezzotint.models.digests import DIGESTS
        from mezzotint.service.provision.adapter_descriptions import (
            adapter_weights,
            describe_adapter,
        )

        path = _files(context).path(kind, name)
        weights = adapter_weights(path)
        found = describe_adapter(kind, name, path)
        found["sha256"] = {file.name: DIGESTS.digest(file) for file in weights}
        if as_json:
            print(json.dumps(found, ensure_ascii=False))
            return
        for key, value in found.items():
            if value not in ("", {}, None):
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                print(escaped(f"{key}: {shown}"))

    @app.command("add", help=f"Add a {noun}; a file is copied, a folder is linked to.")
    def add(
        context: typer.Context,
        name: NewName,
        path: Annotated[Path, typer.Argument(metavar="PATH", help=source)],
        replace: Annotated[
            bool, typer.Option("--replace", help="Take the place of one that has the name.")
        ] = False,
        as_json: AsJson = False,
    ) -> None:
        from mezzotint.models.reading import refuse_special_below
        from mezzotint.service.provision.adapter_descriptions import describe_adapter

        if not path.expanduser().exists():
            raise WrongFlag("PATH", f"cannot read {path}: there is nothing")
        refuse_special_below(path.expanduser())
        files = _files(context)
        there = files.at(kind, str(path))
        error = describe_adapter(kind, name, there)["error"] if there is not None else ""
        if error:
            raise WrongFlag("PATH", f"{path} is no {noun}: {error}")
        target = files.add(kind, name, path.expanduser(), replace=replace)
        found = describe_adapter(kind, name, target)
        print(json.dumps(found) if as_json else escaped(f"{name}: {target} ({found['about']})"))

    @app.command("remove", help=f"Remove a {noun}; what was linked to stays.")
    def remove(context: typer.Context, name: NewName, as_json: AsJson = False) -> None:
        _files(context).remove(kind, name)
        print(json.dumps({"removed": name}) if as_json else escaped(f"removed {name}"))

    return app


loras_app = _app(
    "lora",
    "LoRA",
    "A .safetensors file, or the folder of the run that learnt it.",
    "LoRAs: small changes that models wear.",
)
controls_app = _app(
    "control",
    "ControlNet",
    "A diffusers ControlNet folder.",
    "ControlNets: networks that make a picture follow another.",
)
