"""Each built-in solver against the diffusers scheduler of the same name, step by step."""

import math

import diffusers
import pytest
import torch

from mezzotint.sampling.denoiser import denoised_from_prediction, prediction_from_denoised
from mezzotint.sampling.schedules import noise_schedule
from mezzotint.sampling.solvers import REGISTERS, SCHEDULERS, advance, clip_denoised, plan_table
from mezzotint.sampling.timesteps import inference_schedule

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SD = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "timestep_spacing": "leading",
}
TRAILING = {**SD, "timestep_spacing": "trailing", "steps_offset": 0}
LINSPACE = {**SD, "timestep_spacing": "linspace", "steps_offset": 0, "set_alpha_to_one": True}
VPRED = {
    **TRAILING,
    "prediction_type": "v_prediction",
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
PIXELS = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "clip_sample": True,
}
CONFIGS = {"sd": SD, "trailing": TRAILING, "linspace": LINSPACE, "vpred": VPRED, "pixels": PIXELS}
SEEDS = (3, 40)


def network(x, t, kind):
    """A smooth stand-in for a network: any function of input and time will do."""
    wave = torch.sin(x * 1.3 + t / 1000) * 0.6 + 0.3 * torch.cos(2 * x - t / 500)
    return wave + (0.1 * x if kind != "sample" else 0)


def theirs(name, config, steps, curve=None):
    info = SCHEDULERS[name].info
    cls = getattr(diffusers, info.equals)
    extra = {f"use_{curve}_sigmas": True} if curve else {}
    scheduler = cls.from_config({**config, **dict(info.when), **extra})
    scheduler.set_timesteps(steps)
    return scheduler


def their_run(name, config, steps, curve=None, begin=0):
    """The states in diffusers' own frame, plus the timesteps the network was told."""
    scheduler = theirs(name, config, steps, curve)
    generators = [torch.Generator().manual_seed(s) for s in SEEDS]
    x = torch.cat([torch.randn((1, 4, 6, 5), generator=g) for g in generators])
    timesteps = scheduler.timesteps[begin * scheduler.order :]
    if begin:
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin * scheduler.order)
        x = scheduler.add_noise(torch.zeros_like(x), x, timesteps[:1].repeat(len(x)))
    else:
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    kind = config.get("prediction_type", "epsilon")
    states, told = [], []
    for t in timesteps:
        prediction = network(_scaled(scheduler, x, t), t, kind)
        arguments = {"generator": generators} if "generator" in _step_names(scheduler) else {}
        x = scheduler.step(prediction, t, x, return_dict=False, **arguments)[0]
        states.append(x)
        told.append(float(t))
    return states, told


def _scaled(scheduler, x, t):
    return scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x


def _step_names(scheduler):
    import inspect

    return inspect.signature(scheduler.step).parameters


def our_run(name, config, steps, curve=None, begin=0, rows=SEEDS):
    table = plan_table(name, config, steps, curve, first=begin)
    generators = [torch.Generator().manual_seed(s) for s in rows]

    def draw():
        return torch.cat([torch.randn((1, 4, 6, 5), generator=g) for g in generators])

    kind = config.get("prediction_type", "epsilon")
    training = noise_schedule(config)
    noise = draw()
    first = table.evaluations[0].sigma
    x = noise * (first if begin else table.init_noise_sigma)
    registers = torch.zeros((len(rows), REGISTERS, 4, 6, 5))
    registers[:, 0] = x
    states = []
    for evaluation in table.evaluations:
        x = registers[:, 0]
        sigma = torch.full((len(rows),), evaluation.sigma, dtype=torch.float64)
        scaled = x if training.frame == "flow" else x / (evaluation.sigma**2 + 1) ** 0.5
        prediction = network(scaled, evaluation.timestep, kind)
        raw = denoised_from_prediction(prediction, x, sigma, kind)
        registers = advance(
            registers,
            clip_denoised(raw, table.clip),
            evaluation.tensor().repeat(len(rows), 1, 1),
            raw=raw,
            noise=draw() if evaluation.draws_noise else None,
        )
        states.append(registers[:, 0])
    return states, table


def in_our_frame(states, table, name):
    """Divide diffusers' variance-preserving states by sqrt(alpha_bar)."""
    if SCHEDULERS[name].info.starts_at_sigma:
        return states
    levels = [e.sigma for e in table.evaluations[1:]] + [0.0]
    return [x * (level**2 + 1) ** 0.5 for x, level in zip(states, levels, strict=True)]


def check(name, config, steps, curve=None, begin=0):
    expected, told = their_run(name, config, steps, curve, begin)
    if any(math.isnan(t) for t in told):
        pytest.skip("diffusers takes a root of a negative number here, in float32")
    found, table = our_run(name, config, steps, curve, begin)
    # float32 loses the level halfway of an ancestral step, a root of a difference of squares
    least = 2e-2 if name == "dpm2_ancestral" else 2e-3
    assert [e.timestep for e in table.evaluations] == pytest.approx(told, abs=least)
    scale = 1.0
    for k, (ours, other) in enumerate(zip(found, in_our_frame(expected, table, name), strict=True)):
        # float32 holds a state of size sigma to sigma * 6e-8; differences are told in its terms
        size = max(float(other.abs().max()), table.evaluations[k].sigma)
        # and the second stage of Heun divides by the lower level before it goes the whole step
        size *= max(1.0, abs(table.evaluations[k].coefficients[0][REGISTERS + 1]))
        scale = max(scale, size)  # what was lost early is carried on
        difference = float((ours - other).abs().max()) / scale
        assert difference <= 1e-5, f"{name} step {k} of {steps}: {difference:.2e}"


