"""The verbs ``models`` and ``archive``: what is in the store, and how it travels."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.flags import WrongFlag, placement_help
from mezzotint.cli.local import completing
from mezzotint.cli.session import load_settings
from mezzotint.cli.terminal import columns, escaped, fitted
from mezzotint.errors import InvalidRequest, MezzotintError, UnknownName
from mezzotint.plain import is_dict, is_list

__all__ = ["archive_app", "models_app"]

models_app = typer.Typer(help="The model store.", no_args_is_help=True)
archive_app = typer.Typer(help="Archives of models.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Name, or name@version.", autocompletion=completing.models),
]


def _store(context: typer.Context) -> Any:
    """Open the store of this installation."""
    from mezzotint.models.store.store import ModelStore

    return ModelStore(load_settings(context).settings.models)


@models_app.command("list")
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List every model with family, default size and licence; * is what a bare name means."""
    store = _store(context)
    rows = [_listed(store, entry) for entry in store.entries()]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    table = [("name", "version", "family", "size", "licence", "where")]
    for row in rows:
        size = f"{row['width']}x{row['height']}" if row["width"] else "?"
        where = "built in" if row["builtin"] else row["path"]
        name = f"{'* ' if row['default'] else '  '}{row['name']}"
        table.append((name, row["version"], row["family"] or "?", size, row["licence"], where))
    for line in columns(table):
        print(escaped(line))
    for row in rows:
        if row["error"]:
            print(escaped(f"{row['name']}@{row['version']}: {row['error']}"), file=sys.stderr)


def _listed(store: Any, entry: Any) -> dict[str, Any]:
    """Return one line of the list: from what is known, then the card, then the files."""
    card, error = entry.card, ""
    family, licence, size = card.family, card.licence, card.default_size
    if entry.layout == "handler":
        family = "handler"
    elif not (family and licence and size) and not card.repo:
        try:
            spec = store.known_spec(entry.full_name) or store.spec(entry.full_name)
            family, licence, size = spec.family, spec.licence, spec.default_size
        except MezzotintError as problem:
            error = str(problem)
    width, height = size or (0, 0)
    found = {**_brief(entry), "family": family, "width": width, "height": height, "error": error}
    return {**found, "licence": licence or "unknown"}


