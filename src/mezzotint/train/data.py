"""Data: samples by number, a report before training, batches in a fixed order.

A data set answers ``read(indices)`` with a tensor and knows the label and the
caption of each sample. The order of an epoch is a function of the seed and the
epoch alone, so a run that was killed goes on with the very next batch.

Dimensions: B samples of a batch, C channels.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest
from mezzotint.models.runs import DataKind, Normalisation
from mezzotint.train.arrays import ArrayLayout, measure, open_array, open_labels, shape_of
from mezzotint.train.config import TrainConfig

__all__ = ["ArrayData", "BatchPlan", "DataReport", "Dataset", "augment", "derive", "load_data"]

_ARRAY_SUFFIXES = (".npy", ".npz", ".zarr")


def derive(seed: int, *words: object) -> torch.Generator:
    """Return the CPU generator that belongs to these words under this seed.

    Every random draw of a run comes from such a generator, named by what it is
    for and the step it is for. So nothing depends on what was drawn before.
    """
    text = "/".join(str(word) for word in (seed, *words))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What the data is, told before training.

    Args:
        kind: What a sample is.
        count: Usable samples.
        sizes: How many samples there are of each size, most frequent first.
        captions: Samples with a caption.
        classes: How many samples each class has.
        duplicates: Groups of names with the same content.
        broken: ``name: reason`` of what cannot be used.
        warnings: What deserves a look, one sentence each.
    """

    kind: str
    count: int
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    captions: int = 0
    classes: dict[str, int] = field(default_factory=dict[str, int])
    duplicates: tuple[tuple[str, ...], ...] = ()
    broken: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        sizes = ", ".join(f"{n} of {size}" for size, n in list(self.sizes.items())[:6])
        found = [f"data: {self.count} {self.kind} ({sizes})"]
        if self.captions:
            found.append(f"captions: {self.captions} of {self.count}")
        if self.classes:
            listed = ", ".join(f"{name} {n}" for name, n in list(self.classes.items())[:12])
            found.append(f"classes: {len(self.classes)} ({listed})")
        if self.duplicates:
            extra = sum(len(group) - 1 for group in self.duplicates)
            first = ", ".join(self.duplicates[0][:3])
            found.append(f"duplicates: {extra} ({first})")
        found += [f"broken: {text}" for text in self.broken[:20]]
        found += [f"warning: {text}" for text in self.warnings]
        return found


class Dataset(Protocol):
    """Samples by number.

    Attributes:
        kind: What a sample is to the model.
        shape: Shape of one sample, channels first (of the most frequent bucket).
        buckets: Bucket of each sample; samples of one batch share a bucket.
        labels: Class of each sample, empty without classes.
        captions: Caption of each sample, empty without captions.
        class_names: Names of the classes.
        normalisation: Statistics that ``read`` applied.
    """

    kind: DataKind
    shape: tuple[int, ...]
    buckets: list[int]
    labels: list[int]
    captions: list[str]
    class_names: tuple[str, ...]
    normalisation: Normalisation

    def name(self, index: int) -> str:
        """Return what a person calls a sample: its file, or its number."""
        ...

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return samples as the network sees them. Shape (B, *shape), float32."""
        ...


class ArrayData:
    """An array on disk as a data set.

    Args:
        config: The data of the run.
        layout: What the axes mean.

    Raises:
        InvalidRequest: If the array is not what the layout needs.
    """

    captions: list[str]

    def __init__(self, config: TrainConfig, layout: ArrayLayout) -> None:
        self._array = open_array(config.data, layout)
        self.kind: DataKind = layout
        self.shape = shape_of(self._array, layout)
        self.normalisation = measure(self._array, layout, config.data.normalisation)
        count = int(self._array.shape[0])
        labels = open_labels(config.data, count)
        self.labels = [] if labels is None else [int(label) for label in labels]
        self.class_names = tuple(str(k) for k in range(max(self.labels, default=-1) + 1))
        self.captions = []
        self.buckets = [0] * count

    def name(self, index: int) -> str:
        """Return the number of a sample."""
        return str(index)

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return normalised samples. Shape (B, *shape), float32."""
        order = np.argsort(np.asarray(indices), kind="stable")
        rows = np.asarray(indices)[order]
        if hasattr(self._array, "oindex"):  # Zarr
            unique, back = np.unique(rows, return_inverse=True)
            picked = np.asarray(self._array.oindex[unique])[back]
        else:
            picked = np.asarray(self._array[rows])
        values = np.empty_like(picked)
        values[order] = picked
        tensor = torch.from_numpy(values.astype(np.float32)).reshape(len(rows), *self.shape)
        return self.normalisation.apply(tensor)

    def report(self) -> DataReport:
        """Count sizes, classes and equal samples."""
        seen: dict[bytes, list[str]] = {}
        count = len(self.buckets)
        for start in range(0, count, 4096):
            for offset, row in enumerate(np.asarray(self._array[start : start + 4096])):
                digest = hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16)
                seen.setdefault(digest.digest(), []).append(str(start + offset))
        norm = self.normalisation
        flat = [k for k, (a, b) in enumerate(zip(norm.low, norm.high, strict=True)) if a == b]
        warnings = [f"channel {k} is constant, it carries nothing to learn" for k in flat[:8]]
        classes: dict[str, int] = {}
        for label in self.labels:
            classes[str(label)] = classes.get(str(label), 0) + 1
        return DataReport(
            kind=self.kind,
            count=count,
            sizes={"x".join(str(side) for side in self.shape): count},
            classes=dict(sorted(classes.items(), key=lambda item: int(item[0]))),
            duplicates=tuple(tuple(names) for names in seen.values() if len(names) > 1),
            warnings=tuple(warnings),
        )