VE = [n for n in SCHEDULERS.names() if SCHEDULERS[n].info.frame == "ve"]
TWINS = [n for n in VE if SCHEDULERS[n].info.is_twin or n == "dpmpp_2m_sde"]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", TWINS)
def test_every_step_equals_diffusers(name, config, steps):
    check(name, CONFIGS[config], steps)


@pytest.mark.parametrize("curve", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    "name",
    ["euler", "heun", "dpmpp_2m", "dpmpp_sde", "unipc", "dpm2", "dpm2_ancestral", "lms"],
)
def test_every_step_equals_diffusers_on_other_noise_levels(name, curve):
    expected = theirs(name, SD, 9, curve)
    schedule = inference_schedule(SCHEDULERS[name].info, SD, 9, curve)
    levels = expected.sigmas.tolist()
    if name == "heun":  # each level twice but the ends
        levels = levels[:1] + levels[1:-1:2] + levels[-1:]
    if name in ("dpm2", "dpm2_ancestral"):  # the last one three times
        levels = levels[:1] + levels[1:-1:2]
    assert schedule.sigmas == pytest.approx(levels, rel=1e-5)
    if (
        curve == "karras" or SCHEDULERS[name].info.starts_at_sigma
    ):  # else diffusers cuts 998.9999 to 998
        check(name, SD, 9, curve)


@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["deis", "sa_solver"])
def test_every_step_but_the_last_equals_diffusers(name, config, steps):
    # its last step stays one level above 0; ours goes to 0, where the picture is
    expected, told = their_run(name, CONFIGS[config], steps)
    found, table = our_run(name, CONFIGS[config], steps)
    assert [e.timestep for e in table.evaluations] == pytest.approx(told, abs=2e-3)
    scale = 1.0
    pairs = list(zip(found, in_our_frame(expected, table, name), strict=True))[:-1]
    for k, (ours, other) in enumerate(pairs):
        scale = max(scale, float(other.abs().max()), table.evaluations[k].sigma)
        assert float((ours - other).abs().max()) / scale <= 1e-5, f"step {k} of {steps}"


@pytest.mark.parametrize("name", TWINS)
def test_settings_that_a_class_does_not_know_change_nothing(name):
    # e.g. Euler never thresholds, and only some classes may end above sigma 0
    odd = {"thresholding": True, "sample_max_value": 1.5, "final_sigmas_type": "sigma_min"}
    check(name, {**PIXELS, "clip_sample": False, **odd}, 4)


# diffusers' LCM begins anew, and its LMS takes the coefficients of a history that it has not
@pytest.mark.parametrize("name", [n for n in TWINS if n not in ("lcm", "tcd", "lms")])
def test_a_run_that_starts_late_equals_diffusers(name):
    check(name, SD, 10, begin=4)


@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_flow_steps_equal_diffusers(name, shift, steps):
    config = {
        "_class_name": SCHEDULERS[name].info.equals,
        "num_train_timesteps": 1000,
        "shift": shift,
        "prediction_type": "flow_prediction",
    }
    expected, told = their_run(name, config, steps)
    found, table = our_run(name, config, steps)
    assert [e.timestep for e in table.evaluations] == pytest.approx(told, abs=2e-3)
    for k, (ours, other) in enumerate(zip(found, expected, strict=True)):
        # the second stage of Heun divides by a sigma of a thousandth
        allowed = 2e-4 if name == "flow_heun" else 1e-5
        assert float((ours - other).abs().max()) <= allowed, f"step {k}"


@pytest.mark.parametrize("name", TWINS)
def test_zero_terminal_snr_equals_diffusers(name):
    config = {**VPRED, "rescale_betas_zero_snr": True}
    if name in ("lcm", "tcd"):
        config["original_inference_steps"] = 50
    if name in ("heun", "dpm2", "dpm2_ancestral", "lms"):
        pytest.skip("this class of diffusers knows no zero terminal SNR")
    check(name, config, 8)


@pytest.mark.parametrize("name", VE)
def test_a_row_is_bitwise_the_same_in_any_batch(name):
    together, _ = our_run(name, SD, 5, rows=(3, 40, 7, 8))
    alone, _ = our_run(name, SD, 5, rows=(7,))
    assert torch.equal(together[-1][2:3], alone[-1])


def test_prediction_types_are_each_others_inverse():
    x, prediction = torch.randn(2, 3), torch.randn(2, 3)
    sigma = torch.tensor([0.5, 9.0])
    for kind in ("epsilon", "v_prediction", "flow_prediction"):
        denoised = denoised_from_prediction(prediction, x, sigma, kind)
        again = prediction_from_denoised(denoised, x, sigma, kind)
        assert torch.allclose(again, prediction, atol=1e-5)
