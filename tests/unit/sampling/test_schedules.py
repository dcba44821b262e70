import math

import diffusers
import numpy as np
import pytest
import scipy.stats
import torch

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.sampling.schedules import (
    BETA_SCHEDULES,
    beta_values,
    frame_of,
    noise_schedule,
    rescale_zero_terminal_snr,
)

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("linear", (0.52409, 0.07859, 0.00335, 4.04e-5)),
        ("cosine", (0.84701, 0.49384, 0.14427, 2.4e-9)),
        ("squaredcos_cap_v2", (0.84701, 0.49384, 0.14427, 2.4e-9)),
        ("sigmoid", (0.90374, 0.30193, 0.00573, 3.97e-5)),
        ("sigmoid_beta", (0.90374, 0.30193, 0.00573, 3.97e-5)),
        ("sigmoid_alpha_bar", (0.85085, 0.50000, 0.14915, 3e-7)),
    ],
)
def test_alpha_bar_of_every_name_is_the_published_one(name, known):
    bars = noise_schedule({"beta_schedule": name}).alphas_cumprod
    assert [bars[t] for t in (249, 499, 749)] == pytest.approx(known[:3], abs=6e-6)
    assert bars[999] == pytest.approx(known[3], rel=0.02)


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_alpha_bar_is_that_of_diffusers_to_the_last_bits(name):
    config = {**SD, "beta_schedule": name}
    theirs = diffusers.DDPMScheduler(**config).alphas_cumprod.double().tolist()
    assert noise_schedule(config).alphas_cumprod == pytest.approx(theirs, rel=3e-7)


def test_stable_diffusion_keeps_some_signal_at_its_last_timestep():
    training = noise_schedule(SD)
    assert training.alphas_cumprod[-1] ** 0.5 == pytest.approx(0.0683, abs=5e-5)
    assert training.terminal_snr == pytest.approx(4.7e-3, rel=0.01)
    assert training.sigmas[-1] == pytest.approx(14.6146, abs=1e-4)


def test_zero_terminal_snr_leaves_no_signal_and_the_first_step_alone():
    betas = beta_values("scaled_linear", start=0.00085, end=0.012, count=1000)
    changed = rescale_zero_terminal_snr(betas)
    assert changed[-1] == 1.0
    assert changed[0] == pytest.approx(betas[0], rel=1e-4)
    training = noise_schedule({**SD, "rescale_betas_zero_snr": True})
    assert training.alphas_cumprod[-1] == 0
    assert training.sigmas[-1] == pytest.approx(4096, rel=1e-6)
    assert training.exact_sigma_of(999) == pytest.approx(2**24, rel=1e-6)


