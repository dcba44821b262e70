"""Adapter descriptions: what an adapter says of itself, without its weights and without torch."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mezzotint.errors import MezzotintError, WeightsError
from mezzotint.models.parts import LORA_HEADER_BYTES, SafetensorsHeader, read_header, read_json

__all__ = ["adapter_weights", "describe_adapter"]

_DOWN = ("lora_A", "lora_down", "lora.down")  # diffusers and PEFT, kohya, early diffusers
_KEPT = 512  # headers of LoRAs whose descriptions are remembered
_TOLD = ("ss_base_model_version", "ss_sd_model_name", "base_model", "base", "modelspec.title")


def adapter_weights(path: Path) -> list[Path]:
    """Return the weights of an adapter."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


def describe_adapter(kind: str, name: str, path: Path) -> dict[str, Any]:
    """Read what an adapter says of itself.

    Args:
        kind: ``"lora"`` or ``"control"``.
        name: What it is called.
        path: Its file or folder.

    Returns:
        ``name``, ``path``, ``bytes`` of its tensors, ``about`` for people and ``error``, what
        is wrong with it or ""; of a LoRA its ``ranks``, ``layers``, ``networks`` and what its
        trainer wrote (``metadata``), of a ControlNet its ``cross_attention_dim``.
    """
    found: dict[str, Any] = {"name": name, "path": str(path), "bytes": 0, "about": "", "error": ""}
    try:
        if kind == "lora":
            found |= _lora_at(path)
        else:
            headers = [read_header(file) for file in adapter_weights(path)]
            found["bytes"] = sum(header.data_bytes for header in headers)
            found |= _control(read_json(path / "config.json"), bool(headers))
    except MezzotintError as error:
        found["error"] = str(error)
    return found


def _lora_at(path: Path) -> dict[str, Any]:
    """Describe the LoRA of a file; its header is read once for each state of the file.

    Raises:
        WeightsError: If the file cannot be read.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}") from None
    return dict(_lora_of_state(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size)))


@functools.lru_cache(_KEPT)
def _lora_of_state(path: Path, _state: tuple[int, ...]) -> Mapping[str, Any]:
    header = read_header(path, most_bytes=LORA_HEADER_BYTES)
    return {"bytes": header.data_bytes, **_lora(header)}


def _lora(header: SafetensorsHeader) -> dict[str, Any]:
    """Describe a LoRA: its rank, how many layers it changes, what its trainer says of it."""
    metadata = header.metadata
    downs = {
        key: shape
        for key, (_, shape) in header.tensors.items()
        if shape and any(part in key for part in _DOWN)
    }
    if not downs:
        return {"error": "no layer in it is a low-rank change (lora_A, lora_down)"}
    ranks = sorted({shape[0] for shape in downs.values()})
    networks = sorted({"text encoder" if _is_text(key) else "denoiser" for key in downs})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    return {
        "about": f"{rank}, {len(downs)} layers of {' and '.join(networks)}",
        "ranks": ranks,
        "layers": len(downs),
        "networks": networks,
        "metadata": {key: metadata[key] for key in _TOLD if metadata.get(key)},
    }


def _is_text(key: str) -> bool:
    return key.startswith(("text_encoder", "lora_te"))


def _control(config: Mapping[str, Any], has_weights: bool) -> dict[str, Any]:
    """Describe a ControlNet: its class, and which networks it was made for."""
    name = config.get("_class_name", "")
    if "ControlNet" not in str(name):
        return {"error": f"its config.json is of {name or 'nothing that is named'}"}
    if not has_weights:
        return {"error": "there are no safetensors beside its config.json"}
    width: Any = config.get("cross_attention_dim", config.get("joint_attention_dim"))
    family = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}.get(width, "")
    about = f"{name}, text features {width}{f' ({family})' if family else ''}"
    if modes := config.get("num_mode"):
        about = f"{about}, a union of {modes} modes"
    return {"about": about, "cross_attention_dim": width}
