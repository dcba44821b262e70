"""Placement: what a loaded model trades for memory or speed.

Options of a model, not branches in the loop: a network's module is changed once
when it is built, or the network is wrapped. Which type a model computes in is
decided by :meth:`mezzotint.models.networks.Placement.choose`:

    device   asked for       stored as       computes in
    CPU      nothing         anything        float32
    CPU      float16         anything        float32 (slow there, and it overflows)
    CPU      bfloat16        anything        bfloat16
    other    nothing         float16         float16
    other    anything        anything        what was asked for

A VAE that asks for float32 (``force_upcast``) gets it wherever the rest is float16.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Model
from mezzotint.models.config import PlacementConfig
from mezzotint.models.networks import TorchNetwork

__all__ = ["OffloadedNetwork", "offload", "place"]

_VAE_ROLES = ("decoder", "encoder")


class OffloadedNetwork:
    """A network that is on its device only while it is called.

    Args:
        source: The network, built on the CPU.
        device: Where it computes.
        by_layer: Whether layers come and go one by one (slower, least memory).
        siblings: All torch networks of the model; some share a module with this one
            and have to be built before its layers leave.
    """

    def __init__(
        self,
        source: TorchNetwork,
        device: torch.device,
        *,
        by_layer: bool,
        siblings: Sequence[TorchNetwork] = (),
    ) -> None:
        self.source = source
        self.device = device
        self.num_bytes = source.num_bytes
        self._by_layer = by_layer
        self._siblings = siblings
        self._lock = threading.Lock()
        source.device = torch.device("cpu")

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Bring the network to its device, run it, and take it away again."""
        home = next(iter(inputs.values())).device
        with self._lock, torch.no_grad():
            module = self.source.module
            cast = {name: self._cast(tensor) for name, tensor in inputs.items()}
            if self._by_layer:
                self._hook(module)
                outputs = self.source.call(module, cast)
            else:
                module.to(self.device)
                try:
                    outputs = self.source.call(module, cast)
                finally:
                    module.to("cpu")
        return tuple(output.to(device=home, dtype=torch.float32) for output in outputs)

    def _cast(self, tensor: Tensor) -> Tensor:
        dtype = self.source.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype)

    def _hook(self, module: nn.Module) -> None:
        """Let accelerate move each layer in and out, from now on."""
        if not hasattr(module, "_hf_hook"):  # decoder and encoder may share one module
            from accelerate import cpu_offload

            for sibling in self._siblings:
                if sibling.digest == self.source.digest:
                    _ = sibling.module
            cpu_offload(module, execution_device=self.device)


def place(model: Model, config: PlacementConfig) -> Model:
    """Apply placement options to a model whose networks are not built yet.

    What a model has no part for is said in its spec's limits. With ``vae_tiling`` the
    digest changes, since pictures do.

    Args:
        model: Changed in place.
        config: What to apply; device and dtype were applied when it was loaded.

    Returns:
        The same model.

    Raises:
        InvalidRequest: If offloading is asked for on a CPU.
    """
    networks = {r: n for r, n in model.networks.items() if isinstance(n, TorchNetwork)}
    if config.channels_last:
        for network in networks.values():
            _on_build(network, _use_channels_last)
    notes = [
        *_place_attention(model, networks, config),
        *_place_vae(model, networks, config),
    ]
    if config.offload != "none":
        devices = {n.device for n in networks.values() if n.device.type != "cpu"}
        if not devices:
            raise InvalidRequest(
                "offload needs a device that is not the CPU; use offload none, or device cuda",
                field="offload",
                allowed="none",
            )
        offload(model, devices.pop(), by_layer=config.offload == "sequential")
    if notes:
        model.spec = replace(model.spec, limits=(*model.spec.limits, *notes))
    return model


def _on_build(network: TorchNetwork, change: Callable[[nn.Module], Any]) -> None:
    """Change a network's module when it is built."""
    build = network._build

    def build_changed(dtype: torch.dtype) -> nn.Module:
        module = build(dtype)
        change(module)
        return module

    network._build = build_changed


def _use_channels_last(module: nn.Module) -> None:
    """Lay out 4-D weights channels last; others stay."""
    module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _place_attention(
    model: Model, networks: dict[str, TorchNetwork], config: PlacementConfig
) -> list[str]:
    if not config.attention_slicing:
        return []
    denoiser = networks.get("denoiser")
    if denoiser is None or model.spec.family not in ("sd", "sdxl"):
        return [f"attention_slicing has no effect: {model.spec.family} has no sliced attention"]
    _on_build(denoiser, lambda module: getattr(module, "set_attention_slice")("auto"))  # noqa: B009
    return []


def _place_vae(
    model: Model, networks: dict[str, TorchNetwork], config: PlacementConfig
) -> list[str]:
    wanted = {"enable_slicing": config.vae_slicing, "enable_tiling": config.vae_tiling}
    methods = [name for name, is_on in wanted.items() if is_on]
    if not methods:
        return []
    latent = model.spec.latent_scale > 1 and model.spec.family != "gan"
    if not latent or "decoder" not in networks:
        return ["vae_slicing and vae_tiling have no effect: there is no VAE"]

    def change(module: nn.Module) -> None:
        for name in methods:
            if hasattr(module, name):
                getattr(module, name)()

    for role in _VAE_ROLES:
        if role in networks:
            _on_build(networks[role], change)
    if not config.vae_tiling:
        return []
    digest = hashlib.sha256(f"{model.spec.digest} vae_tiling".encode()).hexdigest()
    model.spec = replace(model.spec, digest=digest)
    return ["large pictures are decoded in tiles (vae_tiling), which changes them a little"]


def offload(model: Model, device: torch.device, *, by_layer: bool) -> Model:
    """Wrap every torch network of a model, so that it is on ``device`` only when called.

    Args:
        model: Changed in place.
        device: Where to compute.
        by_layer: Whether layers come and go one by one.

    Returns:
        The same model.
    """
    sources = {r: n for r, n in model.networks.items() if isinstance(n, TorchNetwork)}
    siblings = tuple(sources.values())
    for role, network in sources.items():
        wrapped = OffloadedNetwork(network, device, by_layer=by_layer, siblings=siblings)
        model.use_network(role, wrapped)
    return model
