"""What the families share: reading defaults out of configurations."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mezzotint.models.parts import Part, Parts
from mezzotint.models.recommended import names_of_model, recommend
from mezzotint.schedulers import native_twin
from mezzotint.types import Size

__all__ = [
    "BLOCK_RESIDUAL",
    "SINGLE_RESIDUAL",
    "block_residuals",
    "default_size",
    "drawing_defaults",
    "longest_side",
    "part_of",
    "prediction_type",
    "sample_size",
    "token_width",
]

BLOCK_RESIDUAL = "block_residual_"
"""Beginning of the names of what ControlNets add behind the blocks of a transformer: each goes
behind the block of its number and those that follow, to the next. Shape (R, S, D)."""

SINGLE_RESIDUAL = "single_residual_"
"""The same behind blocks of one stream, where there are others before them."""

_FEW_STEPS = ("LCMScheduler",)  # schedulers that only distilled models come with


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


def drawing_defaults(
    parts: Parts, *, scheduler: str, denoiser: str = "", **family: Any
) -> dict[str, Any]:
    """Return what a request means where it says nothing, as fields of the spec.

    Args:
        parts: The pieces; their scheduler counts before ``scheduler``. One without a native
            twin is named by its diffusers class.
        scheduler: Where no scheduler came with the model.
        denoiser: Role of the network whose configuration may tell one member of the family
            from another.
        family: Fields that the whole family has, ``default_steps`` and the like. What the
            authors of the very model recommend counts before them.

    Returns:
        ``default_scheduler``, ``default_sigma_schedule`` and those of ``family``.
    """
    said = parts.scheduler
    class_name = str(said.get("_class_name") or "")
    native = native_twin(class_name, said)
    sigmas = next(
        (k for k in ("karras", "exponential", "beta") if said.get(f"use_{k}_sigmas")), None
    )
    few = {"default_steps": 4, "default_guidance_scale": 1.0} if class_name in _FEW_STEPS else {}
    network = parts.networks.get(denoiser)
    config: Mapping[str, Any] = {} if network is None else network.config
    return {
        "default_scheduler": native or class_name or scheduler,
        "default_sigma_schedule": sigmas,
        **family,
        **few,
        **recommend(parts.pipeline, names_of_model(parts.name, parts.path, parts.config), config),
    }


def block_residuals(inputs: Mapping[str, Tensor], prefix: str, blocks: int) -> list[Tensor] | None:
    """Return what ControlNets add behind each of a transformer's blocks, None for nothing.

    Args:
        inputs: Of the transformer.
        prefix: :data:`BLOCK_RESIDUAL` or :data:`SINGLE_RESIDUAL`.
        blocks: Blocks of the stream.
    """
    named = {int(k.removeprefix(prefix)): v for k, v in inputs.items() if k.startswith(prefix)}
    if not named:
        return None
    found = [named[0]]
    for block in range(1, blocks):
        found.append(named.get(block, found[-1]))
    return found


def token_width(config: Mapping[str, Any]) -> int:
    """Return the width of a token inside a transformer, by its configuration."""
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])


def default_size(rows_columns: tuple[int, int], scale: int) -> Size:
    """Return pixels from latent rows and columns."""
    return Size(rows_columns[1] * scale, rows_columns[0] * scale)


def longest_side(size: Size) -> int:
    """Return the longest side in pixels of a family that keeps its area in every shape.

    The lists of the pipelines of PixArt and Sana reach from 1:4 to 4:1.

    Args:
        size: What the checkpoint draws best.
    """
    return max(2048, 2 * max(size))
