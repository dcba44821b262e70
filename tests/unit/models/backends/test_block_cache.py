"""The block cache of a transformer: what it answers, and which rows it computes whole."""

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from tests import tiny

from mezzotint.models.backends.block_cache import short_call, whole_call
from mezzotint.models.backends.step_cache import DEEP, MOST_CHANGE, StepCacheNetwork
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.formats.components import from_pipeline
from mezzotint.types import Size

FAMILIES = ("dit", "flux", "sd3", "flux2_klein", "pixart_sigma", "qwen_image", "sana")
LEVELS = (0.7, 0.65)


def calls_of(name):
    """The denoiser of a tiny model, and what it is called with at two noise levels: two rows."""
    model = from_pipeline(tiny.build(name), name=name)
    network = model.networks["denoiser"]
    own, seen = network.call, []

    def record(module, inputs):
        seen.append(dict(inputs))
        return own(module, inputs)

    network.call = record
    size = model.spec.default_size if model.spec.fixed_size else Size(64, 64)
    prompts = [
        Prompt(text=text, size=size, class_label=label if model.spec.num_classes else None)
        for label, text in enumerate(("a cat", "two dogs"))
    ]
    both = Conditioning.stack(model.encode(model.align(prompts)))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn((2, *model.latent_shape(size)), generator=generator)
    for level in LEVELS:
        sigma = torch.full((2,), level, dtype=torch.float64)
        model.denoiser(latents, sigma, both, timestep=torch.full((2,), 1000 * level))
    return network.module, own, seen


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_call_is_the_network_and_a_short_one_with_what_it_found_too(name):
    module, own, (first, _) = calls_of(name)
    (expected,) = own(module, first)
    whole, deep = whole_call(own)(module, first)
    short, change = short_call(own)(module, {**first, DEEP: deep})
    assert torch.equal(whole, expected)
    assert torch.allclose(short, expected, atol=1e-5)
    assert change.shape == (2, 1)
    assert float(change.max()) < 1e-5
    own_part, rest = deep.chunk(2, dim=1)
    other, _ = short_call(own)(module, {**first, DEEP: torch.cat([own_part, 0 * rest], dim=1)})
    assert not torch.allclose(other, expected, atol=1e-3)  # what the others added does something


@torch.no_grad()
@pytest.mark.parametrize("name", ["flux", "qwen_image"])
def test_a_short_call_answers_what_diffusers_first_block_cache_does(name):
    module, own, (first, second) = calls_of(name)
    _, deep = whole_call(own)(module, first)
    found, _ = short_call(own)(module, {**second, DEEP: deep})
    apply_first_block_cache(module, FirstBlockCacheConfig(threshold=1e9))
    with module.cache_context("rows"):
        own(module, first)
        (expected,) = own(module, second)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_the_change_of_a_row_is_the_one_that_diffusers_compares(monkeypatch):
    from diffusers.hooks import first_block_cache

    module, own, (first, second) = calls_of("flux")
    rows = [{n: t[:1] for n, t in call.items()} for call in (first, second)]
    _, deep = whole_call(own)(module, rows[0])
    _, change = short_call(own)(module, {**rows[1], DEEP: deep})
    expected = float(change)
    for share, is_whole in ((0.99, True), (1.01, False)):
        module, own, (first, second) = calls_of("flux")
        rows = [{n: t[:1] for n, t in call.items()} for call in (first, second)]
        apply_first_block_cache(module, FirstBlockCacheConfig(threshold=expected * share))
        asked = []
        hook = first_block_cache.FBCHeadBlockHook
        decide = hook._should_compute_remaining_blocks
        with monkeypatch.context() as patch, module.cache_context("rows"):
            patch.setattr(
                hook,
                "_should_compute_remaining_blocks",
                lambda *given, decide=decide, asked=asked: (
                    asked.append(decide(*given)) or asked[-1]
                ),
            )
            for call in rows:
                own(module, call)
        assert asked == [True, is_whole]


class Fixed:
    """A network that answers the numbers of its rows, and remembers how many it was asked for."""

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def __call__(self, **inputs):
        self.asked.append(len(inputs["sample"]))
        return tuple(answer(inputs) for answer in self.answers)


def test_a_row_that_changed_much_is_computed_whole_and_its_neighbours_are_not():
    whole = Fixed(lambda i: 10 * i["sample"], lambda i: 100 * i["sample"])
    outer = Fixed(lambda i: -i["sample"], lambda i: i["change"])
    network = StepCacheNetwork(whole, outer)
    sample = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    change = torch.tensor([[0.0], [MOST_CHANGE * 1.01], [MOST_CHANGE], [float("nan")]])
    (found,) = network(sample=sample, change=change, **{DEEP: 0 * sample})
    assert found.flatten().tolist() == [-1, 20, -3, 40]
    assert network.take_deep().flatten().tolist() == [0, 200, 0, 400]
    assert (outer.asked, whole.asked) == ([4], [2])


def test_where_no_row_changed_much_the_features_stay():
    outer = Fixed(lambda i: -i["sample"], lambda i: 0 * i["sample"])
    network = StepCacheNetwork(Fixed(), outer)
    (found,) = network(sample=torch.ones(2, 1), **{DEEP: torch.ones(2, 1)})
    assert found.flatten().tolist() == [-1, -1]
    assert network.take_deep() is None
