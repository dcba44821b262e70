"""Bytes of weights: what a network says it holds is what its weights come to.

Tests ``num_bytes`` of mezzotint.models.backends.openvino_backend, of
mezzotint.models.backends.quantized and of mezzotint.models.base.
"""

import numpy as np
import pytest
import torch
from tests import tiny
from tests.ranges import find_ranges
from torch import nn

from mezzotint.models.backends.openvino_backend import OpenVINONetwork, use_openvino
from mezzotint.models.backends.processor import INT8
from mezzotint.models.backends.quantized import Int8Network
from mezzotint.models.backends.step_cache import DEEP
from mezzotint.models.backends.turbo import turbo_view
from mezzotint.models.base import Prompt
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.networks import TorchNetwork

openvino = pytest.importorskip("openvino")

WIDTH, INNER, KERNEL = 96, 160, 9  # numbers of a kernel of a convolution
WEIGHTS = 2 * WIDTH * INNER + WIDTH * WIDTH * KERNEL
BIASES = INNER + 2 * WIDTH


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.second = nn.Linear(WIDTH, INNER)
        self.third = nn.Linear(INNER, WIDTH)

    def forward(self, x):
        x = torch.relu(self.first(x)).flatten(2).transpose(1, 2)
        return self.third(torch.relu(self.second(x)))


def network(digest=""):
    with tiny.seeded(0):
        module = Layers().requires_grad_(False)
    num_bytes = sum(p.nbytes for p in module.parameters())
    assert num_bytes == 4 * (WEIGHTS + BIASES)
    call = lambda m, i: (m(i["x"]),)  # noqa: E731
    return TorchNetwork(lambda _: module, call, num_bytes=num_bytes, digest=digest)


X = torch.randn((2, WIDTH, 4, 4), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("in_file", [True, False])
def test_a_number_of_int8_is_one_byte(tmp_path, in_file):
    cache, digest = (tmp_path, "d") if in_file else (None, "")
    exact = OpenVINONetwork(network(digest), role="denoiser", cache=cache)
    (wanted,) = exact(x=X)
    exact.source.let_go()
    assert exact.num_bytes == pytest.approx(4 * (WEIGHTS + BIASES), rel=0.02)
    rounded = Int8Network(
        exact.source, ranges=find_ranges(exact, [{"x": X}]), role="denoiser", cache=cache
    )
    exact.source.let_go()
    assert rounded.num_bytes < 2 * (WEIGHTS + BIASES)  # what it will hold, before it does
    (found,) = rounded(x=X)
    rounded.source.let_go()
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert rounded.num_bytes == pytest.approx(WEIGHTS + 4 * BIASES, rel=0.06)


def test_layers_that_are_left_out_of_int8_are_counted_as_float32(tmp_path):
    exact = OpenVINONetwork(network("d"), role="denoiser", cache=tmp_path)
    ranges = find_ranges(exact, [{"x": X}])
    del ranges[next(iter(ranges))]  # of the convolution, which comes first
    rounded = Int8Network(exact.source, ranges=ranges, role="denoiser", cache=tmp_path)
    rounded(x=X)
    kernel = WIDTH * WIDTH * KERNEL
    wanted = 4 * (kernel + BIASES) + WEIGHTS - kernel
    assert rounded.num_bytes == pytest.approx(wanted, rel=0.06)


@pytest.mark.parametrize("step_cache", [True, False])
def test_a_model_counts_what_draws_and_nothing_else(tmp_path, step_cache):
    model = load_pipeline(tiny.folder("sd1"))
    use_openvino(model, cache=tmp_path)
    before = model.num_bytes
    parts = {role: network.num_bytes for role, network in model.networks.items()}
    view = turbo_view(model, cache=tmp_path, step_cache=step_cache, precision=INT8)
    size = model.spec.default_size
    (row,) = model.encode([Prompt(text="a cat", size=size)])
    latents = torch.zeros((1, *model.latent_shape(size)))
    sigma = torch.ones(1, dtype=torch.float64)

    def draw(model):
        model.denoiser(latents, sigma, row)
        if step_cache and model is view:
            deep = model.networks["denoiser"].take_deep()
            model.denoiser(latents, sigma, row.replace(**{DEEP: deep}))
        model.decode(latents, row)

    draw(view)
    assert model.num_bytes == view.num_bytes
    network, decoder = (view.networks[role] for role in ("denoiser", "decoder"))
    whole = getattr(network, "whole", network).num_bytes
    assert parts["denoiser"] / 4 < whole < parts["denoiser"] * 0.7
    draw(model)
    assert model.num_bytes == pytest.approx(
        before + network.num_bytes + decoder.num_bytes, rel=0.05
    )


def test_what_torch_shares_with_its_step_cache_is_counted_once():
    model = load_pipeline(tiny.folder("sd1"))
    before = model.num_bytes
    turbo_view(model, cache=None, step_cache=True)
    assert model.num_bytes == before


def test_a_large_network_that_rests_gives_memory_back_and_answers_the_same_bits(monkeypatch):
    exact = OpenVINONetwork(network(), role="denoiser", streams=2)
    released = []
    release = openvino.CompiledModel.release_memory
    monkeypatch.setattr(
        openvino.CompiledModel, "release_memory", lambda m: released.append(m) or release(m)
    )
    (wanted,) = exact(x=X)
    exact.rest()
    assert not released  # a small one has nothing that is worth it
    monkeypatch.setattr("mezzotint.models.backends.openvino_backend._RESTS_BYTES", 0)
    exact.rest()
    assert len(released) == 1
    for x in (X, X[:1], X):
        assert torch.equal(exact(x=x)[0], wanted[: len(x)])
