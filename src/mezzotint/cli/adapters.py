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
        files = _files(context)
        found = [_describe(kind, name, files.path(kind, name)) for name in files.names(kind)]
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

        path = _files(context).path(kind, name)
        weights = _weights(path)
        found = _describe(kind, name, path)
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
        as_json: AsJson = False,
    ) -> None:
        if not path.expanduser().exists():
            raise WrongFlag("PATH", f"cannot read {path}: there is nothing")
        files = _files(context)
        target = files.add(kind, name, path.expanduser())
        found = _describe(kind, name, target)
        if found["error"]:
            files.remove(kind, name)
            raise WrongFlag("PATH", f"{path} is no {noun}: {found['error']}")
        print(json.dumps(found) if as_json else escaped(f"{name}: {target} ({found['about']})"))

    @app.command("remove", help=f"Remove a {noun}; what was linked to stays.")
    def remove(context: typer.Context, name: NewName, as_json: AsJson = False) -> None:
        _files(context).remove(kind, name)
        print(json.dumps({"removed": name}) if as_json else escaped(f"removed {name}"))

    return app


def _weights(path: Path) -> list[Path]:
    """Return the weights of an adapter."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def _describe(kind: str, name: str, path: Path) -> dict[str, Any]:
    """Read what an adapter says of itself, without its weights and without torch."""
    from mezzotint.errors import MezzotintError
    from mezzotint.models.parts import read_header, read_json

    found: dict[str, Any] = {"name": name, "path": str(path), "bytes": 0, "about": "", "error": ""}
    try:
        headers = [read_header(file) for file in _weights(path)]
        found["bytes"] = sum(header.data_bytes for header in headers)
        tensors = {key: shape for h in headers for key, (_, shape) in h.tensors.items()}
        metadata = {key: text for h in headers for key, text in h.metadata.items()}
        if kind == "lora":
            found |= _lora(tensors, metadata)
        else:
            found |= _control(read_json(path / "config.json"), bool(headers))
    except MezzotintError as error:
        found["error"] = str(error)
    return found


_DOWN = ("lora_A", "lora_down", "lora.down")  # diffusers and PEFT, kohya, early diffusers


def _lora(tensors: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> dict[str, Any]:
    """Describe a LoRA: its rank, how many layers it changes, what its trainer says of it."""
    downs = {key: shape for key, shape in tensors.items() if any(d in key for d in _DOWN)}
    if not downs:
        return {"error": "no layer in it is a low-rank change (lora_A, lora_down)"}
    ranks = sorted({shape[0] for shape in downs.values()})
    networks = sorted({"text encoder" if _is_text(key) else "denoiser" for key in downs})
    told = ("ss_base_model_version", "ss_sd_model_name", "base_model", "base", "modelspec.title")
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return {
        "about": f"{rank}, {len(downs)} layers of {' and '.join(networks)}",
        "ranks": ranks,
        "layers": len(downs),
        "networks": networks,
        "metadata": {key: metadata[key] for key in told if metadata.get(key)},
    }


def _is_text(key: str) -> bool:
    return key.startswith(("text_encoder", "lora_te"))


def _control(config: dict[str, Any], has_weights: bool) -> dict[str, Any]:
    """Describe a ControlNet: its class, and which networks it was made for."""
    name = config.get("_class_name", "")
    if "ControlNet" not in str(name):
        return {"error": f"its config.json is of {name or 'nothing that is named'}"}
    if not has_weights:
        return {"error": "there are no safetensors beside its config.json"}
    width: Any = config.get("cross_attention_dim")
    family = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}.get(width, "")
    about = f"{name}, text features {width}{f' ({family})' if family else ''}"
    return {"about": about, "cross_attention_dim": width}


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
