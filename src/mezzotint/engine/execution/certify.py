"""Certificates: which call sizes leave every row's bits alone.

A row's answer may depend on how many rows share its call: convolutions and
matrix products choose their algorithm by size. Before a call size is used, it is
tried with random rows, each compared bit for bit with what it gives in a call of
the reference size, in another position and beside other neighbours. A size that
fails is first repaired, layer by layer: the layers that differ take their rows
in pairs from then on. If that does not help either, the size is not used.

Certificates are kept on disk per (model, device and versions, shape of a row)
and are part of what ``/v1/capabilities`` shows.

Dimensions: R rows, then the shape of one image's latents.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mezzotint.files import write_atomically
from mezzotint.models.adapters.controlnet import CONTROL_SCALES
from mezzotint.models.adapters.ip_adapter import IMAGE_SCALES
from mezzotint.models.base import Conditioning, Model
from mezzotint.models.networks import TorchNetwork

__all__ = [
    "REFERENCE",
    "Certificates",
    "Rows",
    "Trial",
    "check_bucket",
    "random_rows",
    "take_in_pairs",
]

REFERENCE = 2
"""Rows of the call that every other size has to agree with."""

_MAX_REPAIRS = 64


@dataclass(frozen=True, slots=True)
class Rows:
    """The arguments of one network call."""

    latents: Tensor
    sigma: Tensor
    timestep: Tensor | None
    conditioning: Conditioning

    def pick(self, order: list[int]) -> "Rows":
        """Return some rows in some order; a row may come twice."""
        return Rows(
            self.latents[order],
            self.sigma[order],
            None if self.timestep is None else self.timestep[order],
            self.conditioning.pick(order),
        )

    def __len__(self) -> int:
        return int(self.latents.shape[0])


Call = Callable[[Rows], Tensor]


@dataclass(slots=True)
class _Certificate:
    """What is known about one shape of row."""

    label: str
    passed: dict[int, bool] = field(default_factory=dict[int, bool])
    repaired: list[str] = field(default_factory=list[str])


class Certificates:
    """Every certificate of this process, remembered on disk.

    Args:
        environment: Device, dtype and versions; others' certificates are not read.
        folder: Where to remember, or None.
    """

    def __init__(self, environment: str, folder: Path | None = None) -> None:
        self._environment = environment
        self._folder = folder
        self._known: dict[Hashable, _Certificate] = {}

    def allowed(self, key: Hashable, label: str, buckets: tuple[int, ...]) -> tuple[int, ...]:
        """Return the sizes that passed, rising; the reference always."""
        return tuple(b for b in sorted({*buckets, REFERENCE}) if self.passed(key, label, b))

    def is_tried(self, key: Hashable, label: str, bucket: int) -> bool:
        """Tell whether a size has been tried, here or in an earlier process."""
        return bucket == REFERENCE or bucket in self._of(key, label).passed

    def passed(self, key: Hashable, label: str, bucket: int) -> bool:
        """Tell whether a size may be used."""
        return bucket == REFERENCE or self._of(key, label).passed.get(bucket, False)

    def settle(
        self, key: Hashable, label: str, trial: "Trial", *, model: Model, call: Call
    ) -> bool:
        """Remember what a trial found; a size that failed is repaired and tried again first.

        Args:
            key: What the certificate is for.
            label: The same for people.
            trial: Of a size, over.
            model: Whose layers may be repaired.
            call: The network call.

        Returns:
            Whether the size may be used.
        """
        certificate, passed = self._of(key, label), trial.passed is True
        if not passed:
            repaired = _repair(model, call, trial.rows)
            certificate.repaired += [name for name in repaired if name not in certificate.repaired]
            passed = bool(repaired) and check_bucket(call, trial.rows)
        certificate.passed[len(trial.rows)] = passed
        self._save(key, certificate)
        return passed

    def prepare(self, key: Hashable, label: str, model: Model) -> None:
        """Repeat the repairs that an earlier process found necessary."""
        names = self._of(key, label).repaired
        if names:
            for name, layer in _leaves(model):
                if name in names:
                    take_in_pairs(layer)

    def table(self) -> list[dict[str, Any]]:
        """Return every certificate as plain data, for people and ``/v1/capabilities``."""
        return [self._describe(c) for c in self._known.values() if c.passed]

    def _describe(self, certificate: _Certificate) -> dict[str, Any]:
        return {
            "shape": certificate.label,
            "environment": self._environment,
            "reference": REFERENCE,
            "buckets": {str(b): passed for b, passed in sorted(certificate.passed.items())},
            "layers_in_pairs": list(certificate.repaired),
        }

    def _path(self, key: Hashable) -> Path | None:
        text = f"{self._environment}\0{key!r}"
        name = hashlib.sha256(text.encode()).hexdigest()[:40]
        return self._folder / f"{name}.json" if self._folder is not None else None

    def _of(self, key: Hashable, label: str) -> _Certificate:
        """Return what is known, read from disk the first time."""
        if key not in self._known:
            self._known[key] = self._read(key) or _Certificate(label)
        return self._known[key]

    def _read(self, key: Hashable) -> _Certificate | None:
        path = self._path(key)
        try:
            data = json.loads(path.read_bytes()) if path is not None else None
            if data is None or data["environment"] != self._environment:
                return None
            passed = {int(b): bool(p) for b, p in data["buckets"].items()}
            return _Certificate(str(data["shape"]), passed, list(data["layers_in_pairs"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _save(self, key: Hashable, certificate: _Certificate) -> None:
        path = self._path(key)
        if path is None:
            return
        entry = self._describe(certificate)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(entry, indent=1).encode())
        except OSError:
            return


def random_rows(templates: Rows, count: int, *, seed: int = 0) -> Rows:
    """Make random rows of the same shapes as some real ones.

    Args:
        templates: Real rows; their noise levels and conditionings are drawn from.
        count: Rows to make.
        seed: Of the draw.

    Returns:
        Rows whose latents are noise at real levels and whose conditionings are real
        ones with noise added; whole numbers (masks, labels) stay.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randint(len(templates), (count,), generator=generator).numpy().tolist()
    picked = templates.pick(order)
    noise = torch.randn(picked.latents.shape, generator=generator).to(picked.latents.device)
    level = picked.sigma.reshape(-1, *([1] * (noise.ndim - 1))).clamp(min=1.0)
    shaken = {name: _shake(t, generator) for name, t in picked.conditioning.items()}
    for name in (CONTROL_SCALES, IMAGE_SCALES):  # at 0 what they scale would not be tried
        if name in shaken:
            shaken[name] = torch.where(shaken[name] == 0, 1.0, shaken[name])
    conditioning = Conditioning(shaken, rows=count)
    return Rows((noise * level).float(), picked.sigma, picked.timestep, conditioning)


