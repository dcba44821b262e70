"""Processor: which low precision this one has, and what its 8-bit sums can hold.

With AMX a processor multiplies bfloat16 many times as fast as float32, and pictures stay far
nearer to float32 than in int8; no ranges have to be found either. Elsewhere int8 is what is
fast. Where there are no VNNI instructions, two products of 8-bit numbers are summed in 16 bits,
and a sum beyond them is cut off: 2 x 255 x 127 does not fit, 2 x 255 x 64 does, so weights have
half their levels there. What is cut off is found out by a product, not read off a flag: it is
the kernels of OpenVINO that decide.
"""

import functools

import numpy as np
import torch

from mezzotint.models.backends.quiet import import_openvino

__all__ = ["BFLOAT16", "INT8", "INT8_NARROW", "low_precision"]

BFLOAT16 = "bfloat16"
INT8 = "int8"
INT8_NARROW = "int8 with 7-bit weights"
"""Int8 whose weights have half of their levels, so that no sum of two products is cut off."""

_CHANNELS = 64


@functools.cache
def low_precision() -> str:
    """Return the precision that ``turbo`` computes in on this processor."""
    if torch.cpu.get_capabilities().get("amx_bf16"):
        return BFLOAT16
    return INT8_NARROW if _cuts_sums() else INT8


def _cuts_sums() -> bool:
    """Tell whether OpenVINO cuts off the sum of two products of large 8-bit numbers."""
    openvino = import_openvino()
    opset13 = openvino.opset13
    kernel = np.ones((_CHANNELS, _CHANNELS, 1, 1), np.float32)
    picture = opset13.parameter([1, _CHANNELS, 4, 4], np.float32)
    levels = [np.float32(edge) for edge in (0, 1, 0, 1)]
    rounded = opset13.fake_quantize(picture, *levels, 256)
    edges = [np.float32(edge) for edge in (-1, 1, -1, 1)]
    weights = opset13.fake_quantize(opset13.constant(kernel), *edges, 255)
    answer = opset13.convolution(rounded, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    model = openvino.Model([answer], [picture])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    found = request.infer([np.ones((1, _CHANNELS, 4, 4), np.float32)])[0]
    return bool(np.abs(found - _CHANNELS).max() > 1)
