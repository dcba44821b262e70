"""Shipped: the specs of the built-in models as they come with the program.

What a model is and can do is read from its files by code that imports torch, which takes
seconds. Files that come with the program are known when it is packaged, so what was read of
them is packaged too, for processors, where nothing depends on the device::

    {"plate": {"digest": "...", "family": "sd", ...}, ...}

Name and path are not in the file: they are those of the installation. The files themselves
cannot differ from what was read unseen, since their cards hold their digests and whoever
loads them checks those.

After new weights: ``python -m mezzotint.models.store.shipped``.
"""

import functools
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from mezzotint.files import write_atomically
from mezzotint.models.cards import CARDS_FOLDER, builtin_cards
from mezzotint.models.config import PlacementConfig
from mezzotint.models.spec import ModelSpec
from mezzotint.models.store.entries import ModelEntry

__all__ = ["SHIPPED", "computes_on_processor", "measure_shipped", "shipped_spec"]

SHIPPED = CARDS_FOLDER.parent / "builtin" / "specs.json"

_ACCELERATORS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
_OF_THE_INSTALLATION = ("name", "path")


def computes_on_processor(placement: PlacementConfig) -> bool:
    """Whether models surely compute on the processor; False where a device may be there.

    Args:
        placement: Where models compute. ``auto`` is the processor on Linux without a device
            that torch might choose before it.
    """
    if placement.device != "auto":
        return placement.device == "cpu"
    is_known = platform.system() == "Linux"
    return is_known and not any(Path(place).exists() for place in _ACCELERATORS)


def shipped_spec(entry: ModelEntry, placement: PlacementConfig) -> ModelSpec | None:
    """Return the spec of a built-in model; None where it may be another.

    Args:
        entry: The model.
        placement: Where it computes; a type or an offload of its own changes what it takes.
    """
    stored = _shipped().get(entry.name) if entry.is_builtin else None
    is_usual = replace(placement, device="auto") == PlacementConfig()
    if stored is None or not is_usual or not computes_on_processor(placement):
        return None
    name = entry.name if entry.is_default else entry.full_name
    return msgspec.convert({**stored, "name": name, "path": str(entry.path)}, ModelSpec)


@functools.cache
def _shipped() -> Mapping[str, Mapping[str, Any]]:
    """Return what the file says; nothing where it is not there."""
    try:
        return MappingProxyType(json.loads(SHIPPED.read_bytes()))
    except OSError:
        return MappingProxyType({})


def measure_shipped() -> bytes:
    """Return the file as it has to be: what loading each built-in model finds out."""
    from mezzotint.models.store.loading import load_with_card

    found: dict[str, Any] = {}
    for name, card in sorted(builtin_cards().items()):
        placement = PlacementConfig(device="cpu")
        model = load_with_card(Path(card.path), card, name=name, placement=placement)
        plain = msgspec.to_builtins(model.spec)
        found[name] = {k: v for k, v in plain.items() if k not in _OF_THE_INSTALLATION}
    return (json.dumps(found, indent=1) + "\n").encode()


if __name__ == "__main__":
    write_atomically(SHIPPED, measure_shipped())
    sys.exit(0)