def _shake(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of a tenth of a tensor's own size; whole numbers stay."""
    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
    return tensor + 0.1 * noise * tensor.abs().mean().clamp(max=10.0)


class Trial:
    """A size of call on trial, one call after the other: it can be left and gone on with.

    Every row of a call is compared with the same row in calls of the reference size. The
    rows are also turned round, so that each stands in another place beside other neighbours.

    Args:
        rows: Rows of the call.

    Attributes:
        passed: Whether every row kept its bits; None while calls are still to be made.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.passed: bool | None = None
        self._whole: Tensor | None = None
        count = len(rows)
        pairs = [[k, (k + 1) % count] for k in range(0, count, REFERENCE)]
        turned = [(k + 1) % count for k in range(count)]
        self._orders = [turned, *pairs] if count > 1 else [[0, 0]]

    @property
    def next_rows(self) -> int:
        """Rows of the call that comes next; 0 if none does."""
        if self.passed is not None:
            return 0
        return len(self.rows) if self._whole is None else len(self._orders[0])

    def advance(self, call: Call) -> None:
        """Make the next call. One that raises changes nothing."""
        if self._whole is None:
            self._whole = call(self.rows)
            return
        order = self._orders[0]
        answers = call(self.rows.pick(order))
        same = all(torch.equal(answers[k], self._whole[row]) for k, row in enumerate(order))
        del self._orders[0]
        if not same or not self._orders:
            self.passed, self._whole = same, None


def check_bucket(call: Call, rows: Rows) -> bool:
    """Tell whether every row of a call keeps its bits; see :class:`Trial`."""
    trial = Trial(rows)
    while trial.passed is None:
        trial.advance(call)
    return trial.passed


def take_in_pairs(layer: nn.Module) -> None:
    """Let a layer take its rows two by two, so that its answer is that of the reference."""
    if getattr(layer, "mezzotint_in_pairs", False):
        return
    forward = layer.forward

    def in_pairs(input: Tensor, *rest: Any, **named: Any) -> Tensor:
        rows = input.shape[0]
        if rows <= REFERENCE:
            return forward(input, *rest, **named)
        parts: list[Tensor] = []
        for start in range(0, rows, REFERENCE):
            part = input[start : start + REFERENCE]
            if part.shape[0] < REFERENCE:
                parts.append(forward(torch.cat([part, part]), *rest, **named)[: part.shape[0]])
            else:
                parts.append(forward(part, *rest, **named))
        return torch.cat(parts)

    layer.forward = in_pairs  # pyright: ignore[reportAttributeAccessIssue]
    layer.__dict__["mezzotint_in_pairs"] = True


def _leaves(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """Yield the named leaf layers of the denoiser, if torch runs it."""
    network = model.networks.get("denoiser")
    if isinstance(network, TorchNetwork):
        named: Iterable[tuple[str, nn.Module]] = cast("Any", network.module).named_modules()
        for name, layer in named:  # torch leaves the types of its walks open
            is_leaf = not list(cast("Any", layer).children())
            if is_leaf and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                yield name, layer


@contextmanager
def _watching(model: Model, seen: dict[str, list[Tensor]]) -> Generator[None]:
    """Record what goes into and comes out of every leaf layer."""

    def watch(name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen.setdefault(name, [inputs[0].clone(), output.clone()])

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in _leaves(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _repair(model: Model, call: Call, rows: Rows) -> list[str]:
    """Find layers that differ though their inputs agree, and let them take pairs."""
    repaired: list[str] = []
    layers = dict(_leaves(model))
    while len(repaired) < _MAX_REPAIRS and layers:
        whole: dict[str, list[Tensor]] = {}
        with _watching(model, whole):
            call(rows)
        pair: dict[str, list[Tensor]] = {}
        with _watching(model, pair):
            call(rows.pick([0, 1 % len(rows)]))
        guilty = [name for name in pair if name in whole and _differs(whole[name], pair[name])]
        fresh = [name for name in guilty if name not in repaired]
        if not fresh:
            return repaired
        for name in fresh:
            take_in_pairs(layers[name])
        repaired += fresh
    return repaired


def _differs(whole: list[Tensor], pair: list[Tensor]) -> bool:
    """Tell whether equal inputs gave unequal outputs, for the rows both have."""
    rows = min(len(whole[0]), len(pair[0]), REFERENCE)
    if len(whole[0]) < rows or not torch.equal(whole[0][:rows], pair[0][:rows]):
        return False
    return not torch.equal(whole[1][:rows], pair[1][:rows])
