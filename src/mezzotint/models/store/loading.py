"""Loading: whatever lies at a path becomes a Model.

What lies there is told by :mod:`mezzotint.models.formats.identify`; each layout's
reader is imported when it is needed, since most processes read one or two.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mezzotint.errors import WeightsError
from mezzotint.models.backends.eight_bits import check_quantize
from mezzotint.models.backends.placement import check_offload, place
from mezzotint.models.base import Model
from mezzotint.models.cards import Card, apply_card
from mezzotint.models.config import PlacementConfig
from mezzotint.models.digests import DIGESTS
from mezzotint.models.formats.identify import identify
from mezzotint.models.parts import combine_digests, digest_files
from mezzotint.models.reading import refuse_special_below

__all__ = ["choose_device", "load_path", "load_with_card"]


def choose_device(wanted: str) -> str:
    """Return the device to compute on; ``"auto"`` takes the fastest that is there.

    Raises:
        WeightsError: If the device does not exist here.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(kind, False):
        raise WeightsError(f"device {wanted} is not there; use cpu or auto")
    return wanted


def load_with_card(path: Path, card: Card, *, name: str, placement: PlacementConfig) -> Model:
    """Load the model at a path, let its card override what the files say, and place it.

    Args:
        path: Folder or file.
        card: What is declared about it.
        name: Store name.
        placement: Where and how to compute, where the card says nothing of it. What it says
            otherwise is part of the model's digest: pictures and certificates depend on it.

    Raises:
        UnknownName: If nothing is there.
        InvalidRequest: If the card's placement cannot be had on the device.
        ModelError: If it is no model, or is broken or unsafe.
    """
    placed = replace(placement, **card.placement)
    device = choose_device(placed.device)
    check_offload(placed, device)
    check_quantize(placed, device)
    model = load_path(
        path,
        name=name,
        placement=placed,
        expected=card.sha256,
        variant=card.variant,
        prediction_type=card.prediction_type,
    )
    model.spec = apply_card(model.spec, card)
    if placed != placement:
        words = json.dumps([model.spec.digest, sorted(card.placement.items())])
        digest = hashlib.sha256(words.encode()).hexdigest()
        model.spec = replace(model.spec, digest=digest)
    model = place(model, placed)
    model.spec = replace(model.spec, num_bytes=model.num_bytes)
    return model


def load_path(
    path: Path,
    *,
    name: str | None = None,
    placement: PlacementConfig | None = None,
    expected: Mapping[str, str] | None = None,
    variant: str | None = None,
    prediction_type: str | None = None,
) -> Model:
    """Load the model at a path; archives have to be unpacked before.

    Args:
        path: Folder or file.
        name: Store name; the path if None.
        placement: Where and how to compute.
        expected: sha256 by path inside the folder (by file name for one file).
        variant: Set of weights in a diffusers folder.
        prediction_type: For single files, which do not always say it.

    Raises:
        UnknownName: If nothing is there.
        ModelError: If it is no model, or is broken or unsafe.
    """
    path = Path(path)
    refuse_special_below(path)
    placement = placement or PlacementConfig()
    options: dict[str, Any] = {
        "name": name or str(path),
        "device": choose_device(placement.device),
        "dtype": placement.dtype,
    }
    layout = identify(path)
    if layout == "pipeline":
        return _load_folder(path, expected=expected, variant=variant, **options)
    if layout == "derived":
        from mezzotint.models.store.derived import load_derived

        return load_derived(path, expected=expected, **options)
    if layout == "single_file":
        from mezzotint.models.formats.single_file import load_single_file

        digest = (expected or {}).get(path.name)
        return load_single_file(path, expected=digest, prediction_type=prediction_type, **options)
    if layout == "gan":
        from mezzotint.models.families.gan import load_gan
        from mezzotint.models.networks import Placement

        place = Placement.choose(options["device"], placement.dtype)
        return load_gan(
            path, name=options["name"], expected=expected, dtype=place.dtype, device=place.device
        )
    if layout == "run":
        from mezzotint.models.families.runs import load_run

        files = [p for p in path.rglob("*") if p.is_file() and _belongs_to_run(p, path)]
        digests = digest_files(path, files, expected=expected)
        with DIGESTS.loading({path / name: digest for name, digest in digests.items()}):
            return load_run(
                path,
                name=options["name"],
                digest=combine_digests(digests),
                device=options["device"],
            )
    raise WeightsError(f"{path} is an archive; add it to the store first: mezzotint models add")


def _belongs_to_run(file: Path, root: Path) -> bool:
    """Tell whether a file of a run folder is part of its model."""
    parts = file.relative_to(root).parts
    folders = ("network", "text_encoder", "tokenizer", "vae")
    return parts[0] == "mezzotint_run.json" or (len(parts) > 1 and parts[0] in folders)


def _load_folder(path: Path, **options: Any) -> Model:
    """Load a diffusers folder step by step where we know its family, else whole."""
    from mezzotint.models.formats.folders import load_pipeline, native_pipeline

    if native_pipeline(path):
        return load_pipeline(path, **options)
    from mezzotint.models.families.whole import load_foreign

    return load_foreign(path, **options)
