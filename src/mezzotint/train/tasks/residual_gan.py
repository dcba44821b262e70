"""What the residual GAN needs to learn: its discriminator and the first weights of both.

Without normalisation the first weights decide whether signals keep their size: every
branch beside a straight way starts small, so that a deep stack starts as a shallow one
(arXiv:1901.09321).

Dimensions: B pictures, C channels, H and W pixels.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.models.families.gan_residual import ResidualLevel

__all__ = ["ResidualDiscriminator", "start_weights"]

SLOPE = 0.2
_BRANCH = 0.25  # of the usual size, for what is added to a straight way


class ResidualBlock(nn.Module):
    """Two convolutions beside a way straight through, meeting at half the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 2)
        self.first = nn.Conv2d(width, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the same shape."""
        inner = F.leaky_relu(self.first(F.leaky_relu(maps, SLOPE)), SLOPE)
        return maps + self.second(inner)


class ResidualDiscriminator(nn.Module):
    """Judges pictures: residual blocks down to 4 px, then one number; no normalisation.

    The first convolution halves the side, since blocks at full resolution would cost as
    much as all others together.

    Args:
        channels: C of the pictures.
        widths: Channels of each level, from 4 px up to half the side.
        num_classes: Classes; the judgement is projected on the class (arXiv:1802.05637).
    """

    def __init__(self, channels: int, widths: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        downwards = list(reversed(widths))
        layers: list[nn.Module] = [nn.Conv2d(channels, downwards[0], 4, 2, 1)]
        layers.append(ResidualBlock(downwards[0]))
        for before, after in itertools.pairwise(downwards):
            layers += [nn.AvgPool2d(2), nn.Conv2d(before, after, 1, bias=False)]
            layers.append(ResidualBlock(after))
        self.body = nn.Sequential(*layers)
        width = downwards[-1]
        self.fold = nn.Conv2d(width, width, 4, groups=width, bias=False)
        self.judge = nn.Linear(width, 1)
        self.classes = nn.Embedding(num_classes, width) if num_classes else None

    def forward(self, pictures: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge pictures. (B, C, H, W) -> (B,); higher is more real."""
        maps = F.leaky_relu(self.body(pictures), SLOPE)
        features = F.leaky_relu(self.fold(maps).flatten(1), SLOPE)
        verdict = self.judge(features)[:, 0]
        if self.classes is not None and labels is not None:
            scale = features.shape[1] ** -0.5
            verdict = verdict + (self.classes(labels) * features).sum(1) * scale
        return verdict


@torch.no_grad()
def start_weights(module: nn.Module) -> None:
    """Draw the first weights from the global stream: signals keep their size, branches start small.

    Args:
        module: A residual generator or discriminator; changed in place.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, a=SLOPE)
            if part.bias is not None:
                part.bias.zero_()
    for part in module.modules():
        if isinstance(part, ResidualBlock | ResidualLevel):
            part.second.weight.mul_(_BRANCH)
        if isinstance(part, ResidualLevel):
            part.scale.weight.mul_(_BRANCH)
            if isinstance(part.widen, nn.Conv2d):  # nothing bends it: no gain to make up for
                part.widen.weight.mul_(math.sqrt((1 + SLOPE**2) / 2))
