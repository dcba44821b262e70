"""Stable and turbo stay as close to exact as they say, and never touch an exact neighbour."""

import math
import random

import numpy as np
import pytest
import torch
from tests import tiny
from tests.ranges import find_ranges
from tests.roads.test_exactness import differing, run, storm, submit

from mezzotint.models.backends import step_cache
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.processor import BFLOAT16, INT8, INT8_NARROW, low_precision
from mezzotint.models.backends.quantized import Int8Network
from mezzotint.models.backends.step_cache import DEEP, call_outer, call_whole
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.networks import TorchNetwork
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.service.provision import model_provider


def decibels(first, second):
    noise = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return math.inf if noise == 0 else 10 * math.log10(255**2 / noise)


def ask(tier, seed, model="sd1", **fields):
    return GenerationRequest(
        model=model, prompt="a red apple", seed=seed, reproducibility=tier,
        scheduler=fields.pop("scheduler", "euler"), num_inference_steps=fields.pop("steps", 9), **fields,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_whole_call_is_the_network_and_an_outer_call_with_its_features_too(kind):
    model = from_pipeline(tiny.build(kind), name=kind)
    network = model.networks["denoiser"]
    calls = []

    def record(module, inputs):
        calls.append(inputs)
        return network_call(module, inputs)

    network_call, network.call = network.call, record
    from mezzotint.models.base import Prompt
    from mezzotint.types import Size

    (row,) = model.encode([Prompt(text="a cat", size=Size(64, 64))])
    latents = torch.randn((1, *model.latent_shape(Size(64, 64))))
    model.denoiser(latents, torch.tensor([2.0], dtype=torch.float64), row)
    (expected,) = network_call(network.module, calls[0])
    whole, deep = call_whole(network.module, calls[0])
    (outer,) = call_outer(network.module, {**calls[0], DEEP: deep})
    assert torch.equal(whole, expected)
    assert torch.allclose(outer, expected, atol=1e-6)
    (other,) = call_outer(network.module, {**calls[0], DEEP: torch.zeros_like(deep)})
    assert not torch.allclose(other, expected, atol=1e-3)  # the features do something


@pytest.mark.parametrize("is_narrow", [False, True])
def test_int8_answers_are_near_float32_and_do_not_depend_on_neighbours(tmp_path, is_narrow):
    pytest.importorskip("openvino")
    with tiny.seeded(0):
        module = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, 3, 3)
        ).eval()
    source = TorchNetwork(lambda _: module, lambda m, i: (m(i["sample"]),), digest="d" * 64)
    options = {"role": "denoiser", "cache": tmp_path, "num_threads": 1}
    exact = OpenVINONetwork(source, **options)
    generator = torch.Generator().manual_seed(0)
    calls = [{"sample": torch.randn(2, 3, 8, 8, generator=generator)} for _ in range(4)]
    ranges = find_ranges(exact, calls)
    assert len(ranges) == 2
    rounded = Int8Network(source, ranges=ranges, is_narrow=is_narrow, **options)
    rows = torch.cat([call["sample"] for call in calls])
    near, true = rounded(sample=rows)[0], exact(sample=rows)[0]
    error = float((near - true).square().mean() / true.square().mean())
    assert 1e-9 < error < 1e-2
    for k in range(len(rows)):
        assert torch.equal(rounded(sample=rows[k : k + 1])[0][0], near[k])


OTHERS = [
    pytest.param("openvino", precision, marks=pytest.mark.slow)
    for precision in (BFLOAT16, INT8, INT8_NARROW)
]


@pytest.mark.parametrize(("backend", "precision"), [("torch", ""), ("openvino", None), *OTHERS])
def test_tiers_keep_their_promise_under_load_and_leave_exact_alone(
    tmp_path, monkeypatch, backend, precision
):
    torch.set_num_threads(1)
    precision = low_precision() if precision is None else precision
    monkeypatch.setattr(model_provider, "low_precision", lambda: precision)
    models = [from_pipeline(tiny.build("sd1"), name="sd1")]
    requests = [ask(t, k) for k, t in enumerate(("exact", "stable", "turbo") * 2)]
    with Engine(models, device="cpu", home=tmp_path, backend=backend) as engine:
        exact = {k: run(engine, ask("exact", k)).images[0].pixels for k, _ in enumerate(requests)}
        alone = {k: run(engine, r) for k, r in enumerate(requests)}
        stormy = storm(engine, requests, random.Random(2), cancels=2)
        assert [k for k in differing(alone, stormy) if k % 3 == 0] == []
        for k, request in enumerate(requests):
            least = {"exact": math.inf, "stable": 60, "turbo": 20}[request.reproducibility]
            assert decibels(stormy[k].images[0].pixels, exact[k]) >= least, (k, request)
        shortcuts = stormy[2].images[0].recipe["environment"]["shortcuts"]
        assert "every second evaluation reuses deep features and guidance" in shortcuts
        lowered = [s for s in shortcuts if s.startswith("denoiser and decoder in")]
        assert lowered == ([f"denoiser and decoder in {precision}"] if precision else [])
        assert "shortcuts" not in stormy[0].images[0].recipe["environment"]
        calls = [stormy[k].images[0].timings.model_calls for k in (0, 1, 2)]
        assert calls[0] == calls[1] == 18
        assert calls[2] < 18


@pytest.mark.parametrize("backend", ["torch", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_transformers_rows_decide_by_themselves_what_they_reuse(tmp_path, monkeypatch, backend):
    torch.set_num_threads(1)
    models = [from_pipeline(tiny.build("flux"), name="flux")]
    sides = {"width": 64, "height": 64, "scheduler": "flow_euler"}
    requests = [ask("turbo", seed, "flux", **sides) for seed in range(3)]
    with Engine(models, device="cpu", home=tmp_path, backend=backend) as engine:
        exact = [run(engine, ask("exact", seed, "flux", **sides)) for seed in range(3)]
        for limit, least, most in ((0.0, 30, math.inf), (10.0, 5, 60)):
            monkeypatch.setattr(step_cache, "MOST_CHANGE", limit)
            alone = [run(engine, request) for request in requests]
            jobs = [submit(engine, request) for request in requests]
            together = [job.result(120) for job in jobs]
            for one, other, plain in zip(alone, together, exact, strict=True):
                first, second, third = (r.images[0].pixels for r in (one, other, plain))
                assert decibels(first, second) >= 55  # sums of other call sizes
                assert least <= decibels(first, third) <= most
    shortcuts = alone[0].images[0].recipe["environment"]["shortcuts"]
    assert "every second evaluation reuses blocks that changed little" in shortcuts
