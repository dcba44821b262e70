"""What the families share: reading defaults out of configurations."""

from collections.abc import Mapping
from typing import Any

from mezzotint.models.parts import Part, Parts
from mezzotint.schedulers import native_twin
from mezzotint.types import Size

__all__ = [
    "distilled_defaults",
    "is_distilled",
    "part_of",
    "prediction_type",
    "sample_size",
    "scheduler_defaults",
]

FEW_STEPS = ("turbo", "lightning", "lcm", "hyper-sd", "schnell", "sdxs")


def part_of(parts: Parts, role: str) -> Part:
    """Return a network part that the family cannot do without.

    Raises:
        WeightsError: If it is missing.
    """
    from mezzotint.errors import WeightsError

    if role not in parts.networks:
        raise WeightsError(f"{parts.name} has no {role}, which {parts.pipeline} needs")
    return parts.networks[role]


def sample_size(config: Mapping[str, Any], default: int) -> tuple[int, int]:
    """Return (rows, columns) of the latents a network was trained on."""
    value = config.get("sample_size") or default
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def prediction_type(scheduler: Mapping[str, Any], default: str = "epsilon") -> Any:
    """Return what the network predicts, from the scheduler's configuration."""
    return scheduler.get("prediction_type") or default


def scheduler_defaults(scheduler: Mapping[str, Any], fallback: str) -> dict[str, Any]:
    """Return ``default_scheduler`` and ``default_sigma_schedule`` of a configuration.

    A scheduler that has no native twin is named by its diffusers class.
    """
    name = str(scheduler.get("_class_name") or "")
    native = native_twin(name, scheduler)
    sigmas = next(
        (k for k in ("karras", "exponential", "beta") if scheduler.get(f"use_{k}_sigmas")), None
    )
    return {"default_scheduler": native or name or fallback, "default_sigma_schedule": sigmas}


def distilled_defaults(parts: Parts, *, steps: int, guidance_scale: float) -> dict[str, Any]:
    """Return ``default_steps`` and ``default_guidance_scale``; few for distilled models."""
    if is_distilled(parts):
        return {"default_steps": 4, "default_guidance_scale": 1.0}
    return {"default_steps": steps, "default_guidance_scale": guidance_scale}


def is_distilled(parts: Parts) -> bool:
    """Tell whether a model needs few steps and no guidance, by its LCM scheduler or its name."""
    name = parts.name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    is_lcm = parts.scheduler.get("_class_name") == "LCMScheduler"
    return is_lcm or any(mark in name for mark in FEW_STEPS)


def default_size(rows_columns: tuple[int, int], scale: int) -> Size:
    """Return pixels from latent rows and columns."""
    return Size(rows_columns[1] * scale, rows_columns[0] * scale)
