"""Networks in torch: the oracle and the fallback behind every other backend.

A network is built on its first call, so a model whose networks another backend
answers for never imports diffusers or transformers. Once built it is in ``eval``
mode, needs no gradients and is not changed by a call.

Rows: a linear layer over (rows, features), as in time and pooled embeddings, is
the one place where torch's answer for a row depends on how many rows share the
call (ENGINE.md, Exactness). :class:`RowLinear` takes such rows one by one.

Dimensions: R rows, F features.
"""

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Call", "RowLinear", "TorchNetwork", "use_row_linears"]

Call = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, ...]]
"""How a module is called with named tensors and what of its answer is the output."""

KEPT_FLOAT32 = frozenset({"timestep"})
"""Inputs that lose their meaning in half precision (999.5 has no float16)."""


class RowLinear(nn.Linear):
    """A linear layer whose answer for a row does not depend on its neighbours.

    Attributes:
        every_row: True takes token inputs (R, ..., F) row by row as well; set by
            the engine where a layer failed the certificate.
    """

    every_row: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer; (R, F) inputs are taken row by row."""
        if input.shape[0] > 1 and (input.ndim == 2 or self.every_row):
            rows = [F.linear(row, self.weight, self.bias) for row in input.split(1)]
            return torch.cat(rows)
        return F.linear(input, self.weight, self.bias)


def use_row_linears(module: nn.Module) -> nn.Module:
    """Turn every plain linear layer into a :class:`RowLinear`, weights untouched.

    Call it again after adapters brought layers of their own.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = RowLinear
    return module


class TorchNetwork:
    """A torch module behind the :class:`~mezzotint.models.base.Network` seam.

    Args:
        build: Makes the module with its weights; called once, when first needed.
        call: Calls the module with named tensors.
        dtype: Type the module computes in.
        device: Where it computes.
        num_bytes: Bytes of its weights.
        digest: sha256 of its weights and configuration, for compiled copies.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        call: Call,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        num_bytes: int = 0,
        digest: str = "",
    ) -> None:
        self._build = build
        self._module: nn.Module | None = None
        self._lock = threading.Lock()
        self.call = call
        self.dtype = dtype
        self.device = torch.device(device)
        self.num_bytes = num_bytes
        self.digest = digest

    @property
    def module(self) -> nn.Module:
        """The module, built and moved to its device on first use."""
        with self._lock:
            if self._module is None:
                module = self._build().to(device=self.device, dtype=self.dtype)
                self._module = use_row_linears(module.eval().requires_grad_(False))
            return self._module

    @property
    def is_built(self) -> bool:
        """Whether the weights are in memory."""
        return self._module is not None

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the module once over all rows; float32 on the first input's device."""
        device = next(iter(inputs.values())).device
        cast = {name: self._cast(name, tensor) for name, tensor in inputs.items()}
        with torch.no_grad():
            outputs = self.call(self.module, cast)
        return tuple(output.to(device=device, dtype=torch.float32) for output in outputs)

    def _cast(self, name: str, tensor: Tensor) -> Tensor:
        """Move an input to the module's device and type; whole numbers stay whole."""
        if name in KEPT_FLOAT32 or not tensor.is_floating_point():
            return tensor.to(self.device)
        return tensor.to(device=self.device, dtype=self.dtype)
