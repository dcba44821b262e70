"""Patches of a picture as tokens, channels last, and where they stand behind a text.

Dimensions: R rows, C latent channels, h and w latent rows and columns, S picture tokens
(h/2 * w/2).
"""

import torch
from torch import Tensor

__all__ = ["PATCH", "from_tokens", "places_behind", "to_tokens"]

PATCH = 2
"""Latent rows and columns of a token."""


def to_tokens(sample: Tensor) -> Tensor:
    """Put 2x2 patches into tokens: (R, C, h, w) -> (R, S, 4 C)."""
    rows, channels, height, width = sample.shape
    grid = sample.reshape(rows, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(rows, -1, PATCH * PATCH * channels)


def from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo :func:`to_tokens` for ``height`` x ``width`` latents."""
    rows, channels = tokens.shape[0], tokens.shape[2] // (PATCH * PATCH)
    grid = tokens.reshape(rows, height // PATCH, width // PATCH, PATCH, PATCH, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(rows, channels, height, width)


def places_behind(start: Tensor, height: int, width: int) -> Tensor:
    """Return time, row and column of each token of a picture that stands behind a text.

    Args:
        start: Time of each row's picture: the next after its own text. Shape (R,).
        height: Latent rows.
        width: Latent columns.

    Returns:
        Shape (R, S, 3).
    """
    rows, columns = height // PATCH, width // PATCH
    y = torch.arange(rows, device=start.device)[:, None].expand(rows, columns)
    x = torch.arange(columns, device=start.device)[None].expand(rows, columns)
    grid = torch.stack([y, x], dim=-1).reshape(1, -1, 2).expand(start.shape[0], -1, -1)
    return torch.cat([start[:, None, None].expand(-1, grid.shape[1], 1), grid], dim=-1)
