"""Networks for data that is not a picture: points and series.

Both take ``(sample, timestep, class_labels)`` and answer with a tensor like
``sample``, as the diffusers networks for pictures do, and are rebuilt from
their ``config`` alone.

Dimensions: B samples, D features of a point, C channels, L length of a series,
H hidden width.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ARRAY_NETWORKS", "PointNetwork", "SeriesUNet"]


def _time_features(timestep: Tensor, width: int) -> Tensor:
    """Return sines and cosines of the timestep. Shape (B, width), float32."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) / half * torch.arange(half, device=timestep.device))
    angles = timestep.float()[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], 1)


class _Embedding(nn.Module):
    """Timestep and class label as one vector. Shape (B, width)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.width = width - width % 2
        self.layers = nn.Sequential(
            nn.Linear(self.width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.classes = nn.Embedding(num_classes, width) if num_classes else None

    def forward(self, timestep: Tensor, class_labels: Tensor | None) -> Tensor:
        vector = self.layers(_time_features(timestep, self.width))
        if self.classes is not None and class_labels is not None:
            vector = vector + self.classes(class_labels)
        return vector


class PointNetwork(nn.Module):
    """A residual perceptron over points of D features.

    Args:
        features: D.
        hidden: Width H of the residual stream.
        depth: Residual blocks.
        num_classes: Rows of the class table (a "no class" row included), 0 for none.
        dropout: Dropout inside each block.
    """

    def __init__(
        self, features: int, hidden: int, depth: int, num_classes: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "features": features, "hidden": hidden, "depth": depth,
            "num_classes": num_classes, "dropout": dropout,
        }  # fmt: skip
        self.embedding = _Embedding(hidden, num_classes)
        self.enter = nn.Linear(features, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden),
                nn.Linear(hidden, 2 * hidden),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * hidden, hidden),
            )
            for _ in range(depth)
        )
        self.leave = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, features))

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """Predict for points. Shapes (B, D), (B,), (B,) -> (B, D)."""
        vector = self.embedding(timestep, class_labels)
        stream = self.enter(sample)
        for block in self.blocks:
            stream = stream + block(stream + vector)
        return self.leave(stream)


class _Residual1d(nn.Module):
    """Two convolutions with the embedding in between. Shape (B, C, L) -> (B, C', L)."""

    def __init__(self, enter: int, leave: int, vector: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(math.gcd(8, enter), enter)
        self.conv_1 = nn.Conv1d(enter, leave, 5, padding=2)
        self.inject = nn.Linear(vector, leave)
        self.norm_2 = nn.GroupNorm(math.gcd(8, leave), leave)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv1d(leave, leave, 5, padding=2)
        self.skip = nn.Conv1d(enter, leave, 1) if enter != leave else nn.Identity()

    def forward(self, stream: Tensor, vector: Tensor) -> Tensor:
        inner = self.conv_1(F.silu(self.norm_1(stream))) + self.inject(F.silu(vector))[:, :, None]
        inner = self.conv_2(self.dropout(F.silu(self.norm_2(inner))))
        return self.skip(stream) + inner


class _Gated1d(nn.Module):
    """A convolution behind gates that the embedding opens. Shape (B, C, L) -> (B, C', L).

    Nothing bends the signal itself, so a wave passes as a wave, and the label chooses which
    (WaveNet's conditional gates, arXiv:1609.03499, equation 2, without the tanh).
    """

    def __init__(self, enter: int, leave: int, vector: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(8, enter), enter)
        self.conv_1 = nn.Conv1d(enter, 2 * leave, 5, padding=2)
        self.inject = nn.Linear(vector, 2 * leave)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv1d(leave, leave, 1)
        self.skip = nn.Conv1d(enter, leave, 1) if enter != leave else nn.Identity()

    def forward(self, stream: Tensor, vector: Tensor) -> Tensor:
        inner = self.conv_1(self.norm(stream)) + self.inject(F.silu(vector))[:, :, None]
        return self.skip(stream) + self.conv_2(self.dropout(F.glu(inner, 1)))


class _Attention1d(nn.Module):
    """Self-attention along the series, added to it. Shape (B, C, L)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(math.gcd(8, width), width)
        self.enter = nn.Conv1d(width, 3 * width, 1)
        self.leave = nn.Conv1d(width, width, 1)

    def forward(self, stream: Tensor) -> Tensor:
        rows, width, length = stream.shape
        packed = self.enter(self.norm(stream)).reshape(rows, 3, self.heads, -1, length)
        query, key, value = packed.transpose(-1, -2).unbind(1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return stream + self.leave(mixed.transpose(-1, -2).reshape(rows, width, length))


class SeriesUNet(nn.Module):
    """A U-Net along one axis, for audio-like series of C channels.

    Args:
        channels: C of the data.
        widths: Width of each level; L must divide by ``fold * 2 ** (levels - 1)``.
        layers: Residual blocks of each level.
        attention: Levels with self-attention, 0 is full length.
        heads: Attention heads.
        num_classes: Rows of the class table, 0 for none.
        dropout: Dropout inside each block.
        fold: Neighbouring values that are one position of the first level.
        gated: Blocks pass the signal through gates in place of bending it, and the last
            layer is linear: for sound, whose label is its frequencies.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        layers: int = 1,
        *,
        attention: Sequence[int] = (),
        heads: int = 4,
        num_classes: int = 0,
        dropout: float = 0.0,
        fold: int = 1,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "channels": channels, "widths": list(widths), "layers": layers,
            "attention": list(attention), "heads": heads, "num_classes": num_classes,
            "dropout": dropout, "fold": fold, "gated": gated,
        }  # fmt: skip
        self.fold, folded = fold, fold * channels
        vector, block = (2 * widths[0], _Gated1d) if gated else (4 * widths[0], _Residual1d)
        self.embedding = _Embedding(vector, num_classes)
        self.enter = nn.Conv1d(folded, widths[0], 5, padding=2)
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        width = widths[0]
        skips: list[int] = []

        def level(index: int, enters: Sequence[int]) -> nn.ModuleList:
            steps = nn.ModuleList()
            for enter in enters:
                steps.append(block(enter, widths[index], vector, dropout))
                if index in attention:
                    steps.append(_Attention1d(widths[index], heads))
            return steps

        for index, wide in enumerate(widths):
            self.down.append(level(index, [width] + [wide] * (layers - 1)))
            skips.append(wide)
            width = wide
            last = index == len(widths) - 1
            self.shrink.append(
                nn.Identity() if last else nn.Conv1d(wide, wide, 4, stride=2, padding=1)
            )
        self.middle = block(width, width, vector, dropout)
        for index in reversed(range(len(widths))):
            self.up.append(level(index, [width + skips[index]] + [widths[index]] * (layers - 1)))
            width = widths[index]
            self.grow.append(
                nn.Identity() if index == 0 else nn.ConvTranspose1d(width, width, 4, 2, 1)
            )
        last = nn.Conv1d(width, folded, 5, 1, 2)
        bent = (nn.GroupNorm(math.gcd(8, width), width), nn.SiLU())
        self.leave = nn.Sequential(last) if gated else nn.Sequential(*bent, last)

    def forward(
        self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None
    ) -> Tensor:
        """Predict for series. Shapes (B, C, L), (B,), (B,) -> (B, C, L)."""
        vector = self.embedding(timestep, class_labels)
        rows, channels, length = sample.shape
        folded = sample.reshape(rows, channels, -1, self.fold).transpose(2, 3)
        stream = self.enter(folded.reshape(rows, channels * self.fold, -1))
        kept: list[Tensor] = []
        for steps, shrink in zip(self.down, self.shrink, strict=True):
            stream = _walk(steps, stream, vector)
            kept.append(stream)
            stream = shrink(stream)
        stream = self.middle(stream, vector)
        for steps, grow in zip(self.up, self.grow, strict=True):
            stream = _walk(steps, torch.cat([stream, kept.pop()], 1), vector)
            stream = grow(stream)
        answer = self.leave(stream).reshape(rows, channels, self.fold, -1)
        return answer.transpose(2, 3).reshape(rows, channels, length)


def _walk(steps: Any, stream: Tensor, vector: Tensor) -> Tensor:
    """Send a stream through the blocks of one level."""
    for step in steps:
        stream = step(stream) if isinstance(step, _Attention1d) else step(stream, vector)
    return stream


ARRAY_NETWORKS: dict[str, type[nn.Module]] = {
    "PointNetwork": PointNetwork,
    "SeriesUNet": SeriesUNet,
}
