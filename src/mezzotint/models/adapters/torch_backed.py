"""Torch backed: networks whose layers can be reached, for adapters that act inside them."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.base import Network

__all__ = ["TorchBacked", "torch_backed"]


@runtime_checkable
class TorchBacked(Protocol):
    """A network that runs a torch module, itself or behind another adapter."""

    @property
    def module(self) -> nn.Module:
        """The module."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """The module's configuration."""
        ...

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network once over all rows."""
        ...


def torch_backed(network: Network, field: str) -> TorchBacked:
    """Return the torch network behind a backend's.

    Args:
        network: Any network.
        field: Request field that needs it, for the error.

    Raises:
        InvalidRequest: If torch does not run it.
    """
    found: Network = network.source if isinstance(network, OpenVINONetwork) else network
    # the class is asked: a property of an instance would build the module
    if all(hasattr(type(found), name) for name in ("module",)) and hasattr(found, "config"):
        return found  # pyright: ignore[reportReturnType]
    raise InvalidRequest(
        f"{field} need a network that torch runs, got {type(network).__name__}", field=field
    )
