"""Processors: what the processor of a language model that sees says of pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mezzotint.models.parts import read_json

__all__ = ["image_settings", "read_image_settings"]

_KEPT = ("image_mean", "image_std")


def read_image_settings(folder: Path) -> dict[str, Any]:
    """Read how pictures are prepared, as an entry of a pipeline's settings; {} if nobody says.

    Args:
        folder: Of the processor. transformers 5 writes one file, earlier versions one for
            pictures alone.

    Raises:
        CardError: If a file is no JSON object.
    """
    whole, alone = folder / "processor_config.json", folder / "preprocessor_config.json"
    said: Any = read_json(whole).get("image_processor") if whole.is_file() else None
    if said is None and alone.is_file():
        said = read_json(alone)
    return image_settings(cast("Mapping[str, Any]", said) if isinstance(said, dict) else {})


def image_settings(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what counts of an image processor's configuration, as an entry of settings."""
    found = {key: said[key] for key in _KEPT if said.get(key) is not None}
    return {"image_processor": found} if found else {}
