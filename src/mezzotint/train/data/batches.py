"""Batches: the samples of batch number n, and how they are changed at random.

The order of an epoch is a function of the seed and the epoch alone, so a run that
was killed goes on with the very next batch.

Dimensions: B samples of a batch, C channels.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest

__all__ = ["BatchPlan", "augment", "derive"]


def derive(seed: int, *words: object) -> torch.Generator:
    """Return the CPU generator that belongs to these words under this seed.

    Every random draw of a run comes from such a generator, named by what it is
    for and the step it is for. So nothing depends on what was drawn before.
    """
    text = "/".join(str(word) for word in (seed, *words))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


class BatchPlan:
    """Which samples make up batch number n, as a function of the seed alone.

    Every epoch shuffles the samples inside their buckets, cuts full batches and
    shuffles those; what does not fill a batch waits for another epoch.

    Args:
        buckets: Bucket of each sample.
        batch_size: Samples of one batch, all from one bucket.
        held_out: Fraction of samples kept away from training.
        seed: The run's seed.

    Raises:
        InvalidRequest: If no bucket fills a batch.
    """

    def __init__(
        self, buckets: Sequence[int], *, batch_size: int, held_out: float, seed: int
    ) -> None:
        order = _shuffled(len(buckets), derive(seed, "held out"))
        kept = int(len(buckets) * held_out)
        self.held_out: list[int] = sorted(order[:kept])
        self._seed, self._size = seed, batch_size
        self._groups: dict[int, list[int]] = {}
        for index in sorted(order[kept:]):
            self._groups.setdefault(buckets[index], []).append(index)
        self.per_epoch = sum(len(group) // batch_size for group in self._groups.values())
        self._cached: tuple[int, list[list[int]]] = (-1, [])
        if not self.per_epoch:
            largest = max((len(group) for group in self._groups.values()), default=0)
            raise InvalidRequest(
                f"loop.batch_size must be at most {largest}, the samples of the fullest size "
                f"bucket, got {batch_size}",
                field="loop.batch_size",
                value=batch_size,
            )

    def batch(self, number: int) -> list[int]:
        """Return the indices of batch ``number``, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.per_epoch)
        if self._cached[0] != epoch:
            self._cached = (epoch, self._shuffle(epoch))
        return self._cached[1][place]

    def _shuffle(self, epoch: int) -> list[list[int]]:
        """Return the batches of an epoch in order."""
        generator = derive(self._seed, "order", epoch)
        batches: list[list[int]] = []
        for bucket in sorted(self._groups):
            group = self._groups[bucket]
            order = [group[k] for k in _shuffled(len(group), generator)]
            full = len(order) - len(order) % self._size
            batches += [order[k : k + self._size] for k in range(0, full, self._size)]
        return [batches[k] for k in _shuffled(len(batches), generator)]


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    """Return the numbers from 0 to ``count`` - 1 in a random order."""
    return torch.randperm(count, generator=generator).numpy().tolist()


def augment(samples: Tensor, config: Any, generator: torch.Generator) -> Tensor:
    """Change a batch at random: mirror, move, brighten, contrast.

    Args:
        samples: Shape (B, C, ...), float32.
        config: The run's :class:`~mezzotint.train.config.model.DataConfig`.
        generator: Where the draws come from.
    """
    rows = len(samples)
    wide = (rows, *([1] * (samples.ndim - 1)))
    if config.flip and samples.ndim > 2:
        mirrored = torch.rand(wide, generator=generator) < 0.5
        samples = torch.where(mirrored, samples.flip(-1), samples)
    if config.shift and samples.ndim == 4:
        samples = _move(samples, config.shift, generator)
    if config.contrast:
        factor = 1 + config.contrast * (2 * torch.rand(wide, generator=generator) - 1)
        mean = samples.flatten(1).mean(1).reshape(wide)
        samples = (samples - mean) * factor + mean
    if config.brightness:
        samples = samples + config.brightness * (2 * torch.rand(wide, generator=generator) - 1)
    return samples.clamp(-1, 1) if config.contrast or config.brightness else samples


def _move(samples: Tensor, fraction: float, generator: torch.Generator) -> Tensor:
    """Translate each sample by up to a fraction of its sides, repeating the border."""
    rows, _, height, width = samples.shape
    down = (2 * torch.rand(rows, generator=generator) - 1) * fraction * height
    right = (2 * torch.rand(rows, generator=generator) - 1) * fraction * width
    moved: list[Tensor] = []
    for sample, dy, dx in zip(samples, down.round().long(), right.round().long(), strict=True):
        y = (torch.arange(height) - dy).clamp(0, height - 1)
        x = (torch.arange(width) - dx).clamp(0, width - 1)
        moved.append(sample[:, y][:, :, x])
    return torch.stack(moved)
