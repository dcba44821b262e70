import math

import pytest
import torch

import mezzotint as mz
from mezzotint.errors import InvalidRequest, ShapeError, UnknownName
from mezzotint.sampling.latents import make_generator
from mezzotint.sampling.mixtures import GaussianMixture
from mezzotint.sampling.sigma_curves import sigma_curve
from mezzotint.sampling.solvers import SCHEDULERS

SPREAD = 0.5


def gaussian(x, sigma):
    """The exact denoiser of data N(0, 0.5^2)."""
    return x * SPREAD**2 / (SPREAD**2 + sigma.reshape(-1, *([1] * (x.ndim - 1))) ** 2)


def exact_end(x, sigma_max):
    """Where the probability-flow ODE of that data ends."""
    return x * SPREAD / math.sqrt(SPREAD**2 + sigma_max**2)


def error(scheduler, steps, **options):
    x = torch.full((1, 1), 10.0, dtype=torch.float64)
    out = mz.sample(
        gaussian,
        x,
        scheduler=scheduler,
        num_inference_steps=steps,
        sigma_min=0.001,
        sigma_max=10.0,
        sigma_schedule="exponential",
        **options,
    )
    # the last step goes from sigma_min to 0 at once, which is exact to second order in sigma_min
    return float((out.double() - exact_end(x, 10.0)).abs())


@pytest.mark.parametrize(
    ("scheduler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 2)]
)
def test_the_error_falls_with_the_order_of_the_solver(scheduler, order):
    coarse, fine = error(scheduler, 40), error(scheduler, 80)
    measured = math.log2(coarse / fine)
    assert order - 0.3 <= measured <= order + 2.0, f"{scheduler}: order {measured:.2f}"
    assert fine < 0.05 / order


@pytest.mark.parametrize("scheduler", ["ddpm", "dpmpp_sde", "euler_ancestral"])
def test_stochastic_solvers_end_in_the_data_distribution(scheduler):
    count = 4000
    start = make_generator(5)
    x = torch.randn(count, 1, generator=start) * math.sqrt(10.0**2 + SPREAD**2)
    generators = [make_generator(k) for k in range(count)]
    out = mz.sample(
        gaussian,
        x,
        scheduler=scheduler,
        num_inference_steps=120,
        sigma_min=0.01,
        sigma_max=10.0,
        sigma_schedule="exponential",
        generators=generators,
    )
    assert float(out.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(out.std()) == pytest.approx(SPREAD, rel=0.06)


def test_two_modes_come_out_with_their_weights():
    mixture = GaussianMixture(torch.tensor([[-2.0], [1.0]]), (0.2, 0.1), (0.25, 0.75))
    x = torch.randn(4000, 1, generator=make_generator(1)) * 20
    out = mz.sample(mixture, x, scheduler="heun", num_inference_steps=30, sigma_max=20.0)
    left = out[out < -0.5]
    assert len(left) / 4000 == pytest.approx(0.25, abs=0.03)
    assert float(left.mean()) == pytest.approx(-2.0, abs=0.03)
    assert float(left.std()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("shape", [(2,), (2, 3), (2, 5, 7), (2, 3, 4, 5), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("scheduler", SCHEDULERS.names())
def test_any_rank_goes_through_every_solver(scheduler, shape):
    x = torch.randn(shape, generator=make_generator(3))
    generators = [make_generator(k) for k in range(shape[0])]
    kept = x.clone()
    sigmas = [1.0, 0.6, 0.3, 0.1, 0.0]
    out = mz.sample(gaussian, x, scheduler=scheduler, sigmas=sigmas, generators=generators)
    assert out.shape == shape
    assert out.dtype == torch.float32
    assert bool(torch.isfinite(out).all())
    assert torch.equal(x, kept)


@pytest.mark.parametrize("scheduler", SCHEDULERS.names())
def test_an_image_is_bitwise_the_same_alone_and_in_a_batch(scheduler):
    x = torch.randn((5, 3, 4), generator=make_generator(3))
    sigmas = [1.0, 0.6, 0.3, 0.1, 0.0]

    def run(rows):
        generators = [make_generator(100 + k) for k in rows]
        return mz.sample(
            gaussian, x[list(rows)], scheduler=scheduler, sigmas=sigmas, generators=generators
        )

    assert torch.equal(run(range(5))[3:4], run([3]))


def test_the_callback_sees_every_network_call_and_the_state_after_it():
    seen = []
    out = mz.sample(
        gaussian,
        torch.ones(1, 2) * 5,
        scheduler="heun",
        num_inference_steps=4,
        sigma_max=5.0,
        callback=lambda index, latents, denoised: seen.append((index, latents.clone())),
    )
    assert [index for index, _ in seen] == list(range(7))
    assert torch.equal(seen[-1][1], out)


def test_flow_noise_levels_end_where_the_flow_ends():
    mixture = GaussianMixture(torch.zeros(1, 1), (0.5,), (1.0,), frame="flow")
    x = torch.ones(1, 1)
    levels = [1 - k / 400 for k in range(400)] + [0.0]
    out = mz.sample(mixture, x, scheduler="flow_euler", sigmas=levels)
    assert float(out) == pytest.approx(0.5, abs=0.01)
    out = mz.sample(mixture, x, scheduler="flow_heun", sigmas=[*levels[:-1:10], 0.0])
    assert float(out) == pytest.approx(0.5, abs=0.01)


def test_karras_levels_are_those_of_the_paper():
    levels = sigma_curve("karras", 3, 0.002, 80.0)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert levels == pytest.approx([80.0, ((low + high) / 2) ** 7, 0.002, 0.0])


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"scheduler": "eulr"}, UnknownName, "did you mean 'euler'"),
        ({"sigma_schedule": "karas"}, UnknownName, "karras"),
        ({"num_inference_steps": 0}, InvalidRequest, "1 to"),
        ({"sigma_min": -1.0}, InvalidRequest, "sigma_min"),
        ({"sigma_max": float("nan")}, InvalidRequest, "sigma_max"),
        ({"sigmas": [1.0, 2.0, 0.0]}, InvalidRequest, "falling"),
        ({"sigmas": [1.0, 0.5]}, InvalidRequest, "ending in 0"),
        ({"sigmas": [2.0, 0.0], "scheduler": "flow_euler"}, InvalidRequest, "at most at 1"),
        ({"scheduler": "euler_ancestral"}, InvalidRequest, "generators must hold"),
        ({"generators": []}, ShapeError, "one torch.Generator per image"),
    ],
)
def test_wrong_arguments_are_named(options, kind, words):
    with pytest.raises(kind, match=words):
        mz.sample(gaussian, torch.ones(1, 2), **options)


def test_a_denoiser_of_another_shape_is_named():
    with pytest.raises(ShapeError, match=r"\(1, 2\)"):
        mz.sample(lambda x, sigma: x[:, :1], torch.ones(1, 2))
    with pytest.raises(ShapeError, match="floating-point"):
        mz.sample(gaussian, torch.ones(1, 2, dtype=torch.int64))
