"""Combining: a denoiser's file and the folder of the model that it belongs to become one folder.

Quantized and fine-tuned denoisers are published as one file, without the text encoders,
autoencoder and tokenizers that they draw with. The folder that is made here holds links to both,
so nothing is copied, and whoever reads models, packs or shares them finds a folder as any other.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest, UnknownName, WeightsError
from mezzotint.files import is_there
from mezzotint.models.formats.gguf_header import read_gguf_header
from mezzotint.models.formats.identify import identify
from mezzotint.models.parts import read_header, read_json, refuse_pickle
from mezzotint.models.reading import refuse_special
from mezzotint.models.store.entries import ModelEntry
from mezzotint.models.store.hub import files_that_load
from mezzotint.plain import is_list

__all__ = ["combine", "combined_entry"]

_INDEX = "model_index.json"
_ROLES = ("transformer", "unet")


def combined_entry(name: str, denoiser: Path, base: ModelEntry, cache: Path) -> ModelEntry:
    """Describe a model that draws with the parts of another, and a denoiser of its own.

    Args:
        name: Name in the store.
        denoiser: See :func:`combine`.
        base: The other model, and where it lies; its licence and defaults are taken over.
        cache: See :func:`combine`.

    Raises:
        UnknownName: If there is no such file.
        InvalidRequest: See :func:`combine`.
        WeightsError: See :func:`combine`.
    """
    if not is_there(denoiser):
        raise UnknownName("model source", str(denoiser), (), field="source")
    path = combine(denoiser, base.path, cache)
    card = replace(base.card, name=name, version="1.0", repo="", path="", sha256={})
    return ModelEntry(name=name, version="", card=card, path=path, layout="pipeline")


def combine(denoiser: Path, base: Path, cache: Path) -> Path:
    """Make a folder of links: a model's parts, and another denoiser in place of its own.

    Args:
        denoiser: The file, ``.gguf`` or ``.safetensors``; its header is read.
        base: A diffusers folder with the other parts and the denoiser's ``config.json``; its
            own weights of the denoiser may be missing.
        cache: Folder in which the new one is made. The same files make the same folder.

    Returns:
        The folder.

    Raises:
        InvalidRequest: If the base is no diffusers folder with a denoiser.
        WeightsError: If the file cannot be a denoiser's, or is corrupt.
    """
    if not denoiser.is_file() or denoiser.suffix not in (".gguf", ".safetensors"):
        refuse_pickle(denoiser)
        raise WeightsError(
            f"{denoiser} cannot stand in for a denoiser: with a base, the source is one .gguf or "
            ".safetensors file"
        )
    refuse_special(denoiser)
    if denoiser.suffix == ".gguf":
        read_gguf_header(denoiser)
    else:
        read_header(denoiser)
    links = {name: base / name for name in _names(base)}
    role = _role(base)
    links[f"{role}/{denoiser.name}"] = denoiser.resolve()
    words = json.dumps(sorted((name, str(path)) for name, path in links.items()))
    target = cache / f"combined-{hashlib.sha256(words.encode()).hexdigest()[:32]}"
    if target.is_dir():
        return target
    partial = cache / f"combined-{secrets.token_hex(8)}.part"
    try:
        for name, path in links.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).symlink_to(path)
        with contextlib.suppress(OSError):  # another thread or process was faster
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _role(base: Path) -> str:
    """Return what a folder's denoiser is called.

    Raises:
        InvalidRequest: If it is no diffusers folder, or has no denoiser's configuration.
    """
    if identify(base) != "pipeline":
        raise InvalidRequest(
            f"a base is a diffusers folder with its {_INDEX}, and {base} is none", field="base"
        )
    index: dict[str, Any] = read_json(base / _INDEX)
    role = next((name for name in _ROLES if is_list(index.get(name))), None)
    if role is None or not (base / role / "config.json").is_file():
        wanted = f"{role or _ROLES[0]}/config.json"
        raise InvalidRequest(
            f"a base says in {wanted} how its denoiser is built, and {base} has no such file",
            field="base",
        )
    return role


def _names(base: Path) -> list[str]:
    """Return the files of a folder that loading it reads, without the denoiser's weights."""
    role = _role(base)
    names = [_INDEX]
    for folder in sorted(path for path in base.iterdir() if path.is_dir()):
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            if folder.name != role or file.suffix not in (".gguf", ".safetensors"):
                names.append(f"{folder.name}/{file.name}")
    return files_that_load(names, read_json(base / _INDEX))
