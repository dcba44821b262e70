import diffusers
import pytest
import torch

from mezzotint.train.config.model import ObjectiveConfig
from mezzotint.train.losses import (
    Mixture,
    Noising,
    alpha_bar,
    loss_weight,
    pointwise_loss,
    scheduler_config,
    target_of,
    to_clean,
)

SCHEDULES = ["linear", "scaled_linear", "cosine", "sigmoid_beta", "sigmoid"]


def draw(shape=(64, 3), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("zero", [False, True])
def test_alpha_bar_is_what_diffusers_reads_from_the_run_folder(schedule, zero):
    config = scheduler_config(
        ObjectiveConfig(schedule=schedule, target="v", zero_terminal_snr=zero)
    )
    scheduler = diffusers.DDIMScheduler.from_config(
        {k: v for k, v in config.items() if k != "_class_name"}
    )
    ours = alpha_bar(config)
    assert ours[-1] == 0 if zero else ours[-1] > 0
    torch.testing.assert_close(ours.float(), scheduler.alphas_cumprod, rtol=2e-5, atol=1e-7)


def test_the_two_sigmoids_are_the_published_ones():
    # cumulative signal at t = 249, 499, 749 of lucidrains' and of diffusers' sigmoid
    ours = alpha_bar(scheduler_config(ObjectiveConfig(schedule="sigmoid")))
    assert ours[[249, 499, 749]].tolist() == pytest.approx([0.85085, 0.5, 0.14915], abs=1e-4)
    ours = alpha_bar(scheduler_config(ObjectiveConfig(schedule="sigmoid_beta")))
    assert ours[[249, 499, 749]].tolist() == pytest.approx([0.90374, 0.30193, 0.00573], abs=1e-4)


@pytest.mark.parametrize("target", ["epsilon", "v"])
def test_targets_are_diffusers(target):
    objective = ObjectiveConfig(schedule="linear", target=target)
    clean, noise = draw(), draw(seed=1)
    timesteps = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(2))
    mixture = Noising.of(objective).at(timesteps)
    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", prediction_type="epsilon")
    noisy = scheduler.add_noise(clean, noise, timesteps)
    torch.testing.assert_close(mixture.mix(clean, noise), noisy, rtol=1e-5, atol=1e-6)
    wanted = noise if target == "epsilon" else scheduler.get_velocity(clean, noise, timesteps)
    torch.testing.assert_close(
        target_of(target, clean, noise, mixture), wanted, rtol=1e-5, atol=1e-6
    )


def test_flow_target_and_mixture_are_the_straight_path():
    noising = Noising.of(ObjectiveConfig(schedule="rectified_flow", target="flow"))
    mixture = noising.draw(64, torch.Generator().manual_seed(0))
    clean, noise = draw(), draw(seed=1)
    time = (mixture.time / 1000)[:, None]
    torch.testing.assert_close(mixture.mix(clean, noise), (1 - time) * clean + time * noise)
    assert torch.equal(target_of("flow", clean, noise, mixture), noise - clean)


@pytest.mark.parametrize("target", ["epsilon", "v", "sample", "flow"])
def test_a_perfect_prediction_leads_back_to_the_clean_sample(target):
    flow = target == "flow"
    schedule = "rectified_flow" if flow else "cosine"
    noising = Noising.of(ObjectiveConfig(schedule=schedule, target=target))
    clean, noise = draw(), draw(seed=1)
    mixture = noising.draw(64, torch.Generator().manual_seed(3))
    said = target_of(target, clean, noise, mixture)
    found = to_clean(target, said, mixture.mix(clean, noise), mixture)
    known = mixture.signal > 0.01  # epsilon says nothing where there is no signal
    torch.testing.assert_close(found[known], clean[known], rtol=1e-3, atol=1e-4)


def test_logit_normal_times_have_the_published_quartiles():
    objective = ObjectiveConfig(
        schedule="rectified_flow", target="flow", logit_mean=0.5, logit_std=2.0
    )
    times = Noising.of(objective).draw(200_000, torch.Generator().manual_seed(0)).time / 1000
    normal = torch.distributions.Normal(0.5, 2.0)
    for fraction in (0.25, 0.5, 0.75):
        wanted = torch.sigmoid(normal.icdf(torch.tensor(fraction)))
        assert torch.quantile(times[:100_000], fraction) == pytest.approx(float(wanted), abs=0.005)


def test_shift_moves_times_towards_noise():
    objective = ObjectiveConfig(
        schedule="rectified_flow", target="flow", logit_std=0.0, flow_shift=3.0
    )
    times = Noising.of(objective).draw(50_000, torch.Generator().manual_seed(0)).time / 1000
    assert times.median() == pytest.approx(0.75, abs=0.01)  # 3 * 0.5 / (1 + 2 * 0.5)


def test_min_snr_weighs_the_clean_error_alike_for_every_target():
    mixture = Mixture(
        torch.zeros(3), torch.tensor([0.99, 0.6, 0.05]), torch.tensor([0.141, 0.8, 0.9987])
    )
    ratio = mixture.signal**2 / mixture.spread**2
    capped = torch.tensor([5.0, float(ratio[1]), float(ratio[2])])
    assert torch.allclose(loss_weight("sample", 5.0, mixture), capped)
    assert torch.allclose(loss_weight("epsilon", 5.0, mixture), capped / ratio)
    assert torch.allclose(loss_weight("v", 5.0, mixture), capped / (ratio + 1))
    assert torch.equal(loss_weight("v", 0.0, mixture), torch.ones(3))


def test_pointwise_losses_are_their_formulas():
    ours, wanted = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)
    assert pointwise_loss("mse", ours, wanted).tolist() == [5.0]
    assert pointwise_loss("l1", ours, wanted).tolist() == [2.0]
    huber = ((1.01**0.5 - 0.1) + (9.01**0.5 - 0.1)) / 2
    assert pointwise_loss("huber", ours, wanted).item() == pytest.approx(huber)


def test_held_out_levels_are_evenly_spaced():
    noising = Noising.of(ObjectiveConfig())
    assert noising.spaced(4).time.tolist() == [125, 375, 625, 875]
