"""Int8: networks whose matrix products and convolutions compute in 8 bits.

Weights are rounded per output channel, what flows into a layer per tensor, within
the range it was seen in while a few pictures were drawn in float32. Both are written
into the exported network as rounding nodes, which OpenVINO turns into int8 kernels.
Attention scores, norms and sums stay in float32.

Nothing about a row depends on the rows beside it: ranges are constants.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mezzotint.files import write_atomically
from mezzotint.models.backends.openvino_backend import OpenVINONetwork, constants
from mezzotint.models.backends.quiet import import_openvino
from mezzotint.models.networks import TorchNetwork

__all__ = ["Int8Network", "Ranges", "WatchedNetwork", "quantize"]

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value that flows into a layer, by the layer's name."""

_INT8_SHARE = 0.25  # of float32
_LAYERS = ("Convolution", "MatMul")
_SMALLEST = 1e-8
_LEVELS, _NARROW = 127, 64  # to either side of zero


class Int8Network(OpenVINONetwork):
    """A network that OpenVINO runs in int8.

    Args:
        source: The torch network; built only if an export is needed.
        ranges: Ranges of what flows into each layer; layers without one stay float32.
        is_narrow: Whether weights have half their levels; see :func:`quantize`.
        options: As of :class:`~mezzotint.models.backends.openvino_backend.OpenVINONetwork`.
    """

    def __init__(
        self, source: TorchNetwork, *, ranges: Ranges, is_narrow: bool = False, **options: Any
    ) -> None:
        super().__init__(source, **options)
        self._ranges = ranges
        self._is_narrow = is_narrow

    @property
    def _share(self) -> float:
        """Nearly all weights are products', of one byte each."""
        return _INT8_SHARE

    @property
    def _is_flat(self) -> bool:
        """No: its layers are joined with the rounding behind them."""
        return False

    def _lower(self, core: Any, exported: Any) -> tuple[Any, int]:
        """Return the exported network with its rounding nodes, and the bytes of its weights."""
        model = _copied(core, exported)
        quantize(model, self._ranges, is_narrow=self._is_narrow)
        return model, sum(_packed_bytes(constant) for constant in constants(model))


def _packed_bytes(constant: Any) -> int:
    """Return the bytes that a constant is packed into: one a number where it is rounded."""
    users = [user.get_node() for user in constant.output(0).get_target_inputs()]
    is_rounded = any(
        user.get_type_name() == "FakeQuantize" and user.input_value(0).get_node() == constant
        for user in users
    )
    size = int(constant.get_byte_size())
    return int(size * _INT8_SHARE) if is_rounded else size


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
        self._num_answers = 0
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
        """Return the exported network that answers ranges too, and the bytes of its weights."""
        opset13 = import_openvino().opset13
        model, num_bytes = _copied(core, exported), super()._lower(core, exported)[1]
        model.reshape(dict(zip(model.inputs, self._row_shapes, strict=True)))
        self._num_answers = len(model.outputs)
        flows = {layer.get_friendly_name(): layer.input_value(0) for layer in _layers(model)}
        self._sources = {layer: _name(flow) for layer, flow in flows.items()}
        for source in {_name(flow): flow for flow in flows.values()}.values():
            axes = opset13.constant(np.arange(source.get_partial_shape().rank.get_length()))
            edges = (opset13.reduce_min, opset13.reduce_max)
            model.add_outputs([edge(source, axes, keep_dims=True).output(0) for edge in edges])
        return model, num_bytes

    @property
    def _is_flat(self) -> bool:
        """No: what flows into its layers is what they are called with elsewhere."""
        return False

    def _infer(self, compiled: Any, arrays: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run it, and keep the ranges."""
        answers = super()._infer(compiled, arrays)
        edges = answers[self._num_answers :]
        for k, source in enumerate(dict.fromkeys(self._sources.values())):
            low, high = self._seen.get(source, (math.inf, -math.inf))
            self._seen[source] = (
                min(low, float(edges[2 * k].min())),
                max(high, float(edges[2 * k + 1].max())),
            )
        return answers[: self._num_answers]


def _copied(core: Any, exported: Any) -> Any:
    """Return an export as a network that may be changed."""
    return core.read_model(exported) if isinstance(exported, Path) else exported.clone()


def quantize(model: Any, ranges: Ranges, *, is_narrow: bool = False) -> int:
    """Write rounding nodes into an exported network, in place.

    Args:
        model: An OpenVINO model in float32.
        ranges: See :data:`Ranges`.
        is_narrow: Whether weights take 129 levels in place of 255: where sums of two products
            have 16 bits, see :mod:`mezzotint.models.backends.processor`.

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
        weights = layer.input_value(1)
        scale = _weight_scale(layer, weights.get_node().data)
        if is_narrow:  # the same 255 levels over twice the range: only the inner ones are met
            scale = scale * np.float32(_LEVELS / _NARROW)
        exact = opset13.fake_quantize(weights, -scale, scale, -scale, scale, 255)
        layer.input(1).replace_source_output(exact.output(0))
    model.validate_nodes_and_infer_types()
    return len(layers)


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
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        pass
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(made).encode())
    except OSError:
        return made
    return made
