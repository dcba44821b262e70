"""Which low precision a processor has, and that narrow weights leave its sums room."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.ranges import find_ranges

from mezzotint.models.backends import processor
from mezzotint.models.backends.exporting import EXPORT_ROWS
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.quantized import Int8Network, quantize
from mezzotint.models.networks import TorchNetwork

INT16 = np.iinfo(np.int16).max


@pytest.mark.parametrize(
    ("flags", "cuts", "expected"),
    [
        ({"amx_bf16": True, "avx512_vnni": True}, False, "bfloat16"),
        ({"avx512_bf16": True}, False, "int8"),
        ({}, True, "int8 with 7-bit weights"),
    ],
)
def test_the_precision_follows_the_processor(monkeypatch, flags, cuts, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    monkeypatch.setattr(processor, "_cuts_sums", lambda: cuts)
    assert processor.low_precision.__wrapped__() == expected


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu.get_capabilities().get("avx2"), reason="an x86 with AVX2")
def test_sums_are_cut_off_without_vnni():
    script = "from mezzotint.models.backends.processor import _cuts_sums; print(_cuts_sums())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "True"


@pytest.fixture
def largest():
    """A convolution whose products are all as large as they can be."""
    layer = torch.nn.Conv2d(64, 64, 1, bias=False).requires_grad_(False)
    layer.weight.fill_(0.5)
    return TorchNetwork(lambda _: layer, lambda m, i: (m(i["sample"]),), digest="e" * 64)


def test_narrow_weights_leave_room_for_two_products_in_16_bits(largest, tmp_path):
    import openvino

    ones = {"sample": torch.ones(EXPORT_ROWS, 64, 8, 8)}
    exact = OpenVINONetwork(largest, role="denoiser", cache=tmp_path)
    ranges = find_ranges(exact, [ones])
    for is_narrow in (True, False):
        core = openvino.Core()
        model = core.read_model(exact._exporter.export(core, ones)[0])
        assert quantize(model, ranges, is_narrow=is_narrow) == 1
        (layer,) = (n for n in model.get_ops() if n.get_type_name() == "Convolution")
        spread = layer.input_value(1).get_node()  # whole numbers times their scale
        numbers = spread.input_value(0).get_node().input_value(0).get_node().data
        level = int(abs(numbers.astype(int)).max())
        assert (level, 2 * 255 * level <= INT16) == ((64, True) if is_narrow else (127, False))
    found = Int8Network(largest, ranges=ranges, is_narrow=True, role="denoiser", cache=tmp_path)
    assert found(**ones)[0].numpy() == pytest.approx(32.0, rel=1e-2)
