"""Rotary positions in real numbers: what diffusers' modules of some families do in complex ones.

Complex numbers do not export to other backends; a turn by an angle is the same in both.

Dimensions: R rows, S tokens, H heads, d features of a head, A axes of a position.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["attend", "turn", "turns_of"]


def turns_of(places: Tensor, *, theta: float, widths: Sequence[int]) -> Tensor:
    """Return how far each pair of features is turned at a place.

    Args:
        places: Whole numbers. Shape (..., S, A).
        theta: Base of the frequencies.
        widths: Features of a head that each axis has, A even numbers.

    Returns:
        Cosine and sine. Shape (..., S, d / 2, 2), float32.

    Source: Su et al. 2021 (arXiv:2104.09864), equation 15, once for each axis.
    """
    angles: list[Tensor] = []
    for axis, width in enumerate(widths):
        steps = torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width
        frequencies = (theta**-steps).float().to(places.device)
        angles.append(places[..., axis, None].float() * frequencies)
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def turn(heads: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring pairs of features.

    Args:
        heads: Queries or keys. Shape (R, S, H, d).
        turns: Of :func:`turns_of`. Shape (S, d / 2, 2) or (R, S, d / 2, 2).

    Returns:
        Shape (R, S, H, d), in the type of ``heads``.
    """
    first, second = torch.unflatten(heads.float(), -1, (-1, 2)).unbind(-1)
    cosine, sine = turns.unsqueeze(-3).unbind(-1)
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return torch.stack(turned, dim=-1).flatten(-2).type_as(heads)


def attend(query: Tensor, key: Tensor, value: Tensor, shown: Tensor | None) -> Tensor:
    """Let every token look at the tokens that are shown.

    Args:
        query: Shape (R, S, H, d).
        key: Same shape.
        value: Same shape.
        shown: Shape (R, S), bool; None shows all.

    Returns:
        Shape (R, S, H d).
    """
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = None if shown is None else shown[:, None, None, :]
    answer = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return answer.transpose(1, 2).flatten(2)