def array_layout(config: TrainConfig) -> ArrayLayout:
    """Return what the axes of an array mean to the network that is asked for."""
    kinds: dict[str, ArrayLayout] = {"mlp": "points", "unet1d": "series"}
    return kinds.get(config.network.kind, "fields")


def data_kind(config: TrainConfig) -> str:
    """Look at the path and say what it holds.

    Raises:
        InvalidRequest: If it does not exist or holds nothing that is known.
    """
    path = Path(config.data.path)
    if not path.exists():
        raise InvalidRequest(f"data.path {path} does not exist", field="data.path", value=str(path))
    if config.data.kind != "auto":
        return config.data.kind
    if path.suffix in _ARRAY_SUFFIXES or (path / "zarr.json").exists():
        return "arrays"
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return "parquet"
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "webdataset"
    if path.is_dir() and any(child.is_dir() for child in path.iterdir()):
        return "classes" if config.conditioning.kind == "class" else "images"
    if path.is_dir():
        return "images"
    raise InvalidRequest(
        f"data.path {path.name} is nothing that is known: a folder of pictures, .parquet, .tar, "
        ".npy, .npz or Zarr",
        field="data.path",
        value=str(path),
    )


def load_data(config: TrainConfig) -> tuple[Dataset, DataReport]:
    """Open the data of a run, check it, and report what it is.

    Raises:
        InvalidRequest: If the data is missing, empty, broken, of mixed sizes,
            lacks the captions or classes that the run needs, or is smaller than
            a batch.
    """
    if data_kind(config) == "arrays":
        data: Any = ArrayData(config, array_layout(config))
        report = data.report()
    else:
        from mezzotint.train.pictures import load_pictures

        data, report = load_pictures(config, data_kind(config))
    _check(config, data)
    return data, report


def _check(config: TrainConfig, data: Dataset) -> None:
    """Refuse data that the run cannot use."""
    count = len(data.buckets)
    if config.conditioning.kind == "class" and not data.labels:
        raise InvalidRequest(
            'conditioning.kind "class" needs labels: class folders, data.label_column or '
            "data.labels",
            field="conditioning.kind",
        )
    if config.conditioning.kind == "text":
        missing = [k for k in range(count) if not data.captions or not data.captions[k]]
        if missing:
            raise InvalidRequest(
                f'conditioning.kind "text" needs a caption for every picture, {len(missing)} of '
                f"{count} have none, first {data.name(missing[0])} (NAME.txt beside NAME.png, "
                "metadata.jsonl, or data.caption_column)",
                field="data.caption_column",
            )
    usable = count - int(count * config.data.held_out)
    if config.loop.batch_size > usable:
        raise InvalidRequest(
            f"loop.batch_size must be at most the {usable} samples there are to train on, got "
            f"{config.loop.batch_size}",
            field="loop.batch_size",
            value=config.loop.batch_size,
            allowed=f"1 to {usable}",
        )


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
        order = torch.randperm(len(buckets), generator=derive(seed, "held out")).tolist()
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
            order = [group[k] for k in torch.randperm(len(group), generator=generator).tolist()]
            full = len(order) - len(order) % self._size
            batches += [order[k : k + self._size] for k in range(0, full, self._size)]
        return [batches[k] for k in torch.randperm(len(batches), generator=generator).tolist()]


def augment(samples: Tensor, config: Any, generator: torch.Generator) -> Tensor:
    """Change a batch at random: mirror, move, brighten, contrast.

    Args:
        samples: Shape (B, C, ...), float32.
        config: The run's :class:`~mezzotint.train.config_model.DataConfig`.
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
    moved = []
    for sample, dy, dx in zip(samples, down.round().long(), right.round().long(), strict=True):
        y = (torch.arange(height) - dy).clamp(0, height - 1)
        x = (torch.arange(width) - dx).clamp(0, width - 1)
        moved.append(sample[:, y][:, :, x])
    return torch.stack(moved)
