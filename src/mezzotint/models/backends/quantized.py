"""Int8: networks whose matrix products and convolutions compute in 8 bits.

Weights are rounded per output channel, what flows into a layer per tensor, within
the range it was seen in while a few pictures were drawn in float32. Both are written
into the exported network as rounding nodes, which OpenVINO turns into int8 kernels.
Attention scores, norms and sums stay in float32.

Nothing about a row depends on the rows beside it: ranges are constants.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mezzotint.files import write_atomically
from mezzotint.models.backends.exporting import RowShape
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.quiet import import_openvino
from mezzotint.models.networks import TorchNetwork

__all__ = ["Calls", "Int8Network", "Ranges", "find_ranges", "quantize"]

Ranges = Mapping[str, tuple[float, float]]
"""Lowest and highest value that flows into a layer, by the layer's name."""

Calls = Sequence[Mapping[str, Tensor]]
"""Inputs of recorded network calls."""

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

    def _exported(self, core: Any, arrays: Mapping[str, Tensor]) -> tuple[Any, RowShape]:
        """Return the exported network with its rounding nodes."""
        exported, made_for = super()._exported(core, arrays)
        model = core.read_model(exported) if isinstance(exported, Path) else exported.clone()
        quantize(model, self._ranges, is_narrow=self._is_narrow)
        return model, made_for

    @property
    def _is_flat(self) -> bool:
        """No: its layers are joined with the rounding behind them."""
        return False


def find_ranges(network: OpenVINONetwork, calls: Calls) -> dict[str, tuple[float, float]]:
    """Run recorded calls in float32 and note what flows into each layer.

    Args:
        network: The float32 network.
        calls: Recorded inputs, all of one row shape.
    """
    openvino = import_openvino()

    core = openvino.Core()
    arrays = {name: tensor for name, tensor in sorted(calls[0].items())}
    exported = network.exported(core, arrays)
    model = core.read_model(exported) if isinstance(exported, Path) else exported.clone()
    first = len(model.outputs)
    layers = list(_layers(model))
    sources = {_name(layer.input_value(0)): layer.input_value(0) for layer in layers}
    for output in sources.values():
        model.add_outputs([output])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    low, high = dict.fromkeys(sources, math.inf), dict.fromkeys(sources, -math.inf)
    for call in calls:
        answers = request.infer([t.contiguous().numpy() for _, t in sorted(call.items())])
        for k, name in enumerate(sources):
            values = answers[first + k]
            low[name] = min(low[name], float(values.min()))
            high[name] = max(high[name], float(values.max()))
    return {
        layer.get_friendly_name(): (low[source], high[source])
        for layer in layers
        if math.isfinite(low[source := _name(layer.input_value(0))] + high[source])
    }


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
