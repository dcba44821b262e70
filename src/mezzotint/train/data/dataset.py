"""Data sets: samples by number, and a report before training.

A data set answers ``read(indices)`` with a tensor and knows the label and the
caption of each sample.

Dimensions: B samples of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from mezzotint.models.families.runs import DataKind, Normalisation

__all__ = ["DataReport", "Dataset"]


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
