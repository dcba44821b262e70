"""Int8 rows: weights stored as 8-bit integers with one scale for each row.

A weight ``name`` of shape (R, ...) stands in a file as int8 beside ``name_scale`` of shape
(R, 1, ...), and is their product: half the bytes of half precision, with an error of at
most 1/254 of the row's largest value. It only saves space in the file; a network
computes with what :func:`expand_rows` gives back.

Dimensions: R rows, the first dimension of a weight.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["SUFFIX", "expand_rows", "expanded_shapes", "round_rows"]

SUFFIX = "_scale"
_LARGEST = 127


def round_rows(name: str, weight: Tensor) -> dict[str, Tensor]:
    """Round a weight to int8 rows.

    Args:
        name: Its name.
        weight: Shape (R, ...), floats.

    Returns:
        ``name``: int8, shape (R, ...); ``name_scale``: float32, shape (R, 1, ...). A row of
        zeros has scale 1.

    Raises:
        ValueError: If the weight has fewer than two dimensions or is not finite.
    """
    if weight.ndim < 2 or not torch.isfinite(weight).all():
        raise ValueError(f"{name} must be finite and have rows, got {tuple(weight.shape)}")
    largest = weight.float().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
    scale = torch.where(largest > 0, largest / _LARGEST, torch.ones_like(largest))
    rounded = (weight.float() / scale).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
    return {name: rounded, name + SUFFIX: scale}


def expand_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give back the floats that int8 rows stand for; other tensors as they are.

    Args:
        state: Tensors by name, as :func:`round_rows` names them.

    Returns:
        The same without scales; int8 rows as float32.
    """
    scales = {name for name in state if _is_scale(name, state)}
    return {
        name: value.float() * state[name + SUFFIX].float() if name + SUFFIX in scales else value
        for name, value in state.items()
        if name not in scales
    }


def expanded_shapes(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
) -> dict[str, tuple[int, ...]]:
    """Return the shapes that :func:`expand_rows` will give, from a file's header.

    Args:
        tensors: Type and shape by name, as safetensors names types. A scale that does
            not belong to int8 rows of its shape counts as a tensor of its own, and so
            do rows without a scale.
    """
    return {
        name: shape
        for name, (_, shape) in tensors.items()
        if not _is_scale_of(tensors.get(name.removesuffix(SUFFIX)), name, shape)
    }


def _is_scale(name: str, state: Mapping[str, Tensor]) -> bool:
    rows = state.get(name.removesuffix(SUFFIX))
    found = None
    if rows is not None:
        found = ("I8" if rows.dtype == torch.int8 else "", tuple(rows.shape))
    return _is_scale_of(found, name, tuple(state[name].shape))


def _is_scale_of(
    rows: tuple[str, tuple[int, ...]] | None, name: str, shape: tuple[int, ...]
) -> bool:
    """Tell whether a tensor is the scale of these rows."""
    if rows is None or not name.endswith(SUFFIX):
        return False
    kind, whole = rows
    return kind == "I8" and len(whole) > 1 and shape == (whole[0], *(1 for _ in whole[1:]))
