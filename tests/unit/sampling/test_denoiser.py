import diffusers
import pytest
import torch

from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.sampling.denoiser import EdmDenoiser, FunctionDenoiser, NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_is_diffusers_pred_original_sample(kind):
    scheduler = diffusers.DDIMScheduler(**SD, prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(1)
    said, x = (torch.randn((1, 4, 8, 8), generator=generator) for _ in range(2))
    training = noise_schedule(SD)
    seen = []

    def network(inputs, timestep, conditioning):
        seen.append((inputs, timestep, conditioning))
        return said

    denoiser = NetworkDenoiser(network, training, kind)
    for t in (1, 501, 901):
        theirs = scheduler.step(said, t, x).pred_original_sample
        sigma = training.sigma_of(t)
        ours = denoiser(x * (sigma**2 + 1) ** 0.5, torch.tensor([sigma]), "words")
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=2e-5)
        inputs, timestep, conditioning = seen[-1]
        assert torch.allclose(inputs, x, atol=1e-6)
        assert (timestep.tolist(), conditioning) == ([t], "words")


def test_a_flow_network_sees_its_latents_as_they_are_and_a_thousand_times_sigma():
    flow = noise_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    x, sigma = torch.ones(2, 3), torch.tensor([0.25, 0.5])
    denoiser = NetworkDenoiser(lambda z, t, c: z * t[:, None], flow, "flow_prediction")
    # x - sigma v with v = 1000 sigma x
    assert denoiser(x, sigma).tolist() == [[1 - 62.5] * 3, [1 - 250.0] * 3]


def test_a_given_timestep_is_what_the_network_is_told():
    told = []
    denoiser = NetworkDenoiser(
        lambda z, t, c: told.append(t) or z, noise_schedule(SD), "epsilon"
    )  # fmt: skip
    denoiser(torch.ones(1, 2), torch.tensor([3.0]), timestep=torch.tensor([412.5]))
    assert told[0].tolist() == [412.5]


def test_a_predicted_variance_is_dropped():
    denoiser = NetworkDenoiser(
        lambda z, t, c: torch.cat([z, z + 99], 1), noise_schedule(SD), "sample"
    )
    x = torch.ones(1, 4, 2, 2)
    expected = x / (1 + 2.0**2) ** 0.5
    assert torch.allclose(denoiser(x, torch.tensor([2.0])), expected)


def test_edm_preconditioning_is_table_1():
    denoiser = EdmDenoiser(lambda z, c_noise, _: z + c_noise[:, None], sigma_data=0.5)
    x, sigma = torch.tensor([[2.0]]), torch.tensor([1.5])
    c_in = 1 / (1.5**2 + 0.5**2) ** 0.5
    network = 2 * c_in + torch.tensor(1.5).log().item() / 4
    expected = 0.25 / 2.5 * 2 + 1.5 * 0.5 * c_in * network
    assert float(denoiser(x, sigma)) == pytest.approx(expected, rel=1e-6)


def test_what_does_not_fit_is_named():
    with pytest.raises(InvalidRequest, match="epsilon, v_prediction, sample"):
        NetworkDenoiser(lambda z, t, c: z, noise_schedule(SD), "noise")
    denoiser = NetworkDenoiser(lambda z, t, c: z, noise_schedule(SD), "epsilon")
    with pytest.raises(ShapeError, match=r"shape \(2,\), got \(3,\)"):
        denoiser(torch.ones(2, 1), torch.ones(3))
    with pytest.raises(ShapeError, match="got list"):
        FunctionDenoiser(lambda z, s: [1])(torch.ones(1, 1), torch.ones(1))
