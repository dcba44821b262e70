"""The residual generator of a GAN: from 4 px up, without normalisation or transposed convolution.

A vector (w of the mapping network, the class behind it) becomes a 4 px map; each
further level doubles the side by bilinear interpolation, so no pixel is written more
often than its neighbours and no checkerboard can arise (Odena et al. 2016,
doi:10.23915/distill.00003). A block adds two convolutions to what passes straight
through, as in R3GAN (arXiv:2501.05441), and the vector scales the channels of every
block. Nothing is normalised over the batch: a row is the same whatever stands beside it.

Dimensions: B rows, S length of the vector, C channels of a level, h and w its rows and
columns.
"""

import itertools
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ResidualStack", "residual_side"]


def residual_side(levels: int) -> int:
    """Return the side of the pictures that so many levels draw, pixels."""
    return 4 * 2 ** (levels - 1)


class ResidualLevel(nn.Module):
    """One level: change the width, double the side, add two convolutions.

    Args:
        style: S.
        before: Channels that come in.
        after: Channels that go out; the convolutions meet at half of them.
        doubles: Whether the side is doubled.
        slope: Of the leaky ReLU.
    """

    def __init__(self, style: int, before: int, after: int, *, doubles: bool, slope: float) -> None:
        super().__init__()
        self.doubles, self.slope = doubles, slope
        self.widen = nn.Conv2d(before, after, 1, bias=False) if before != after else nn.Identity()
        self.scale = nn.Conv2d(style, after, 1)
        hidden = max(1, after // 2)
        self.first = nn.Conv2d(after, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, after, 3, padding=1)

    def forward(self, maps: Tensor, style: Tensor) -> Tensor:
        """Return (B, after, 2h, 2w), or (B, after, h, w) at the first level."""
        maps = self.widen(maps)  # before the side doubles: a quarter of the work
        if self.doubles:
            maps = F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        inner = F.leaky_relu(maps, self.slope) * (1 + self.scale(style))
        return maps + self.second(F.leaky_relu(self.first(inner), self.slope))


class ResidualStack(nn.Module):
    """The generator behind its vector.

    Args:
        style: S.
        widths: Channels of each level, from 4 px up.
        image_channels: Channels of the pictures.
        slope: Of the leaky ReLU.
    """

    def __init__(
        self, style: int, widths: Sequence[int], *, image_channels: int, slope: float
    ) -> None:
        super().__init__()
        self.slope = slope
        self.start = nn.Conv2d(style, widths[0] * 16, 1)
        self.levels = nn.ModuleList(
            ResidualLevel(style, before, after, doubles=number > 0, slope=slope)
            for number, (before, after) in enumerate(itertools.pairwise((widths[0], *widths)))
        )
        self.last = nn.Conv2d(widths[-1], image_channels, 3, padding=1)

    def forward(self, style: Tensor) -> Tensor:
        """Draw pictures about in [-1, 1]. (B, S) to (B, image_channels, H, W).

        Nothing bends the last layer: behind a tangent, white has no gradient, and the
        generator of pictures on white stays there.
        """
        style = style[:, :, None, None]  # convolutions of 1 px keep the rows of a batch apart
        maps = self.start(style).reshape(style.shape[0], -1, 4, 4)
        for level in self.levels:
            maps = level(maps, style)
        return self.last(F.leaky_relu(maps, self.slope))