@models_app.command("show")
def show(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Show path, digest, family, defaults, limits and licence of a model, and what it takes."""
    from mezzotint.planning.model_abilities import ALL_TECHNIQUES, describe_abilities

    store = _store(context)
    found = store.describe(name)
    if "defaults" in found:  # a model, no handler code
        spec = store.known_spec(name) or store.spec(name)
        can = describe_abilities(spec, ALL_TECHNIQUES | {"gates"})
        found |= {key: can[key] for key in ("schedulers", "fields", "techniques")}
    if as_json:
        print(json.dumps(found, ensure_ascii=False, default=str))
    else:
        _print_fields(found)


@models_app.command("add")
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name to give it.")],
    source: Annotated[
        str, typer.Argument(metavar="PATH_OR_ID", help="Folder, file, archive or Hub id.")
    ],
    *,
    version: Annotated[str | None, typer.Option(help="Version; 1.0 if not given.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_PATH",
            help="Model whose text encoders and autoencoder a denoiser's file (.gguf, "
            ".safetensors) draws with: a diffusers folder, a name or a Hub id.",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help=placement_help("dtype"))] = None,
    offload: Annotated[str | None, typer.Option(help=placement_help("offload"))] = None,
    attention_slicing: Annotated[
        bool | None, typer.Option(help=placement_help("attention_slicing"))
    ] = None,
    vae_slicing: Annotated[bool | None, typer.Option(help=placement_help("vae_slicing"))] = None,
    vae_tiling: Annotated[bool | None, typer.Option(help=placement_help("vae_tiling"))] = None,
    channels_last: Annotated[
        bool | None, typer.Option(help=placement_help("channels_last"))
    ] = None,
    quantize: Annotated[str | None, typer.Option(help=placement_help("quantize"))] = None,
    as_json: AsJson = False,
) -> None:
    """Add a model; a folder or file stays where it is.

    Placement options are this model's own; for all models set models.placement.
    """
    options = {
        "dtype": dtype,
        "offload": offload,
        "attention_slicing": attention_slicing,
        "vae_slicing": vae_slicing,
        "vae_tiling": vae_tiling,
        "channels_last": channels_last,
        "quantize": quantize,
    }
    given = {option: value for option, value in options.items() if value is not None}
    _add(context, name, source, version=version, placement=given, base=base, as_json=as_json)


def _add(
    context: typer.Context,
    name: str,
    source: str,
    *,
    version: str | None,
    placement: dict[str, Any],
    base: str | None = None,
    as_json: bool,
) -> None:
    """Add a model and say what became of it."""
    from mezzotint.models.store.entries import handler_refusal

    store = _store(context)
    try:
        entry = store.add(name, source, version=version, placement=placement, base=base)
    except UnknownName as error:
        if error.field != "source":
            raise
        wanted = "a folder, a file, an archive or a Hub id"
        raise WrongFlag("PATH_OR_ID", f"there is nothing at {source}; give {wanted}") from None
    runs = store.may_run(entry)
    note = str(handler_refusal(entry, is_allowed=runs)) if entry.layout == "handler" else ""
    if as_json:
        code = {"runs": runs, "note": note} if note else {}
        print(json.dumps(_brief(entry) | code, ensure_ascii=False))
    elif note:
        print(escaped(f"{entry.full_name}: registered handler code, no model: {entry.path}"))
        print(escaped(note if runs else f"it will not run: {note}"))
    else:
        print(escaped(f"{entry.full_name}: {entry.path}"))


@models_app.command("remove")
def remove(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Remove a model from the store; files outside of it stay."""
    from mezzotint.cli.flags import WrongFlag

    store = _store(context)
    entry = store.entry(name)
    if entry.is_builtin:
        raise WrongFlag("NAME", f"{entry.name} is built in and cannot be removed")
    store.remove(name)
    if as_json:
        print(json.dumps({"removed": entry.full_name}))
    else:
        print(f"removed {entry.full_name}")


@models_app.command("share")
def share(
    context: typer.Context,
    name: Name,
    force: Annotated[
        bool, typer.Option("--force", help="Copy files that are there already too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a model to models.shared_url; machines that lack it take it from there."""
    from mezzotint.service.provision.shared_models import open_shared_models

    store = _store(context)
    shared = open_shared_models(store.config)
    if shared is None:
        raise InvalidRequest(
            "models.shared_url is not set: the folder or s3://bucket/prefix that machines share",
            field="models.shared_url",
        )
    entry, copied = shared.give(store, name, force=force)
    if as_json:
        print(json.dumps({"shared": entry.full_name, "copied_bytes": copied}))
    else:
        print(
            escaped(f"{entry.full_name}: {copied / 1e6:.1f} MB copied to {store.config.shared_url}")
        )


@models_app.command("defaults")
def defaults(
    context: typer.Context,
    name: Name,
    version: Annotated[
        str | None, typer.Option(help="Make the bare name mean this version.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a request to this model means where it says nothing."""
    store = _store(context)
    if version is not None:
        store.set_default(name, version)
    found = store.describe(name)["defaults"]
    if as_json:
        print(json.dumps(found))
    else:
        _print_fields(found)


@archive_app.command("pack")
def pack(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="NAME_OR_PATH", help="Model to pack.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The .mzt to write.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name inside the archive.")] = None,
    version: Annotated[str, typer.Option(help="Version inside the archive.")] = "1.0",
    licence: Annotated[str | None, typer.Option(help="SPDX id or a sentence.")] = None,
    description: Annotated[str, typer.Option(help="A sentence for people.")] = "",
    as_json: AsJson = False,
) -> None:
    """Pack a model into one file: safetensors and JSON with their digests."""
    from mezzotint.models.formats.archive import pack as pack_model

    entry = _store(context).entry(source)
    name = name or Path(entry.name).stem
    target = output or Path(f"{name}.mzt")
    manifest = pack_model(
        entry.path,
        target,
        name=name,
        version=version,
        licence=licence or entry.card.licence or "unknown",
        description=description or entry.card.description,
    )
    if as_json:
        print(json.dumps({"path": str(target), **manifest.to_plain()}, ensure_ascii=False))
    else:
        print(target)


@archive_app.command("inspect")
def inspect(
    archive: Annotated[
        Path, typer.Argument(metavar="ARCHIVE", help="A .mzt, or a TorchServe .mar.")
    ],
    verify: Annotated[bool, typer.Option(help="Compare the digest of every file.")] = True,
    as_json: AsJson = False,
) -> None:
    """Print the manifest of an archive, after checking it; code inside is never run."""
    from mezzotint.cli.flags import WrongFlag
    from mezzotint.models.formats.archive import inspect_archive
    from mezzotint.models.formats.identify import identify
    from mezzotint.models.formats.torchserve_archive import inspect_mar

    if not archive.is_file():
        why = "it is a folder" if archive.is_dir() else "No such file or directory"
        raise WrongFlag("ARCHIVE", f"cannot read {archive}: {why}")
    if identify(archive) == "mar":
        found: dict[str, Any] = dataclasses.asdict(inspect_mar(archive))
    else:
        found = inspect_archive(archive, verify=verify).to_plain()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _print_fields({**found, "files": list(found.get("files", {}))})


@archive_app.command("import")
def import_archive(
    context: typer.Context,
    archive: Annotated[
        Path,
        typer.Argument(
            metavar="ARCHIVE",
            help="A .mzt, a TorchServe .mar, or a DCGAN's checkpoint (.pt, .tar).",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name in the store.")] = None,
    version: Annotated[str | None, typer.Option(help="Version in the store.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add an archive to the store; code inside is never run by this."""
    from mezzotint.cli.flags import WrongFlag

    if not archive.exists():
        raise WrongFlag("ARCHIVE", f"cannot read {archive}: there is no such file")
    if archive.is_file() and archive.suffix in (".pt", ".pth", ".tar"):
        entry = _store(context).import_checkpoint(name or archive.stem, archive, version=version)
        print(json.dumps(_brief(entry)) if as_json else f"added {entry.full_name} from {archive}")
        return
    chosen = name or _own_name(archive)
    _add(context, chosen, str(archive), version=version, placement={}, as_json=as_json)


def _own_name(archive: Path) -> str:
    """Return what an archive calls its model, the file's name where that is no name here."""
    from mezzotint.models.formats.archive import inspect_archive
    from mezzotint.models.formats.identify import identify
    from mezzotint.models.formats.torchserve_archive import inspect_mar
    from mezzotint.models.store.entries import is_name

    layout = identify(archive)
    named = ""
    if layout == "mar":
        named = inspect_mar(archive).name
    elif layout == "archive":
        named = inspect_archive(archive, verify=False).name
    return named if is_name(named) else archive.stem


def _brief(entry: Any) -> dict[str, Any]:
    """Return what is known about a model without reading its weights."""
    return {
        "name": entry.name,
        "version": entry.version,
        "default": entry.is_default,
        "builtin": entry.is_builtin,
        "layout": str(entry.layout) or str(entry.card.repo and "hub"),
        "path": str(entry.path),
        "licence": entry.card.licence or "unknown",
    }


def _print_fields(found: dict[str, Any], indent: str = "") -> None:
    for key, value in found.items():
        if is_dict(value):
            print(f"{indent}{escaped(key)}:")
            _print_fields(value, indent + "  ")
        elif is_list(value):
            line = f"{indent}{escaped(key)}: {escaped('; '.join(map(str, value)))}"
            print(fitted(line, sys.stdout, len(indent) + 2))
        else:
            print(f"{indent}{escaped(key)}: {escaped(value)}")
