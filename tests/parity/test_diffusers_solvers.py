"""Schedulers of diffusers through our frame and denoiser, against diffusers' own loop.

The network is a fixed smooth function. Our way converts its answer to the clean estimate and
back, in float32, once a call: hence 1e-4 of latents whose size is about 1.
"""

import diffusers
import pytest
import torch

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.models.solvers import SchedulerSolver
from mezzotint.planning.schedulers import evaluation_steps
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule
from mezzotint.schedulers import UNFIT, diffusers_names

SHAPE = (1, 4, 8, 8)
SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}
FLOW = {"num_train_timesteps": 1000, "shift": 3.0, "flow_shift": 3.0}


def network(inputs, timestep, conditioning=None):
    """Answer something smooth of the size of noise."""
    level = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1, 1, 1) / 1000
    return torch.tanh(inputs * 0.8 + 0.3 * level) + 0.1 * inputs.roll(1, -1)


def noise(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def theirs(scheduler, steps, seed):
    """The loop of diffusers' pipelines."""
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(SHAPE, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    import inspect

    takes = "generator" in inspect.signature(scheduler.step).parameters
    for timestep in scheduler.timesteps:
        scaled = (
            scheduler.scale_model_input(sample, timestep)
            if hasattr(scheduler, "scale_model_input")
            else sample
        )
        output = network(scaled, timestep)
        options = {"generator": generator} if takes else {}
        sample = scheduler.step(output, timestep, sample, return_dict=False, **options)[0]
    return sample


def ours(name, config, steps, seed, *, frame="ve", sigma_schedule=None):
    """Our way: latents in our frame, denoised in between."""
    solver = SchedulerSolver(name, config, steps, frame=frame, sigma_schedule=sigma_schedule)
    prediction = "flow_prediction" if frame == "flow" else config["prediction_type"]
    schedule = noise_schedule(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", **config} if frame == "flow" else config
    )
    denoiser = NetworkDenoiser(network, schedule, prediction)
    generator = torch.Generator().manual_seed(seed)
    latents = solver.start(torch.randn(SHAPE, generator=generator))
    for point in solver.points:
        denoised = denoiser(
            latents, torch.tensor([point.sigma]), timestep=torch.tensor([point.timestep])
        )
        latents = solver.advance(denoised, generator)
    return latents


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", diffusers_names("ve"))
def test_every_fitting_scheduler_ends_where_diffusers_ends(name, prediction):
    config = {**SD, "prediction_type": prediction}
    cls = getattr(diffusers, name)
    expected = theirs(cls.from_config(config), 7, seed=3)
    result = ours(name, config, 7, seed=3)
    assert torch.allclose(result, expected, rtol=2e-4, atol=2e-4), (result - expected).abs().max()


@pytest.mark.parametrize("name", diffusers_names("flow"))
def test_every_flow_scheduler_ends_where_diffusers_ends(name):
    cls = getattr(diffusers, name)
    words = (
        {}
        if name.startswith("Flow")
        else {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    )
    import inspect

    known = set(inspect.signature(cls.__init__).parameters)
    scheduler = cls(**{k: v for k, v in {**FLOW, **words}.items() if k in known})
    expected = theirs(scheduler, 6, seed=4)
    result = ours(name, FLOW, 6, seed=4, frame="flow")
    assert torch.allclose(result, expected, rtol=2e-4, atol=2e-4), (result - expected).abs().max()


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_the_shift_of_a_flow_matching_file_is_that_of_every_scheduler(name):
    words = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    expected = theirs(getattr(diffusers, name)(**words), 6, seed=4)
    config = {"num_train_timesteps": 1000, "shift": 3.0}  # as the folder of SD 3 says it
    result = ours(name, config, 6, seed=4, frame="flow")
    assert torch.allclose(result, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "sigma_schedule", "words"),
    [
        ("DEISMultistepScheduler", "karras", {"use_karras_sigmas": True}),
        ("EulerDiscreteScheduler", "exponential", {"use_exponential_sigmas": True}),
        ("KDPM2DiscreteScheduler", "karras", {"use_karras_sigmas": True}),
        ("DDIMScheduler", "trailing", {"timestep_spacing": "trailing"}),
        ("PNDMScheduler", "linear", {"timestep_spacing": "linspace"}),
    ],
)
def test_sigma_schedules_are_those_of_the_scheduler(name, sigma_schedule, words):
    expected = theirs(getattr(diffusers, name).from_config({**SD, **words}), 8, seed=1)
    result = ours(name, SD, 8, seed=1, sigma_schedule=sigma_schedule)
    assert torch.allclose(result, expected, rtol=2e-4, atol=2e-4)


def test_pndm_with_its_runge_kutta_start_is_stepped_too():
    config = {**SD, "skip_prk_steps": False}
    expected = theirs(diffusers.PNDMScheduler.from_config(config), 9, seed=1)
    assert torch.allclose(ours("PNDMScheduler", config, 9, seed=1), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_pndm_with_fewer_steps_than_its_runge_kutta_start_begins_without(steps):
    config = {**SD, "skip_prk_steps": False}
    plms = diffusers.PNDMScheduler.from_config({**SD, "skip_prk_steps": True})
    expected = theirs(plms, steps, seed=1)
    result = ours("PNDMScheduler", config, steps, seed=1)
    assert torch.allclose(result, expected, rtol=2e-4, atol=2e-4)
    calls = len(SchedulerSolver("PNDMScheduler", config, steps).points)
    assert calls == len(evaluation_steps("PNDMScheduler", steps, config))


def test_two_images_at_different_steps_do_not_disturb_each_other():
    def run(plans):
        """Step several images in turn, each with its own number of steps."""
        schedule, results = noise_schedule(SD), {}
        denoiser = NetworkDenoiser(network, schedule, "epsilon")
        solvers = {seed: SchedulerSolver("PNDMScheduler", SD, steps) for seed, steps in plans}
        latents = {seed: solver.start(noise(seed)) for seed, solver in solvers.items()}
        for k in range(30):
            for seed, solver in solvers.items():
                if k >= len(solver.points):
                    continue
                point = solver.points[k]
                denoised = denoiser(
                    latents[seed],
                    torch.tensor([point.sigma]),
                    timestep=torch.tensor([point.timestep]),
                )
                results[seed] = latents[seed] = solver.advance(denoised)
        return results

    together = run([(1, 6), (2, 11), (3, 8)])
    for seed, steps in [(1, 6), (2, 11), (3, 8)]:
        assert torch.equal(together[seed], run([(seed, steps)])[seed])


@pytest.mark.parametrize("name", sorted(UNFIT))
def test_schedulers_for_other_networks_are_refused_with_the_reason(name):
    with pytest.raises(InvalidRequest, match=f"{name} does not fit this model: it") as caught:
        SchedulerSolver(name, SD, 5)
    assert caught.value.field == "scheduler"


def test_sa_solver_reads_a_configuration_that_dpm_wrote():
    """DPM++ names an algorithm that SA-Solver does not have: a bare error before."""
    written = {**SD, "algorithm_type": "dpmsolver++"}
    assert SchedulerSolver("SASolverScheduler", written, 5).points == (
        SchedulerSolver("SASolverScheduler", SD, 5).points
    )


def test_frames_are_not_mixed():
    with pytest.raises(InvalidRequest, match="does not step a diffusion model"):
        SchedulerSolver("FlowMatchEulerDiscreteScheduler", SD, 5)
    with pytest.raises(InvalidRequest, match="does not step a flow-matching model"):
        SchedulerSolver("PNDMScheduler", FLOW, 5, frame="flow")


def test_names_that_diffusers_has_not_are_unknown():
    with pytest.raises(UnknownName, match="did you mean 'PNDMScheduler'"):
        SchedulerSolver("PNDNScheduler", SD, 5)
    with pytest.raises(UnknownName):
        SchedulerSolver("StableDiffusionPipeline", SD, 5)


def test_a_sigma_schedule_that_a_scheduler_has_not_is_refused():
    with pytest.raises(InvalidRequest, match="no sigma schedule 'karras'; it has: linear"):
        SchedulerSolver("DDIMScheduler", SD, 5, sigma_schedule="karras")


def test_the_planner_names_what_can_be_stepped_and_counts_its_calls():
    for name in diffusers_names("ve"):
        for steps in (1, 2, 5, 12):
            calls = len(SchedulerSolver(name, SD, steps).points)
            assert calls == len(evaluation_steps(name, steps, SD)), (name, steps)
