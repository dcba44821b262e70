"""Tiling: a view of a model whose pictures join at their edges.

Every convolution of denoiser, encoder and decoder takes what lies outside the picture
from its other side. The view shares every weight with the model and has layers of its
own, so what runs on the model itself cannot notice it.
"""

import copy
import weakref
from dataclasses import replace

from torch import nn

from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.base import Model, Network
from mezzotint.models.networks import TorchNetwork, copy_layers
from mezzotint.models.parts import combine_digests

__all__ = ["tiled"]

_ROLES = ("denoiser", "encoder", "decoder")
_views: "weakref.WeakKeyDictionary[Model, Model]" = weakref.WeakKeyDictionary()


def tiled(model: Model) -> Model:
    """Return the view of a model with circular padding; one per model, made once.

    Args:
        model: Its denoiser, encoder and decoder are convolutional and can run in torch.
    """
    if model not in _views:
        view = copy.deepcopy(model)  # networks share themselves, see TorchNetwork.__deepcopy__
        for role in _ROLES:
            network = model.networks.get(role)
            if network is not None:
                view.networks[role] = _tiled_network(network)
        view.cut_autoencoder(circular=True)
        digest = combine_digests({"model": model.spec.digest, "tiling": "circular"})
        view.spec = replace(model.spec, digest=digest)
        _views[model] = view
    return _views[model]


def _tiled_network(network: Network) -> Network:
    """Return a network with layers of its own over the same weights."""
    source = network.source if isinstance(network, OpenVINONetwork) else network
    if not isinstance(source, TorchNetwork):
        return network
    return source.like(lambda _dtype: _circular(source.module), digest=source.digest)


def _circular(module: nn.Module) -> nn.Module:
    """Copy a module's layers, not its weights, and let convolutions pad in a circle."""
    view = copy_layers(module, share_weights=True)
    for layer in view.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"
    return view
