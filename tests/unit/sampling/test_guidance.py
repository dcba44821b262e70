import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from mezzotint.errors import ShapeError
from mezzotint.sampling.denoiser import denoised_from_prediction
from mezzotint.sampling.guidance import guide, rescaled
from mezzotint.sampling.latents import make_generator
from mezzotint.sampling.mixtures import GaussianMixture


def test_scale_one_is_the_prompt_alone_bit_for_bit():
    cond, uncond = torch.randn(3, 4), torch.randn(3, 4)
    out = guide(cond, uncond, torch.tensor([1.0, 0.0, 7.5]))
    assert torch.equal(out[0], cond[0])
    assert torch.equal(out[1], uncond[1])
    assert torch.allclose(out[2], uncond[2] + 7.5 * (cond[2] - uncond[2]))


def test_guiding_denoised_is_guiding_what_the_network_said():
    generator = make_generator(0)
    x, cond, uncond = (torch.randn(2, 5, generator=generator) for _ in range(3))
    sigma = torch.tensor([0.5, 8.0])
    for kind in ("epsilon", "v_prediction", "flow_prediction"):
        guided_prediction = uncond + 5 * (cond - uncond)
        expected = denoised_from_prediction(guided_prediction, x, sigma, kind)
        found = guide(
            denoised_from_prediction(cond, x, sigma, kind),
            denoised_from_prediction(uncond, x, sigma, kind),
            torch.tensor([5.0, 5.0]),
        )
        assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_rescaling_equals_diffusers(kind):
    generator = make_generator(1)
    x, cond, uncond = (torch.randn(2, 4, 6, 6, generator=generator) for _ in range(3))
    sigma = torch.tensor([0.7, 3.0])
    guided = uncond + 7 * (cond - uncond)
    expected = denoised_from_prediction(
        rescale_noise_cfg(guided, cond, guidance_rescale=0.7), x, sigma, kind
    )
    found = rescaled(
        denoised_from_prediction(guided, x, sigma, kind),
        denoised_from_prediction(cond, x, sigma, kind),
        latents=x,
        sigma=sigma,
        prediction_type=kind,
        phi=torch.tensor([0.7, 0.7]),
    )
    assert torch.allclose(found, expected, atol=1e-4)
    untouched = rescaled(
        found, cond, latents=x, sigma=sigma, prediction_type=kind, phi=torch.zeros(2)
    )
    assert torch.equal(untouched, found)


def test_guidance_of_exact_posteriors_is_their_exact_combination():
    a = GaussianMixture(torch.tensor([[-1.0]]), (0.5,), (1.0,))
    both = GaussianMixture(torch.tensor([[-1.0], [2.0]]), (0.5, 0.5), (0.5, 0.5))
    x, sigma = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([1.5])
    expected = float(both(x, sigma)) + 3 * (float(a(x, sigma)) - float(both(x, sigma)))
    assert float(guide(a(x, sigma), both(x, sigma), torch.tensor([3.0]))) == pytest.approx(expected)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ShapeError, match="do not fit"):
        guide(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3))


def test_rescaling_an_image_does_not_depend_on_its_neighbours():
    g = torch.Generator().manual_seed(5)
    cond, guided, latents = (torch.randn((3, 4, 24, 24), generator=g) for _ in range(3))
    sigma, phi = torch.tensor([9.0, 1.0, 0.2]), torch.tensor([0.7, 0.5, 1.0])

    def at(rows):
        return rescaled(
            guided[rows], cond[rows], latents=latents[rows], sigma=sigma[rows],
            prediction_type="v_prediction", phi=phi[rows],
        )  # fmt: skip

    for k in range(3):
        assert torch.equal(at(slice(None))[k : k + 1], at(slice(k, k + 1)))
