"""ComfyUI lists: the nodes that are offered, and the machine."""

import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint.comfyui import NODES, UNION_TYPES
from mezzotint.types import MAX_SEED

__all__ = ["SAMPLERS", "SCHEDULES", "features", "input_config", "object_info", "system_stats"]

SAMPLERS = (
    "euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lms", "dpmpp_2m",
    "dpmpp_2m_sde", "ddpm", "lcm", "deis", "ddim", "uni_pc",
)  # fmt: skip
"""ComfyUI's samplers that there is one of here."""

SCHEDULES = ("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta")
"""ComfyUI's schedules that there is one of here."""

_LINKS = {
    "model": "MODEL", "clip": "CLIP", "vae": "VAE", "positive": "CONDITIONING",
    "negative": "CONDITIONING", "conditioning": "CONDITIONING", "control_net": "CONTROL_NET",
    "mask": "MASK", "latent_image": "LATENT", "samples": "LATENT", "pixels": "IMAGE",
    "images": "IMAGE",
}  # fmt: skip
_SHARE = ["FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.001}]
_SCALE = ["FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}]
_STEP = ["INT", {"default": 0, "min": 0, "max": 10_000}]
_SIDE = ["INT", {"default": 512, "min": 1, "max": 16_384, "step": 8}]
_SEED = ["INT", {"default": 0, "min": 0, "max": MAX_SEED}]


_FIXED: dict[str, list[Any]] = {
    "text": ["STRING", {"multiline": True}],
    "filename_prefix": ["STRING", {"default": "ComfyUI"}],
    "sampler_name": [list(SAMPLERS)],
    "scheduler": [list(SCHEDULES)],
    "seed": _SEED,
    "noise_seed": _SEED,
    "steps": ["INT", {"default": 20, "min": 1, "max": 10_000}],
    "cfg": ["FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1}],
    "denoise": _SHARE,
    "start_percent": _SHARE,
    "end_percent": _SHARE,
    "strength": ["FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.01}],
    "strength_model": _SCALE,
    "strength_clip": _SCALE,
    "start_at_step": _STEP,
    "end_at_step": ["INT", {"default": 10_000, "min": 0, "max": 10_000}],
    "add_noise": [["enable"]],
    "return_with_leftover_noise": [["disable"]],
    "type": [["auto", *UNION_TYPES]],
    "stop_at_clip_layer": ["INT", {"default": -1, "min": -1, "max": -1}],
    "channel": [["alpha", "red", "green", "blue"]],
    "grow_mask_by": ["INT", {"default": 6, "min": 0, "max": 64}],
    "width": _SIDE,
    "height": _SIDE,
    "batch_size": ["INT", {"default": 1, "min": 1, "max": 1024}],
}
"""What an input may be, whatever models there are."""


def input_config(class_type: str, name: str) -> list[Any]:
    """Return what an input of a node may be, as :func:`object_info` has it; [] if unknown."""
    if name == "image" and class_type.startswith("ControlNetApply"):
        return ["IMAGE"]
    return [_LINKS[name]] if name in _LINKS else _FIXED.get(name, [])


def object_info(
    models: Sequence[str], names: Mapping[str, Any], uploads: Sequence[str]
) -> dict[str, Any]:
    """Describe the nodes that are offered.

    Args:
        models: Names of the models.
        names: What the service lists: ``loras``, ``controls``.
        uploads: Names of the caller's pictures.
    """
    values: dict[str, list[Any]] = {
        **_FIXED,
        "ckpt_name": [list(models)],
        "lora_name": [list(names.get("loras", ()))],
        "control_net_name": [list(names.get("controls", ()))],
        "vae_name": [[]],
        "image": [list(uploads), {"image_upload": True}],
    }
    return {name: _node(name, *about, values) for name, about in NODES.items()}


def _node(
    name: str, inputs: Sequence[str], outputs: Sequence[str], values: Mapping[str, list[Any]]
) -> dict[str, Any]:
    """Describe one node."""
    required = {i: input_config(name, i) or values[i] for i in inputs}
    if name in ("LoadImage", "LoadImageMask"):
        required["image"] = values["image"]
    return {
        "input": {"required": required},
        "input_order": {"required": list(inputs)},
        "output": list(outputs),
        "output_is_list": [False] * len(outputs),
        "output_name": list(outputs),
        "name": name,
        "display_name": name,
        "description": "",
        "python_module": "nodes",
        "category": "mezzotint",
        "output_node": not outputs,
    }


def features(most_bytes: int) -> dict[str, Any]:
    """Describe what the server can, by the names of ComfyUI's feature flags.

    Args:
        most_bytes: Of an upload.
    """
    return {"supports_preview_metadata": False, "max_upload_size": most_bytes}


def system_stats(version: str) -> dict[str, Any]:
    """Describe the machine: what clients look at, and nothing that a stranger could use."""
    system: dict[str, Any] = {
        "os": sys.platform,
        "ram_total": 0,
        "ram_free": 0,
        "comfyui_version": f"mezzotint-{version}",
        "python_version": platform.python_version(),
        "pytorch_version": "",
        "embedded_python": False,
        "argv": [],
    }
    device = {
        "name": "mezzotint",
        "type": "cpu",
        "index": None,
        "vram_total": 0,
        "vram_free": 0,
        "torch_vram_total": 0,
        "torch_vram_free": 0,
    }
    return {"system": system, "devices": [device]}
