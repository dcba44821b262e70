import math

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp

from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.sampling.latents import (
    blend_inpainting,
    derive,
    draw_noise,
    make_generator,
    slerp,
    slerp_embeddings,
    start_from,
)


def unit(seed, size):
    x = torch.randn(size, generator=make_generator(seed), dtype=torch.float64)
    return x / x.norm()


@pytest.mark.parametrize("size", [2, 3, 100, 4096])
def test_slerp_of_unit_vectors_is_scipys(size):
    a, b = unit(1, size), unit(2, size)
    for t in (0.1, 0.5, 0.9):
        expected = geometric_slerp(a.numpy(), b.numpy(), t)
        found = slerp(a[None], b[None], t)[0]
        assert np.allclose(found.numpy(), expected, atol=1e-12)


def test_norms_are_interpolated_on_their_own():
    a, b = unit(1, 50)[None] * 2, unit(2, 50)[None] * 6
    assert float(slerp(a, b, 0.25).norm()) == pytest.approx(3.0, abs=1e-12)


def test_the_ends_come_back_bit_for_bit_in_every_type():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a, b = torch.randn(2, 77, 8).to(dtype), torch.randn(2, 77, 8).to(dtype)
        assert torch.equal(slerp(a, b, 0.0), a)
        assert torch.equal(slerp(a, b, 1.0), b)
        assert slerp(a, b, 0.5).dtype == dtype


def test_equal_ends_stay_what_they_are_at_every_position():
    a = torch.randn(1, 77, 64, generator=make_generator(1))
    for t in (0.25, 0.5, 0.9):
        assert torch.equal(slerp_embeddings(a, a.clone(), t), a)


def test_half_precision_does_not_overflow():
    a = torch.full((1, 4096), 60.0, dtype=torch.float16)
    b = a.clone()
    b[:, ::2] *= -1
    middle = slerp(a, b, 0.5)
    assert bool(torch.isfinite(middle).all())
    assert float(middle.float().norm()) == pytest.approx(60 * 64, rel=1e-3)


def test_opposite_vectors_turn_through_a_fixed_direction_of_full_length():
    v = unit(4, 16)[None] * 3
    middle = slerp(v, -v, 0.5)
    assert float(middle.norm()) == pytest.approx(3.0, rel=1e-9)
    assert float(middle @ v.T) == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(middle, slerp(v, -v, 0.5))


def test_nearly_parallel_vectors_go_straight_in_the_right_direction():
    a = unit(5, 16)[None]
    b = a + 1e-9 * unit(6, 16)[None]
    assert torch.allclose(slerp(a, b, 0.0001), a, atol=1e-11)
    assert float((slerp(a, b, 0.75) - b).norm()) < float((slerp(a, b, 0.25) - b).norm())


def test_a_zero_vector_gives_no_nan():
    a, b = torch.zeros(1, 8), torch.ones(1, 8)
    assert torch.allclose(slerp(a, b, 0.25), torch.full((1, 8), 0.25))


def test_tokens_turn_one_by_one_and_latents_as_a_whole():
    a, b = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    for token in range(3):
        expected = slerp(a[:, token], b[:, token], 0.3)
        assert torch.allclose(slerp_embeddings(a, b, 0.3)[:, token], expected, atol=1e-6)
    whole = slerp(a, b, 0.3)
    flat = slerp(a.reshape(1, -1), b.reshape(1, -1), 0.3).reshape(a.shape)
    assert torch.allclose(whole, flat)
    assert not torch.allclose(whole, slerp_embeddings(a, b, 0.3))


def test_gaussian_latents_keep_their_length_on_the_way():
    a, b = (torch.randn(1, 4, 16, 16, generator=make_generator(k)) for k in (1, 2))
    assert float(slerp(a, b, 0.5).std()) == pytest.approx(1.0, abs=0.05)
    assert float((0.5 * a + 0.5 * b).std()) < 0.75  # what a straight line would give


def test_wrong_arguments_are_named():
    with pytest.raises(ShapeError, match="equal shapes"):
        slerp(torch.ones(1, 2), torch.ones(1, 3), 0.5)
    with pytest.raises(InvalidRequest, match="0 to 1"):
        slerp(torch.ones(1, 2), torch.ones(1, 2), 1.5)


@pytest.mark.parametrize("shape", [(100,), (25,), (3, 5, 7), (4, 64, 64)])
def test_noise_of_an_image_does_not_depend_on_its_neighbours(shape):
    together = draw_noise(shape, [make_generator(s) for s in (7, 8, 9)])
    alone = draw_noise(shape, [make_generator(8)])
    assert torch.equal(together[1:2], alone)
    assert together.dtype == torch.float32
    expected = torch.randn((1, *shape), generator=torch.Generator().manual_seed(8))
    assert torch.equal(alone, expected)


def test_every_64_bit_seed_is_taken_as_torch_takes_it():
    def first(seed):
        return tuple(draw_noise((3,), [make_generator(seed)])[0].tolist())

    assert len({first(s) for s in (0, 1, 2**31, 2**32 - 1)}) == 4
    assert first(2**64 - 1) == first(2**32 - 1)  # torch's CPU generator uses 32 bits
    expected = torch.randn((1, 3), generator=torch.Generator().manual_seed(2**62 + 5))
    assert first(2**62 + 5) == tuple(expected[0].tolist())
    with pytest.raises(InvalidRequest, match="seed must be"):
        make_generator(2**64)


def test_derived_seeds_differ_by_user_image_and_attempt():
    seeds = {derive(s, k, a) for s in range(20) for k in range(4) for a in range(1, 4)}
    assert len(seeds) == 240
    assert derive(5, 2, 0) == 7
    assert derive(2**64 - 1, 1, 0) == 0
    assert all(0 <= s < 2**63 for s in seeds)


def test_a_start_image_keeps_its_signal_in_either_frame():
    clean, noise = torch.full((1, 2), 3.0), torch.ones(1, 2)
    assert torch.equal(start_from(clean, noise, torch.tensor([2.0])), torch.full((1, 2), 5.0))
    flow = start_from(clean, noise, torch.tensor([0.25]), frame="flow")
    assert torch.equal(flow, torch.full((1, 2), 2.5))


def test_inpainting_keeps_the_unmasked_part_at_the_same_noise_level():
    latents, original = torch.full((1, 1, 1, 2), 9.0), torch.full((1, 1, 1, 2), 3.0)
    noise, mask = torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0]]]])
    out = blend_inpainting(latents, original, noise, mask, torch.tensor([2.0]))
    assert out.flatten().tolist() == [9.0, 5.0]
    done = blend_inpainting(latents, original, noise, mask, torch.tensor([0.0]))
    assert done.flatten().tolist() == [9.0, 3.0]
    assert math.isclose(float(done[..., 1]), 3.0)
