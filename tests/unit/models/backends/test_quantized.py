"""Int8: the ranges that rounding reckons with are those of what flows, as torch has it."""

import pytest
import torch
from tests import tiny
from tests.ranges import find_ranges
from torch import nn

from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.networks import TorchNetwork

pytest.importorskip("openvino")


@pytest.mark.parametrize("in_file", [True, False])
def test_ranges_are_the_lowest_and_the_highest_of_all_calls(tmp_path, in_file):
    with tiny.seeded(0):
        convolution, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
    module = nn.Sequential(convolution, nn.SiLU(), nn.Flatten(2), linear).requires_grad_(False)
    linear.forward = lambda x: nn.functional.linear(x.transpose(1, 2), linear.weight, linear.bias)
    source = TorchNetwork(lambda _: module, lambda m, i: (m(i["x"]),), digest="d" * in_file)
    network = OpenVINONetwork(source, role="denoiser", cache=tmp_path if in_file else None)
    generator = torch.Generator().manual_seed(0)
    calls = [{"x": k * torch.randn((2, 3, 8, 8), generator=generator)} for k in (1.0, 3.0, 0.5)]
    found = sorted(find_ranges(network, calls).values())
    seen = [torch.cat([call["x"].flatten() for call in calls])]
    seen.append(torch.cat([nn.functional.silu(convolution(c["x"])).flatten() for c in calls]))
    wanted = sorted((float(values.min()), float(values.max())) for values in seen)
    assert found[0] == wanted[0]  # the input itself, bit for bit
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)
