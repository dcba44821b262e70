import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.sampling.compose import box_mask, mix, region_weights, soften, to_latent
from mezzotint.sampling.ensemble import check_members, combine, member_weights
from mezzotint.sampling.mixtures import GaussianMixture


def test_a_box_covers_shares_of_pixels_and_cells():
    mask = box_mask((0.0, 0.0, 0.5, 1.0), 4, 5)  # 2.5 of 5 columns
    assert mask[0].tolist() == [1.0, 1.0, 0.5, 0.0, 0.0]
    latent = to_latent(box_mask((0, 0, 0.25, 1), 64, 64), 8, 8)
    assert latent[0, 0].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    odd = to_latent(box_mask((0, 0, 12 / 64, 1), 64, 64), 8, 8)
    assert odd[0, 0, :3].tolist() == [1.0, 0.5, 0.0]


def test_a_soft_edge_keeps_its_place_and_its_range():
    mask = box_mask((0, 0, 0.5, 1), 64, 64)
    soft = soften(mask, 0.25)
    assert float(soft[:, 31:33].mean()) == pytest.approx(0.5, abs=0.01)
    assert float(soft[:, 0].min()) == 1.0
    assert float(soft[:, -1].max()) == 0.0
    assert bool((soft[0].diff() <= 1e-6).all())
    assert torch.equal(soften(mask, 0.0), mask)


@given(
    count=st.integers(1, 4),
    seed=st.integers(0, 1000),
    weights=st.lists(st.floats(1e-6, 1000), min_size=4, max_size=4),
)
def test_weights_sum_to_one_everywhere_whatever_overlaps(count, seed, weights):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 1, 6, 7, generator=generator)
    masks[:, :, :2] = 0  # a hole
    masks[:, :, 2:4] = 1  # full overlap
    result = region_weights(masks, weights[:count])
    assert torch.allclose(result.sum(0), torch.ones(1, 6, 7), atol=1e-6)
    assert float(result.min()) >= 0
    assert torch.equal(result[0, :, :2], torch.ones(1, 2, 7))  # the base fills holes
    assert float(result[0, :, 2:4].abs().max()) < 1e-6
    shares = result[1:, 0, 2, 0]
    expected = torch.tensor(weights[:count], dtype=torch.float64)
    assert torch.allclose(shares.double(), expected / expected.sum(), atol=1e-5)


def test_mixing_is_the_exact_posterior_of_pixels_with_different_data():
    left = GaussianMixture(torch.full((1, 1, 1, 2), -1.0), (0.3,), (1.0,))
    right = GaussianMixture(torch.full((1, 1, 1, 2), 2.0), (0.3,), (1.0,))
    truth = GaussianMixture(torch.tensor([[[[-1.0, 2.0]]]]), (0.3,), (1.0,))
    x, sigma = torch.randn(1, 1, 1, 2), torch.tensor([0.8])
    weights = region_weights(torch.tensor([[[[0.0, 1.0]]]]), [1.0])
    found = mix(torch.cat([left(x, sigma), right(x, sigma)]), weights)
    assert torch.allclose(found, truth(x, sigma), atol=1e-6)


def test_regions_that_cannot_be_mixed_are_refused():
    with pytest.raises(InvalidRequest, match="> 0"):
        region_weights(torch.ones(1, 1, 2, 2), [0.0])
    with pytest.raises(InvalidRequest, match="at least one"):
        region_weights(torch.ones(0, 1, 2, 2), [])
    with pytest.raises(ShapeError, match="one weight each"):
        region_weights(torch.ones(2, 1, 2, 2), [1.0])


def test_ensemble_weights_are_normalised_step_by_step():
    assert member_weights([[0.7], [0.7]], 2) == ((0.5, 0.5), (0.5, 0.5))
    assert member_weights([[1.0, 0.0], [1.0]], 2) == ((0.5, 0.5), (0.0, 1.0))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([[1.0, 2.0], [1.0]], r"ensemble\[0\].weights must have one weight per step"),
        ([[-1.0], [2.0]], ">= 0"),
        ([[0.0], [0.0]], "must not all be 0"),
        ([[float("nan")], [1.0]], "finite"),
    ],
)
def test_ensemble_weights_that_mean_nothing_are_refused(weights, words):
    with pytest.raises(InvalidRequest, match=words):
        member_weights(weights, 3)


def test_an_ensemble_of_posteriors_is_their_mean_and_a_silent_member_is_not_heard():
    a, b = torch.full((1, 2), 1.0), torch.full((1, 2), 3.0)
    assert combine([a, b], [0.25, 0.75]).tolist() == [[2.5, 2.5]]
    broken = torch.full((1, 2), float("nan"))
    assert combine([a, broken], [1.0, 0.0]).tolist() == [[1.0, 1.0]]
    with pytest.raises(ShapeError):
        combine([a, torch.ones(1, 3)], [0.5, 0.5])


def test_members_of_different_spaces_are_named():
    check_members([("a", (4, 8, 8), "ve"), ("b", (4, 8, 8), "ve")])
    with pytest.raises(InvalidRequest, match=r"a has latents of shape .* b has"):
        check_members([("a", (4, 8, 8), "ve"), ("b", (16, 8, 8), "ve")])
    with pytest.raises(InvalidRequest, match="frame ve"):
        check_members([("a", (4, 8, 8), "ve"), ("b", (4, 8, 8), "flow")])
