"""Quantizers: packages that read weights which another program quantized.

A configuration names its method (``quantization_config.quant_method``), and diffusers and
transformers import the method's package in the middle of reading weights. Whether it is there
is asked before.

Source: the quantizers of diffusers 0.42 and transformers 5.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from mezzotint.errors import WeightsError

__all__ = ["PACKAGES", "refuse_missing_quantizer"]

PACKAGES: dict[str, tuple[str, str]] = {
    "auto-round": ("auto_round", "auto-round"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "gguf": ("gguf", "gguf"),
    "hqq": ("hqq", "hqq"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "sdnq": ("sdnq", "sdnq"),
    "torchao": ("torchao", "torchao"),
}
"""Module and name in the package registry of each method that needs a package of its own."""


def refuse_missing_quantizer(config: Mapping[str, Any], *, where: object) -> None:
    """Refuse weights that only a package which is not installed could read.

    Args:
        config: A network's configuration.
        where: Its file, for the message.

    Raises:
        WeightsError: If the package is missing; names it.
    """
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, Mapping) else None
    if not isinstance(method, str) or method not in PACKAGES:
        return
    module, package = PACKAGES[method]
    if not _is_there(module):
        raise WeightsError(
            f"{where} says that its weights are quantized by {method}, which needs the package "
            f"{package}, and it is not installed: pip install {package}, or take weights that "
            "are not quantized"
        )


def _is_there(module: str) -> bool:
    """Tell whether a module can be imported; its parent is, and no more."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
