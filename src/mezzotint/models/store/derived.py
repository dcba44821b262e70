"""Derived models: a built-in model with a LoRA folded into its weights.

A folder of a few megabytes that stands for a whole model::

    config.json                            what it changes, see below
    pytorch_lora_weights.safetensors       the change
    scheduler/scheduler_config.json        its own solver, where it has one

    {"format": "mezzotint-derived", "base": "plate", "base_sha256": "...",
     "default_steps": 4, "default_guidance_scale": 1.0}

The base is named, never a path, and must be a model that comes with the program. A
change learnt on other weights than those that are there would draw nonsense, so the
digest of the base network's weights is part of the folder and is checked.

The weights are changed when the network is built, unlike a request's ``loras``, which
are added in every call: a derived model is as fast as its base, and every backend
runs it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import CardError, WeightsError
from mezzotint.files import digest_file
from mezzotint.models.adapters.lora import LoraPair, check_fit, read_lora
from mezzotint.models.base import Model
from mezzotint.models.cards import Card, apply_card, builtin_cards
from mezzotint.models.formats.folders import assemble, read_parts
from mezzotint.models.networks import Placement
from mezzotint.models.parts import (
    Part,
    combine_digests,
    digest_files,
    read_json,
    stored_together,
)

__all__ = ["FORMAT", "LORA_FILE", "describe_derived", "fold", "load_derived"]

FORMAT = "mezzotint-derived"
LORA_FILE = "pytorch_lora_weights.safetensors"
_SCHEDULER = "scheduler/scheduler_config.json"
_ROLES = {"denoiser": ("unet", "transformer"), "text_encoder": ("text_encoder",)}


def load_derived(
    path: Path,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    expected: Mapping[str, str] | None = None,
) -> Model:
    """Load a derived model.

    Args:
        path: Its folder.
        name: Name in the store; the path if None.
        device: ``"cpu"``, ``"cuda"``, ...
        dtype: One type for all networks; None follows the type policy.
        expected: sha256 by path inside the folder.

    Raises:
        CardError: If the folder's description is not whole, or names a base that does
            not come with the program.
        WeightsError: If the change belongs to other weights, or is broken.
    """
    config = read_json(path / "config.json")
    base = str(config.get("base"))
    card = builtin_cards().get(base)
    if card is None:
        raise CardError(
            f"{path}/config.json: base must be a built-in model, one of "
            f"{', '.join(sorted(builtin_cards()))}; got {base!r}"
        )
    parts = read_parts(Path(card.path), name=name or str(path), expected=card.sha256)
    role = "unet" if "unet" in parts.networks else "transformer"
    found, wanted = _weights_digest(Path(card.path) / role), config.get("base_sha256")
    if found != wanted:
        raise WeightsError(
            f"{path} was learnt on {base} with weights of sha256 {wanted}, those here have "
            f"{found}; learn it again or use the version of Mezzotint it came with"
        )
    files = [path / "config.json", path / LORA_FILE]
    scheduler = dict(parts.scheduler)
    if (path / _SCHEDULER).is_file():
        files.append(path / _SCHEDULER)
        scheduler = read_json(path / _SCHEDULER)
    digests = digest_files(path, files, expected=expected)
    pairs = read_lora(path / LORA_FILE, name=name).pairs
    networks = dict(parts.networks)
    for target, layers in pairs.items():
        at = next((r for r in _ROLES.get(target, ()) if r in networks), None)
        if at is None:
            raise WeightsError(f"{path}: the change is for {target}, which {base} has not")
        networks[at] = _changed(networks[at], layers, digest=digests[LORA_FILE], name=str(path))
    changed = replace(
        parts,
        networks=networks,
        scheduler=scheduler,
        digest=combine_digests({**digests, "base": parts.digest}),
        path=str(path),
    )
    stored = stored_together(part.stored for part in networks.values())
    model = assemble(changed, Placement.choose(device, dtype, stored=stored))
    defaults = Card(
        name=model.spec.name,
        default_steps=config.get("default_steps"),
        default_guidance_scale=config.get("default_guidance_scale"),
    )
    model.spec = apply_card(model.spec, defaults)
    return model


def _weights_digest(folder: Path) -> str:
    """Return the sha256 of a network's weights."""
    return digest_file(folder / "diffusion_pytorch_model.safetensors")


def _changed(part: Part, layers: Mapping[str, LoraPair], *, digest: str, name: str) -> Part:
    """Return a part whose weights will have the change in them."""
    build: Callable[[Any], Any] = part.build

    def build_changed(dtype: torch.dtype) -> Any:
        module = build(torch.float32)  # sums are taken before rounding
        check_fit(name, layers, dict(module.named_modules()))
        fold(module.get_submodule, layers)
        for values in (*module.parameters(), *module.buffers()):
            if values.is_floating_point():
                values.data = values.data.to(dtype)
        return module

    together = combine_digests({"base": part.digest, "change": digest})
    return replace(part, build=build_changed, digest=together)


@torch.no_grad()
def fold(layer_of: Callable[[str], Any], layers: Mapping[str, LoraPair]) -> None:
    """Add low-rank changes to the weights of layers, in place.

    Args:
        layer_of: Returns a layer by its name.
        layers: The change of each layer.
    """
    for name, pair in layers.items():
        weight: Tensor = layer_of(name).weight
        change = pair.up.flatten(1).double() @ pair.down.flatten(1).double() * pair.factor
        weight.add_(change.reshape(weight.shape).to(weight))


def describe_derived(base: str, *, steps: int, guidance_scale: float) -> dict[str, Any]:
    """Return the ``config.json`` of a change learnt on a built-in model as it is now.

    Args:
        base: Name of the built-in model.
        steps: Steps where a request says nothing.
        guidance_scale: Guidance where a request says nothing.

    Raises:
        CardError: If there is no such built-in model.
    """
    card = builtin_cards().get(base)
    if card is None:
        raise CardError(f"base must be one of {', '.join(sorted(builtin_cards()))}, got {base!r}")
    folders = [Path(card.path) / role for role in ("unet", "transformer")]
    folder = next(folder for folder in folders if folder.is_dir())
    return {
        "format": FORMAT,
        "base": base,
        "base_sha256": _weights_digest(folder),
        "default_steps": steps,
        "default_guidance_scale": guidance_scale,
    }
