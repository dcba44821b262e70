"""Placement: what a loaded model trades for memory or speed.

Options of a model, not branches in the loop: a network's module is changed once when it
is built, the autoencoder is told how to cut, or networks take turns on the device.
What cannot act on a model or backend is refused, or said with every picture. Which type
a model computes in is decided by :meth:`mezzotint.models.networks.Placement.choose`:

    device   asked for       stored as         computes in
    CPU      nothing         anything          float32
    CPU      float16         anything          float32 (slow there, and it overflows)
    CPU      bfloat16        anything          bfloat16
    other    nothing         float16           float16
    other    nothing         bfloat16, 8 bits  bfloat16
    other    anything        anything          what was asked for

A VAE that asks for float32 (``force_upcast``) gets it wherever the rest is float16.
"""

import contextlib
import hashlib
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.backends.on_disk import OffloadToDisk, disk_of
from mezzotint.models.base import Model
from mezzotint.models.config import PlacementConfig
from mezzotint.models.networks import Offload, TorchNetwork, use_channels_last

__all__ = ["OffloadByLayer", "OffloadByModel", "check_offload", "offload_network", "place"]

_SLICED = ("sd", "sdxl")  # families whose U-Net has attention that can be sliced


class OffloadByModel:
    """One network at a time is on the device; it leaves when another one is called."""

    shares_weights = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._home: list[tuple[Tensor, Tensor]] = []
        self.on_device: nn.Module | None = None

    @contextlib.contextmanager
    def bring(self, network: TorchNetwork) -> Generator[nn.Module]:
        """Give the module on the network's device, and keep all others away meanwhile."""
        module = network.module
        with self._lock:
            if self.on_device is not module:
                self._leave()
                self._home = [(t, t.data) for t in (*module.parameters(), *module.buffers())]
                self.on_device = module
                for tensor, home in self._home:
                    tensor.data = home.to(network.device, copy=True)
            yield module

    def _leave(self) -> None:
        """Free the device: weights do not change, so those at home are still right."""
        for tensor, home in self._home:
            tensor.data = home
        self._home, self.on_device = [], None


class OffloadByLayer:
    """One layer at a time is on the device: least memory, slowest.

    Args:
        networks: All torch networks of the model; some share a module and have to be built
            before its layers are taken apart.
    """

    shares_weights = False

    def __init__(self, networks: Sequence[TorchNetwork]) -> None:
        self._networks = networks
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def bring(self, network: TorchNetwork) -> Generator[nn.Module]:
        """Give the module, its layers hooked: accelerate moves each in and out."""
        with self._lock:
            module = network.module
            if not hasattr(module, "_hf_hook"):
                from accelerate import cpu_offload

                for sibling in self._networks:
                    if sibling.digest == network.digest:
                        _ = sibling.module
                cpu_offload(module, execution_device=network.device)
            yield module


def check_offload(config: PlacementConfig, device: str) -> None:
    """Refuse offloading where there is nothing to offload from, or not to where it is asked.

    Args:
        config: What was asked for.
        device: Where networks compute.

    Raises:
        InvalidRequest: If turns on a device are asked for on a CPU, or the disk elsewhere.
    """
    on_cpu = device == "cpu"
    if config.offload in (("model", "sequential") if on_cpu else ("disk",)):
        allowed = "none, disk" if on_cpu else "none, model, sequential"
        where = "needs a device that is not the CPU" if on_cpu else "needs the CPU"
        raise InvalidRequest(
            f"offload {config.offload} {where}; here it may be {allowed}",
            field="offload",
            value=config.offload,
            allowed=allowed,
        )


def place(model: Model, config: PlacementConfig) -> Model:
    """Apply placement options to a model.

    What cannot act on it is said in its spec's limits and with every picture. With
    ``vae_tiling`` the digest changes, since pictures do.

    Args:
        model: Changed in place; once is enough, twice does no harm.
        config: What to apply; device and dtype were applied when it was loaded.

    Returns:
        The same model.

    Raises:
        InvalidRequest: If offloading cannot be had on the device.
    """
    networks = {r: n for r, n in model.networks.items() if isinstance(n, TorchNetwork)}
    silent: list[str] = []
    if config.dtype == "float16" and any(n.device.type == "cpu" for n in networks.values()):
        silent.append(_no_effect("dtype float16", model, "a CPU computes it in float32"))
    if config.channels_last and config.offload == "disk":
        silent.append(_no_effect("channels_last", model, "weights on disk lie as they lie"))
    elif config.channels_last:
        for network in networks.values():
            network.change("channels_last", use_channels_last)
        if not networks:
            silent.append(_no_effect("channels_last", model, "it runs whole"))
    if config.attention_slicing:
        if "denoiser" in networks and model.spec.family in _SLICED:
            networks["denoiser"].change("attention_slicing", _slice_attention)
        else:
            silent.append(_no_effect("attention_slicing", model, "it has no sliced attention"))
    if config.offload != "none":
        if networks:
            kinds = {n.device.type for n in networks.values()}
            check_offload(config, "cpu" if kinds == {"cpu"} else "")
        if not networks:
            silent.append(_no_effect("offload", model, "it runs whole"))
        elif not _offload_all(list(networks.values()), config):
            reason = "its weights cannot be mapped from their files"
            silent.append(_no_effect("offload disk", model, reason))
    silent += _cut(model, config)
    fresh = tuple(note for note in silent if note not in model.notes)
    if fresh:
        model.notes += fresh
        model.spec = replace(model.spec, limits=(*model.spec.limits, *fresh))
    return model


def _no_effect(option: str, model: Model, reason: str) -> str:
    return f"{option} has no effect on {model.spec.name}: {reason}"


def _slice_attention(module: Any) -> None:
    """Let attention compute some heads at a time."""
    module.set_attention_slice("auto")


def offload_network(network: TorchNetwork, config: PlacementConfig) -> None:
    """Offload a network that stands beside a model, as a ControlNet's, as the model's are."""
    if config.offload in ("model", "sequential") and network.offload is None:
        _offload_all([network], config)


def _offload_all(networks: Sequence[TorchNetwork], config: PlacementConfig) -> bool:
    """Offload the networks of a model; tell whether any could be.

    On disk are those that can be read mapped and that no other shares a module with.
    """
    if config.offload == "disk":
        disk = OffloadToDisk()
        able = [n for n in networks if n.mapped is not None and disk_of(n) is None]
        for network in able:
            disk.take(network)
        return bool(able) or any(disk_of(n) is not None for n in networks)
    how: Offload = OffloadByModel() if config.offload == "model" else OffloadByLayer(networks)
    for network in networks:
        network.offload = how
    return True


def _cut(model: Model, config: PlacementConfig) -> list[str]:
    """Let the autoencoder cut; return what cannot act."""
    options = {"vae_slicing": config.vae_slicing, "vae_tiling": config.vae_tiling}
    wanted = [name for name, is_on in options.items() if is_on]
    if not wanted:
        return []
    tile_px = model.cut_autoencoder(slicing=config.vae_slicing, tiling=config.vae_tiling)
    if tile_px is None:
        return [_no_effect(name, model, "it has no autoencoder to cut") for name in wanted]
    if config.vae_tiling and not model.spec.tile_px:
        digest = hashlib.sha256(f"{model.spec.digest} vae_tiling".encode()).hexdigest()
        limit = f"pictures above {tile_px} px are decoded in tiles, which changes them a little"
        limits = (*model.spec.limits, limit)
        model.spec = replace(model.spec, digest=digest, tile_px=tile_px, limits=limits)
    return []
