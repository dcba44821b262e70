"""Linear layers of eight bits in torch: close to float32, row by row, refused where they cannot be."""

import copy
import importlib.util

import pytest
import torch
from tests import tiny
from torch import nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.backends import eight_bits
from mezzotint.models.backends.eight_bits import EightBitLinear, check_quantize, round_linears
from mezzotint.models.backends.openvino_backend import use_openvino
from mezzotint.models.backends.turbo import turbo_view
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.config import PlacementConfig
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.networks import RowLinear

has_torchao = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not has_torchao, reason="torchao is not installed")
quiet = pytest.mark.filterwarnings("ignore")  # torchao's import
KINDS = ("int8", "int8_weights", "float8_weights")


def decibels(found, wanted):
    return 10 * float((wanted.square().mean() / (found - wanted).square().mean()).log10())


@pytest.mark.parametrize(
    ("options", "device", "is_there", "told"),
    [
        ({"quantize": "int8_weights"}, "cpu", False, "needs the package torchao"),
        ({"quantize": "float8"}, "cpu", True, "needs a GPU of compute capability 8.9 or later"),
        ({"quantize": "int8"}, "mps", True, "needs a CPU or CUDA, got device mps"),
        ({"quantize": "int8", "offload": "disk"}, "cpu", True, "needs offload none, got disk"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(monkeypatch, options, device, is_there, told):
    find = lambda name: object() if is_there else None  # noqa: E731
    monkeypatch.setattr(eight_bits.importlib.util, "find_spec", find)
    with pytest.raises(InvalidRequest, match=told) as caught:
        check_quantize(PlacementConfig(**options), device)
    assert caught.value.field == "quantize"
    check_quantize(PlacementConfig(), device)


@quiet
@needs_torchao
@pytest.mark.parametrize(
    ("kind", "least"), [("int8", 32), ("int8_weights", 40), ("float8_weights", 25)]
)
def test_a_layer_is_that_of_torch_but_for_what_is_rounded(kind, least):
    with tiny.seeded(0):
        plain, odd = nn.Linear(64, 48), nn.Linear(10, 7)
    held = copy.deepcopy(plain)
    held.__class__ = RowLinear
    round_linears(nn.ModuleList([held, odd]), kind)
    assert isinstance(held, EightBitLinear)
    assert type(odd) is nn.Linear
    tokens = torch.randn((3, 20, 64), generator=torch.Generator().manual_seed(0))
    found, wanted = held(tokens).detach(), plain(tokens).detach()
    assert least < decibels(found, wanted) < 60
    for k in range(3):
        assert torch.equal(held(tokens[k : k + 1])[0], found[k])
    error = (held.weight - plain.weight).abs().amax(dim=1)
    step = plain.weight.abs().amax(dim=1) * (2**-4 if kind.startswith("float8") else 1 / 254)
    assert (error <= step * 1.01).all()
    vectors = tokens[:, 0]  # are not rounded, the weight is
    wanted = nn.functional.linear(vectors, held.weight, plain.bias)
    assert torch.allclose(held(vectors), wanted, atol=1e-5)


@quiet
@needs_torchao
@pytest.mark.parametrize("step_cache", [True, False])
@pytest.mark.parametrize("family", ["sd1", "flux"])
def test_turbo_in_torch_keeps_its_promise_and_lets_float32_go(family, step_cache):
    torch.set_num_threads(1)
    model = load_pipeline(tiny.folder(family))
    before = model.num_bytes
    view = turbo_view(
        model, cache=None, step_cache=step_cache, precision="int8 (torchao)", quantize="int8"
    )
    assert view.notes == model.notes
    assert not model.networks["denoiser"].is_built
    assert model.num_bytes < before
    size = model.spec.default_size
    words = Conditioning.stack(model.encode([Prompt(text="a cat", size=size)] * 2))
    shape = (2, *model.latent_shape(size))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.9, 0.4], dtype=torch.float64)
    found = view.denoiser(latents, sigma, words)
    wanted = model.denoiser(latents, sigma, words)
    assert 30 < decibels(found, wanted) < 70


@quiet
@needs_torchao
def test_a_model_that_is_too_sensitive_stays_in_float32_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("mezzotint.models.backends.turbo.LEAST_DB", {"turbo": 200.0})
    model = load_pipeline(tiny.folder("sd1"))
    options = {"cache": tmp_path, "step_cache": False, "precision": "x", "quantize": "int8"}
    for _ in range(2):  # the second time as it was remembered
        view = turbo_view(model, **options)
        assert view.networks["denoiser"] is model.networks["denoiser"]
        assert "turbo computed in float32: int8 (torchao) came only within" in view.notes[-1]
    assert len(list(tmp_path.glob("*.eight_bits.json"))) == 1


def test_where_openvino_computes_it_has_no_effect_and_says_so():
    pytest.importorskip("openvino")
    model = load_pipeline(tiny.folder("sd1"))
    use_openvino(model, cache=None)
    view = turbo_view(model, cache=None, step_cache=False, precision="bfloat16", quantize="int8")
    assert "quantize int8 has no effect on" in view.notes[-1]
    assert "set models.backend to torch" in view.notes[-1]
