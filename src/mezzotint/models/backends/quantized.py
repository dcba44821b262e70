"""Int8: networks whose matrix products and convolutions compute in 8 bits.

Weights are rounded per output channel, what flows into a layer per tensor, within
the range it was seen in while a few pictures were drawn in float32. Weights are written
into the exported network as int8 numbers and scales, the rest as rounding nodes, and
OpenVINO makes int8 kernels of both. Attention scores, norms and sums stay in float32.

Nothing about a row depends on the rows beside it: ranges are constants.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mezzotint.files import write_atomically
from mezzotint.models.backends.exporting import RowShape, row_key
from mezzotint.models.backends.mapped import give_back_pages, giving_back, largest_constant
from mezzotint.models.backends.openvino_backend import OpenVINONetwork, stored_bytes
from mezzotint.models.backends.quiet import import_openvino
from mezzotint.models.networks import TorchNetwork
from mezzotint.observe.stages import stage

__all__ = [
    "Int8Network",
    "Ranges",
    "WatchedNetwork",
    "keep",
    "quantize",
    "recall",
    "remember",
]

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value that flows into a layer, by the layer's name."""

_FORMAT = 1  # raise when an int8 network of before can no longer be used
_INT8_SHARE = 0.25  # of float32
_LAYERS = ("Convolution", "MatMul")
_SMALLEST = 1e-8
_AT_ONCE = 1 << 20  # weights that are rounded at once
_LEVELS, _NARROW = 127, 64  # to either side of zero


