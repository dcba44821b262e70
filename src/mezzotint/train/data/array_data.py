"""Array data: an array on disk as a data set."""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mezzotint.models.families.runs import DataKind
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.arrays import (
    ArrayLayout,
    check_values,
    measure,
    open_array,
    open_class_names,
    open_labels,
    shape_of,
)
from mezzotint.train.data.dataset import DataReport

__all__ = ["ArrayData"]


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
        check_values(config.data, self.shape, self.normalisation)
        count = int(self._array.shape[0])
        labels = open_labels(config.data, count)
        self.labels = [] if labels is None else [int(label) for label in labels]
        self.class_names = open_class_names(config.data, max(self.labels, default=-1) + 1)
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
        tensor = torch.as_tensor(values.astype(np.float32)).reshape(len(rows), *self.shape)
        return self.normalisation.apply(tensor)

    def report(self) -> DataReport:
        """Count sizes, classes and equal samples."""
        seen: dict[bytes, list[str]] = {}
        count = len(self.buckets)
        for start in range(0, count, 4096):
            part: np.ndarray = np.asarray(self._array[start : start + 4096])
            for offset, row in enumerate(part):
                digest = hashlib.blake2b(np.ascontiguousarray(row).tobytes(), digest_size=16)
                seen.setdefault(digest.digest(), []).append(str(start + offset))
        norm = self.normalisation
        flat = [k for k, (a, b) in enumerate(zip(norm.low, norm.high, strict=True)) if a == b]
        warnings = [f"channel {k} is constant, it carries nothing to learn" for k in flat[:8]]
        counts = Counter(self.labels)
        classes = {self.class_names[label]: counts[label] for label in sorted(counts)}
        return DataReport(
            kind=self.kind,
            count=count,
            sizes={"x".join(str(side) for side in self.shape): count},
            classes=classes,
            duplicates=tuple(tuple(names) for names in seen.values() if len(names) > 1),
            warnings=tuple(warnings),
        )
