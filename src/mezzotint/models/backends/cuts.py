"""Cuts: a large picture goes through a network in overlapping tiles.

The memory of a call is then that of a tile, whatever the picture's size. All tiles of a
picture have one shape, so that a backend compiles one network for them. Where tiles
overlap, their answers are averaged with weights that fall towards each tile's edge. A
layer that sees the whole picture (a group norm, attention) sees a tile instead: the
picture changes a little.

Dimensions: B rows, C and D channels, h and w rows and columns of the input, s of a tile.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Cut"]

_OVERLAP = 4  # a quarter of a tile lies on its neighbour


@dataclass(frozen=True, slots=True)
class Cut:
    """How a network's inputs are cut.

    Args:
        side: Rows and columns of a tile, counted in latents; 0 cuts nothing.
        is_circular: Whether what lies outside a picture is its other side.
        before: Rows and columns of the input for one of the latents.
        after: Rows and columns of the answer for one of the latents.
    """

    side: int
    is_circular: bool = False
    before: int = 1
    after: int = 1

    def call(self, network: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
        """Call a network, tile by tile if the input is larger than one.

        Args:
            network: (B, C, s, s) -> (B, D, s * after / before, s * after / before); an
                input smaller than a tile in one direction has tiles smaller in it.
            source: Shape (B, C, h, w).

        Returns:
            Shape (B, D, h * after / before, w * after / before), float32 if it was cut.
        """
        height, width = (length // self.before for length in source.shape[-2:])
        if not self.side or max(height, width) <= self.side:
            return network(source)
        if self.is_circular:
            return self._call_around(network, source)
        tall, wide = min(self.side, height), min(self.side, width)
        weights = torch.outer(self._ramp(tall), self._ramp(wide)).to(source.device)
        total = covered = torch.empty(0)
        for top, left in itertools.product(starts(height, tall), starts(width, wide)):
            answer = network(self._window(source, (top, left), (tall, wide), self.before)).float()
            if not total.numel():
                shape = (height * self.after, width * self.after)
                total = answer.new_zeros((*answer.shape[:2], *shape))
                covered = answer.new_zeros(shape)
            self._window(total, (top, left), (tall, wide), self.after).add_(answer * weights)
            self._window(covered, (top, left), (tall, wide), self.after).add_(weights)
        return total / covered

    def _call_around(self, network: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
        """Cut a picture that goes on at its other side: with a border that is cut off again."""
        height, width = (length // self.before for length in source.shape[-2:])
        border = min(self.side // _OVERLAP, height, width)
        padding = [border * self.before] * 4
        padded = torch.nn.functional.pad(source, padding, mode="circular")
        answer = replace(self, is_circular=False).call(network, padded)
        return self._window(answer, (border, border), (height, width), self.after)

    @staticmethod
    def _window(
        tensor: Tensor, corner: tuple[int, int], size: tuple[int, int], unit: int
    ) -> Tensor:
        """Return a view of a tile of a tensor whose latents have ``unit`` rows and columns."""
        (top, left), (tall, wide) = corner, size
        rows = slice(top * unit, (top + tall) * unit)
        return tensor[..., rows, slice(left * unit, (left + wide) * unit)]

    def _ramp(self, length: int) -> Tensor:
        """Return the weights along one side of a tile's answer: 1 inside, falling outwards."""
        points = torch.arange(length * self.after, dtype=torch.float32) + 0.5
        edge = torch.minimum(points, points.flip(0))
        return (edge / max(1, length * self.after // _OVERLAP)).clamp(max=1.0)


def starts(length: int, side: int) -> list[int]:
    """Return where tiles begin so that they cover a length evenly, overlapping by a quarter."""
    if length <= side:
        return [0]
    count = math.ceil((length - side) / (side - side // _OVERLAP)) + 1
    return [round(k * (length - side) / (count - 1)) for k in range(count)]
