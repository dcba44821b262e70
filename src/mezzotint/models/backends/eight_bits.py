"""Eight bits in torch: linear layers whose products, or weights, are numbers of one byte.

OpenVINO has an int8 of its own, see :mod:`mezzotint.models.backends.quantized`. Where torch
computes, on a GPU above all, ``turbo`` may have torchao's: the weight of each linear layer of
the denoiser is rounded row by row, and so is each token that flows in, unless weights alone
are asked for. Nothing is learnt beforehand, and nothing of a row depends on other rows.

Left as they are: convolutions, norms, layers of odd widths, and what has one vector a row
(of the noise level, say), which is little work that pictures depend on much.

Dimensions: R output features, C input features.
"""

import importlib
import importlib.util
import logging
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.errors import InvalidRequest
from mezzotint.models.config import PlacementConfig
from mezzotint.models.networks import RowLinear, TorchNetwork, copy_layers

__all__ = ["EightBitLinear", "check_quantize", "eight_bit_network", "round_linears"]

_MULTIPLE = 16  # what kernels want the sides of a weight to be a multiple of
_FLOAT8_SINCE = 8.9  # compute capability


class EightBitLinear(RowLinear):
    """A linear layer whose weight is torchao's; made by :func:`round_linears` of a plain one."""

    held: Any

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight in the type that is computed in. Shape (R, C)."""
        return self.held.dequantize()

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; what has one vector a row is not rounded."""
        if input.ndim == 2:
            return super().forward(input)
        rows = torch.split(input, 1) if self.every_row else (input,)
        return torch.cat([F.linear(row, self.held, self.bias) for row in rows])


def check_quantize(config: PlacementConfig, device: str) -> None:
    """Refuse linear layers of eight bits where the package or the device cannot have them.

    Args:
        config: What was asked for.
        device: Where networks compute.

    Raises:
        InvalidRequest: One sentence that says what is missing, and what can be had.
    """
    kind = config.quantize
    if kind == "none":
        return
    if importlib.util.find_spec("torchao") is None:
        raise _refused(kind, 'needs the package torchao: pip install "mezzotint[torchao]"')
    if config.offload != "none":
        raise _refused(kind, f"needs offload none, got {config.offload}: layers hold their weights")
    if kind == "float8":
        major, minor = (
            torch.cuda.get_device_capability(device) if device.startswith("cuda") else (0, 0)
        )
        if major + minor / 10 < _FLOAT8_SINCE:
            raise _refused(
                kind,
                f"needs a GPU of compute capability 8.9 or later, and {device} is none; here it "
                "may be none, int8, int8_weights, float8_weights",
            )
    elif device != "cpu" and not device.startswith("cuda"):
        raise _refused(kind, f"needs a CPU or CUDA, got device {device}")


def _refused(kind: str, reason: str) -> InvalidRequest:
    return InvalidRequest(f"quantize {kind} {reason}", field="quantize", value=kind)


def eight_bit_network(network: TorchNetwork, kind: str) -> TorchNetwork:
    """Return a network whose linear layers are rounded when it is built.

    All else is shared with the one that it is made of, whose weights go where nobody else has
    used them. On CUDA a float32 network computes in bfloat16.

    Args:
        network: In full precision; stays as it is.
        kind: As :attr:`~mezzotint.models.config.PlacementConfig.quantize`, not ``"none"``.
    """
    is_wide = network.device.type == "cuda" and network.dtype == torch.float32

    def build(dtype: torch.dtype) -> nn.Module:
        was_built = network.is_built
        module = copy_layers(network.module, share_weights=not is_wide).to(dtype)
        if not was_built:
            network.let_go()
        return round_linears(module, kind)

    other = network.like(
        build,
        dtype=torch.bfloat16 if is_wide else None,
        num_bytes=network.num_bytes // network.dtype.itemsize,
        digest=network.digest and f"{network.digest} {kind}",
    )
    other.config = network.config
    return other


def round_linears(module: nn.Module, kind: str) -> nn.Module:
    """Round the weights of linear layers, in place.

    Args:
        module: On its device and in its type.
        kind: As of :func:`eight_bit_network`.

    Returns:
        The same module.
    """
    layers = [
        layer
        for layer in module.modules()
        if isinstance(layer, nn.Linear)
        and type(layer) in (nn.Linear, RowLinear)
        and not (layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE)
    ]
    for layer in layers:
        held = _rounded(layer.weight.detach(), kind)
        del layer.weight
        layer.__class__ = EightBitLinear
        cast(EightBitLinear, layer).held = held
    return module


def _rounded(weight: Tensor, kind: str) -> Any:
    """Return torchao's tensor for a weight. Shape (R, C)."""
    quantization, utils = _torchao()
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    options: dict[str, Any] = {"set_inductor_config": False}
    if kind == "int8":
        is_narrow = utils.should_reduce_range(weight.device)  # sums of 16 bits cut off more
        config = quantization.Int8DynamicActivationInt8WeightConfig(
            reduce_range=is_narrow, **options
        )
    elif kind == "float8":
        config = quantization.Float8DynamicActivationFloat8WeightConfig(
            granularity=quantization.PerRow(), **options
        )
    elif kind == "int8_weights":
        config = quantization.Int8WeightOnlyConfig(**options)
    else:
        config = quantization.Float8WeightOnlyConfig(**options)
    quantization.quantize_(plain, config)
    return plain.weight.detach()


def _torchao() -> tuple[Any, Any]:
    """Import torchao without its talk of libraries for devices that are not here."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantization = importlib.import_module("torchao.quantization")
            return quantization, importlib.import_module("torchao.utils")
    finally:
        logging.disable(disabled)