class Int8Network(OpenVINONetwork):
    """A network that OpenVINO runs in int8.

    Args:
        source: The torch network; built only if an export is needed.
        ranges: Ranges of what flows into each layer; layers without one stay float32.
        is_narrow: Whether weights have half their levels; see :func:`quantize`.
        is_kept: Whether it is written to the folder; not where it is only tried.
        options: As of :class:`~mezzotint.models.backends.openvino_backend.OpenVINONetwork`.
    """

    def __init__(
        self,
        source: TorchNetwork,
        *,
        ranges: Ranges,
        is_narrow: bool = False,
        is_kept: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(source, **options)
        self._ranges = ranges
        self._is_kept = is_kept
        self._is_narrow = is_narrow

    @property
    def _share(self) -> float:
        """Nearly all weights are products', of one byte each."""
        return _INT8_SHARE

    @property
    def _is_flat(self) -> bool:
        """No: its layers are joined with the rounding behind them."""
        return False

    def _export(self, core: Any, arrays: Mapping[str, Tensor]) -> tuple[Any, RowShape]:
        """Return the int8 network for a call: its file if there is a folder.

        Once it is written, neither torch's weights nor those in float32 are read again.
        """
        shape = self._exporter.open_key(row_key(arrays))
        known = self._exporter.find_made(shape, self._words) if self._is_kept else None
        if known is not None:
            return known, shape
        exported, shape = super()._export(core, arrays)
        doing = stage("converting", f"{self.role} to int8", self.source.num_bytes)
        model, is_mapped = _copied(core, exported), isinstance(exported, Path)
        with doing, giving_back(largest_constant(model)):
            quantize(model, self._ranges, is_narrow=self._is_narrow, is_mapped=is_mapped)
            if not self._is_kept:
                return model, shape
            kept = self._exporter.keep_made(
                model, shape, self._words, num_bytes=stored_bytes(model)
            )
            return kept, shape

    @property
    def _words(self) -> str:
        """What decides how an export is rounded."""
        return json.dumps([_FORMAT, self._is_narrow, sorted(self._ranges.items())])

    def _lower(self, core: Any, exported: Any) -> tuple[Any, int]:
        """Return the network as it is, and the bytes of its weights: one a number in int8."""
        return exported, stored_bytes(exported)


class WatchedNetwork(OpenVINONetwork):
    """A network that OpenVINO runs in float32, and that notes what flows into each layer.

    Of each tensor only its lowest and its highest value are answered: all that flows through
    an autoencoder would be gigabytes. It is compiled for one row of one shape, row after row is
    computed: where shapes are known, tensors share their memory.

    Args:
        source: The torch network; built only if an export is needed.
        options: As of :class:`~mezzotint.models.backends.openvino_backend.OpenVINONetwork`.
    """

    def __init__(self, source: TorchNetwork, **options: Any) -> None:
        alone: dict[str, Any] = {**options, "streams": 1}
        super().__init__(source, **alone)
        self._row_shapes: list[list[int]] = []
        self._sources: dict[str, str] = {}  # what flows into a layer, by the layer's name
        self._seen: dict[str, tuple[float, float]] = {}

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of all calls that flowed into each layer; finite ones."""
        return {
            layer: self._seen[source]
            for layer, source in self._sources.items()
            if source in self._seen and all(map(math.isfinite, self._seen[source]))
        }

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network row by row; rows of all calls have one shape."""
        count = len(next(iter(inputs.values())))
        self._row_shapes = [[1, *tensor.shape[1:]] for _, tensor in sorted(inputs.items())]
        rows = [
            super(WatchedNetwork, self).__call__(**{n: t[k : k + 1] for n, t in inputs.items()})
            for k in range(count)
        ]
        return tuple(map(torch.cat, zip(*rows, strict=True)))

    def _lower(self, core: Any, exported: Any) -> tuple[Any, int]:
        """Return the exported network that answers ranges too, and the bytes of its weights.

        Ranges are answered first: OpenVINO computes in the order of its answers, and what
        flows would be kept until its range is wanted.
        """
        openvino = import_openvino()
        opset13 = openvino.opset13
        model, num_bytes = _copied(core, exported), super()._lower(core, exported)[1]
        model.reshape(dict(zip(model.inputs, self._row_shapes, strict=True)))
        flows = {layer.get_friendly_name(): layer.input_value(0) for layer in _layers(model)}
        self._sources = {layer: _name(flow) for layer, flow in flows.items()}
        edges: list[Any] = []
        for source in {_name(flow): flow for flow in flows.values()}.values():
            axes = opset13.constant(np.arange(source.get_partial_shape().rank.get_length()))
            for edge in (opset13.reduce_min, opset13.reduce_max):
                edges.append(edge(source, axes, keep_dims=True).output(0))
        answers = [result.input_value(0) for result in model.get_results()]
        return openvino.Model([*edges, *answers], model.get_parameters()), num_bytes

    @property
    def _is_flat(self) -> bool:
        """No: what flows into its layers is what they are called with elsewhere."""
        return False

    def _infer(self, compiled: Any, arrays: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run it, and keep the ranges."""
        answers = super()._infer(compiled, arrays)
        sources = list(dict.fromkeys(self._sources.values()))
        for k, source in enumerate(sources):
            low, high = self._seen.get(source, (math.inf, -math.inf))
            self._seen[source] = (
                min(low, float(answers[2 * k].min())),
                max(high, float(answers[2 * k + 1].max())),
            )
        return answers[2 * len(sources) :]


def _copied(core: Any, exported: Any) -> Any:
    """Return an export as a network that may be changed."""
    return core.read_model(exported) if isinstance(exported, Path) else exported.clone()


def quantize(
    model: Any, ranges: Ranges, *, is_narrow: bool = False, is_mapped: bool = False
) -> int:
    """Round an exported network, in place: weights to int8 numbers and their scales.

    Args:
        model: An OpenVINO model in float32.
        ranges: See :data:`Ranges`.
        is_narrow: Whether weights take 129 levels in place of 255: where sums of two products
            have 16 bits, see :mod:`mezzotint.models.backends.processor`.
        is_mapped: Whether its constants are mapped from a file; what was read of them is
            given back.

    Returns:
        Layers that compute in int8 now.
    """
    opset13 = import_openvino().opset13
    rounded: dict[tuple[str, float, float], Any] = {}
    layers = [layer for layer in _layers(model) if layer.get_friendly_name() in ranges]
    for layer in layers:
        source = layer.input_value(0)
        low, high = (float(np.float32(edge)) for edge in ranges[layer.get_friendly_name()])
        low, high = min(low, 0.0), max(high, 0.0)  # zero, the padding, must be a level
        high = max(high, low + _SMALLEST)
        key = (_name(source), low, high)
        if key not in rounded:
            edges = [np.float32(edge) for edge in (low, high, low, high)]
            rounded[key] = opset13.fake_quantize(source, *edges, 256)
        layer.input(0).replace_source_output(rounded[key].output(0))
        weights = layer.input_value(1).get_node().data
        step = _weight_scale(layer, weights) / np.float32(_NARROW if is_narrow else _LEVELS)
        numbers = opset13.constant(_whole_numbers(weights, step))
        if is_mapped:
            give_back_pages(weights.ctypes.data, weights.nbytes)
        spread = opset13.multiply(opset13.convert(numbers, np.float32), opset13.constant(step))
        layer.input(1).replace_source_output(spread.output(0))
    model.validate_nodes_and_infer_types()
    return len(layers)


def _whole_numbers(weights: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Return how many steps each weight is nearest to, a part at a time; int8, same shape."""
    numbers = np.empty(weights.shape, np.int8)
    count = max(_AT_ONCE * len(weights) // max(weights.size, 1), 1)
    for start in range(0, len(weights), count):
        part = slice(start, start + count)
        steps = step[part] if len(step) > 1 else step
        numbers[part] = np.rint(weights[part] / steps)
    return numbers


def _layers(model: Any) -> Iterator[Any]:
    """Yield convolutions and products with constant float weights."""
    for node in model.get_ordered_ops():
        if node.get_type_name() in _LAYERS:
            weights = node.input_value(1).get_node()
            if weights.get_type_name() == "Constant" and weights.data.dtype == np.float32:
                yield node


def _name(output: Any) -> str:
    return f"{output.get_node().get_friendly_name()}:{output.get_index()}"


def _weight_scale(layer: Any, weights: np.ndarray) -> np.ndarray:
    """Return the largest weight of each output channel, shaped to divide by."""
    if layer.get_type_name() == "Convolution":
        axes = tuple(range(1, weights.ndim))
    else:
        is_turned = bool(layer.get_attributes()["transpose_b"])
        axes = (weights.ndim - 1 if is_turned or weights.ndim == 1 else weights.ndim - 2,)
    return np.maximum(np.abs(weights).max(axis=axes, keepdims=True), _SMALLEST).astype(np.float32)


def remember(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a file of plain data holds, made and written the first time."""
    known = recall(path)
    return known if known is not None else keep(path, make())


def recall(path: Path) -> dict[str, Any] | None:
    """Return what a file of plain data holds, None if there is none that can be read."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def keep(path: Path | None, made: dict[str, Any]) -> dict[str, Any]:
    """Write plain data to a file if there is one and the disk takes it; return it."""
    if path is not None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(made).encode())
    return made