def test_sigma_and_timestep_lead_back_to_each_other():
    training = noise_schedule(SD)
    for t in (0, 1, 17, 500, 998, 999):
        assert training.timestep_of(training.sigma_of(t)) == t
    assert training.timestep_of(1e9) == 999
    assert training.timestep_of(1e-9) == 0
    assert 500 < training.timestep_of(training.sigma_of(500.5)) < 501
    flow = noise_schedule({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    assert flow.timestep_of(0.25) == 250
    assert flow.sigma_of(250) == 0.25


def test_timestep_between_two_is_that_of_diffusers_euler():
    scheduler = diffusers.EulerDiscreteScheduler(**SD)
    table = np.log(((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().numpy())
    training = noise_schedule(SD)
    for sigma in (0.05, 0.7, 3.3, 14.0):
        theirs = float(scheduler._sigma_to_t(np.array(sigma), table))
        assert training.timestep_of(sigma, snap=0) == pytest.approx(theirs, abs=1e-3)


def test_given_betas_are_used_and_checked():
    training = noise_schedule({"trained_betas": [0.1, 0.2, 0.3]})
    assert training.num_train_timesteps == 3
    assert training.alphas_cumprod == pytest.approx([0.9, 0.72, 0.504], rel=1e-6)
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        noise_schedule({"trained_betas": [0.1, 1.2]})


def test_an_unknown_schedule_lists_the_known_ones():
    with pytest.raises(UnknownName, match="did you mean 'cosine'") as caught:
        noise_schedule({"beta_schedule": "cosin"})
    assert set(caught.value.known) == set(BETA_SCHEDULES)


@pytest.mark.parametrize(
    ("config", "frame"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, "ve"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow"),
        ({"prediction_type": "flow_prediction"}, "flow"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow"),
    ],
)
def test_the_frame_is_read_from_the_configuration(config, frame):
    assert frame_of(config) == frame


def test_beta_levels_are_scipys_quantiles():
    from mezzotint.sampling.sigma_curves import beta_sigmas

    wanted = 0.1 + scipy.stats.beta.ppf(1 - np.linspace(0, 1, 9), 0.6, 0.6) * 9.9
    assert beta_sigmas(9, 0.1, 10.0) == pytest.approx(wanted.tolist(), rel=1e-9)


@pytest.mark.parametrize("steps", [1, 4, 28])
@pytest.mark.parametrize(
    "config",
    [
        {"shift": 3.0},
        {"shift": 1.0, "shift_terminal": 0.1},
        {"shift": 3.0, "use_karras_sigmas": True},
        {"use_dynamic_shifting": True, "spaced_per_step": False},
    ],
)
def test_flow_levels_are_those_of_diffusers(config, steps):
    from mezzotint.sampling.timesteps import inference_schedule
    from mezzotint.schedulers import NATIVE

    if config.get("shift_terminal") and steps == 1:
        return  # one level cannot both start at 1 and end at the terminal
    own = {k: v for k, v in config.items() if k != "spaced_per_step"}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**own)
    tokens = 1024
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(steps, **({"mu": mu} if own.get("use_dynamic_shifting") else {}))
    found = inference_schedule(
        NATIVE["flow_euler"],
        {"_class_name": "FlowMatchEulerDiscreteScheduler", **config},
        steps,
        sequence_length=tokens,
    )
    assert found.sigmas == pytest.approx(scheduler.sigmas.tolist(), rel=2e-5, abs=1e-7)
    assert torch.tensor(found.timesteps).tolist() == pytest.approx(
        scheduler.timesteps.tolist(), rel=2e-5
    )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("align_your_steps", "StableDiffusionSigmas"),
        ("align_your_steps_sdxl", "StableDiffusionXLSigmas"),
    ],
)
def test_align_your_steps_are_the_published_levels(name, theirs):
    from diffusers.schedulers import AysSchedules

    from mezzotint.sampling.timesteps import inference_schedule
    from mezzotint.schedulers import NATIVE

    trained = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    for scheduler in ("euler", "dpmpp_2m", "dpmpp_2s_ancestral"):
        found = inference_schedule(NATIVE[scheduler], trained, 10, name)
        assert found.sigmas == pytest.approx(AysSchedules[theirs], rel=1e-9)
    # fewer steps: log-linear between them
    few = inference_schedule(NATIVE["euler"], trained, 5, name).sigmas
    assert few == pytest.approx([*AysSchedules[theirs][:-1:2], 0.0], rel=1e-9)


def test_align_your_steps_are_stretched_to_the_ends_of_other_models():
    from mezzotint.sampling.sigma_curves import sigma_curve

    levels = sigma_curve("align_your_steps", 10, 0.029**2, 14.615**2)
    assert levels[0] == pytest.approx(14.615**2)
    logs = [math.log(level) for level in levels[:-1]]
    # twice the span in log sigma: twice each published distance from the top
    assert logs[0] - logs[3] == pytest.approx(2 * math.log(14.615 / 2.697))


def test_kl_optimal_is_even_in_the_angle():
    import numpy as np

    from mezzotint.sampling.sigma_curves import sigma_curve

    levels = sigma_curve("kl_optimal", 7, 0.03, 14.6)
    expected = np.tan(np.linspace(np.arctan(14.6), np.arctan(0.03), 7))
    assert levels == pytest.approx([*expected, 0.0])


def test_published_levels_are_refused_for_flow_models():
    from mezzotint.sampling.timesteps import inference_schedule
    from mezzotint.schedulers import NATIVE

    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    with pytest.raises(InvalidRequest, match="published for diffusion models"):
        inference_schedule(NATIVE["flow_euler"], flow, 10, "align_your_steps")


def test_linear_quadratic_is_that_of_diffusers_scaled_to_the_top():
    from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

    from mezzotint.sampling.sigma_curves import sigma_curve

    for steps in (2, 5, 8, 20):
        shares = linear_quadratic_schedule(steps, 0.025)
        expected = [*(14.6 * share for share in shares), 0.0]
        assert sigma_curve("linear_quadratic", steps, 0.03, 14.6) == pytest.approx(expected)
    assert sigma_curve("linear_quadratic", 1, 0.03, 14.6) == [14.6, 0.0]


def test_gits_has_levels_of_its_own_for_each_number_of_steps():
    from mezzotint.sampling.timesteps import inference_schedule
    from mezzotint.schedulers import NATIVE

    trained = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    # as published for a coefficient of 1.2; the last gives way to 0
    published = {
        4: [14.61464119, 2.36326075, 0.92192322, 0.36617002, 0.0],
        6: [14.61464119, 5.85520077, 2.05039096, 0.95350921, 0.45573691, 0.17026083, 0.0],
        10: [14.61464119, 5.85520077, 2.84484982, 1.67050016, 1.08895338, 0.74807048,
             0.50118381, 0.32104823, 0.19894916, 0.09824532, 0.0],
    }  # fmt: skip
    for steps, levels in published.items():
        found = inference_schedule(NATIVE["euler"], trained, steps, "gits")
        assert found.sigmas == pytest.approx(levels, rel=1e-9)
    # more steps than twenty: log-linear between those of twenty
    twenty = inference_schedule(NATIVE["euler"], trained, 20, "gits").sigmas
    forty = inference_schedule(NATIVE["euler"], trained, 40, "gits").sigmas
    assert forty[:39:2] == pytest.approx(twenty[:20], rel=1e-9)
    assert len(forty) == 41
    assert list(forty) == sorted(forty, reverse=True)
