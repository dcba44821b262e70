"""Whole pictures: our model under our solver against diffusers' pipeline under its scheduler.

Both are given the same per-image CPU generators. Where a pipeline cannot run a scheduler (the
DDPM and DiT pipelines scale nothing and pass no generator), its loop is written out here with
diffusers' own network, scheduler and decoder.
"""

import functools
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from tests import tiny

import mezzotint
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.sampling.guidance import guide
from mezzotint.sampling.latents import draw_noise
from mezzotint.sampling.loop import denoise
from mezzotint.sampling.solvers import plan_table
from mezzotint.types import Size

# diffusers converts torch tensors with numpy, which numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

VE = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "heun": (HeunDiscreteScheduler, {}),
    "lcm": (LCMScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
}
PRIORITY = {"dpmpp_sde": {"algorithm_type": "sde-dpmsolver++"}}  # wins over the model's own file
FLOW = {
    "flow_euler": (FlowMatchEulerDiscreteScheduler, {}),
    "flow_heun": (FlowMatchHeunDiscreteScheduler, {}),
}
TEXTS = ["a red apple on the table", "two blue cat", "big leaf"]
LABELS = [1, 5, 7]
STEPS = 4
CASES = [
    *[(name, solver) for name in ("sd1", "sd2", "bert_sd", "sdxl", "ddpm", "dit") for solver in VE],
    ("sd3", "flow_euler"),
    ("sd3", "flow_heun"),
    ("flux", "flow_euler"),
]


def size_of(name):
    sizes = {"ddpm": Size(32, 32), "dit": Size(64, 64), "plate": Size(128, 128)}
    return sizes.get(name, Size(64, 48))


def generators(batch):
    return [torch.Generator().manual_seed(7 + k) for k in range(batch)]


PLATE = Path(mezzotint.__file__).parent / "models/builtin/plate"


def folder_of(name):
    return PLATE if name == "plate" else tiny.folder(name)


@functools.cache
def model_of(name):
    return load_pipeline(folder_of(name))


@functools.cache
def pipeline_of(name):
    if name != "plate":
        return tiny.build(name)
    pipeline = DiffusionPipeline.from_pretrained(PLATE, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def scheduler_for(name, solver, **settings):
    """A scheduler made, as users do, from the configuration file of the model's own.

    Where that file is silent about clipping, DDIM and DDPM would clip latents to [-1, 1], which no
    latent model means; the Stable Diffusion pipeline's constructor turns it off, as we do.
    """
    cls, options = {**VE, **FLOW}[solver]
    config = json.loads((folder_of(name) / "scheduler/scheduler_config.json").read_text())
    return cls.from_config({**options, **config, **settings}, **PRIORITY.get(solver, {}))


def theirs(pipeline, name, *, batch, guidance):
    """What diffusers draws: (batch, H, W, 3), 0 to 1."""
    if name in ("ddpm", "dit"):
        return written_out(pipeline, name, batch=batch, guidance=guidance)
    size = size_of(name)
    return pipeline(
        TEXTS[:batch],
        guidance_scale=guidance,
        width=size.width,
        height=size.height,
        num_inference_steps=STEPS,
        generator=generators(batch),
        output_type="np",
    ).images


@torch.no_grad()
def written_out(pipeline, name, *, batch, guidance):
    """The loop of the DDPM and DiT pipelines, with what other schedulers need."""
    scheduler = pipeline.scheduler
    is_dit = name == "dit"
    network = pipeline.transformer if is_dit else pipeline.unet
    shape = (network.config.in_channels, network.config.sample_size, network.config.sample_size)
    owned = generators(batch)
    x = torch.cat([torch.randn((1, *shape), generator=g) for g in owned])
    scheduler.set_timesteps(STEPS)
    x = x * scheduler.init_noise_sigma
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": owned} if takes_generator else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t)
        if is_dit:
            said = [
                network(scaled, timestep=t.expand(batch), class_labels=torch.tensor(labels)).sample[
                    :, :4
                ]
                for labels in (LABELS[:batch], [1000] * batch)
            ]
            said = said[1] + guidance * (said[0] - said[1]) if guidance != 1 else said[0]
        else:
            said = network(scaled, t).sample
        x = scheduler.step(said, t, x, return_dict=False, **extra)[0]
    images = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample if is_dit else x
    return (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def ours(model, name, solver, *, batch, guidance):
    """The same with our model, our tables and our loop."""
    size, spec = size_of(name), model.spec
    prompts = [
        Prompt(
            text=TEXTS[k] if spec.takes_prompt else "",
            class_label=LABELS[k] if name == "dit" else None,
            distilled_guidance=guidance if spec.takes_distilled_guidance else None,
            size=size,
        )
        for k in range(batch)
    ]
    halves = model.encode(model.align([*prompts, Prompt(size=size, negative=True)]))
    cond, uncond = Conditioning.stack(halves[:-1]), Conditioning.stack(halves[-1:] * batch)
    table = plan_table(
        solver, spec.scheduler_config, STEPS, sequence_length=model.sequence_length(size)
    )
    owned = generators(batch)

    told = iter(table.evaluations)

    def estimate(latents, sigma, step):
        timestep = torch.full((batch,), next(told).timestep, dtype=torch.float32)
        denoised = model.denoiser(latents, sigma, cond, timestep=timestep)
        if guidance == 1 or not spec.takes_guidance:
            return denoised
        other = model.denoiser(latents, sigma, uncond, timestep=timestep)
        return guide(denoised, other, torch.full((batch,), guidance))

    latents = draw_noise(model.latent_shape(size), owned) * table.init_noise_sigma
    clean = denoise(estimate, latents, table, generators=owned)
    images = model.decode(clean)
    return images.permute(0, 2, 3, 1).numpy() / 2 + 0.5


def levels_apart(one, other):
    return np.abs(np.round(one * 255) - np.round(other * 255)).max()


@pytest.mark.parametrize(("name", "solver"), CASES)
def test_pictures_equal_those_of_diffusers_within_a_level(name, solver):
    check(name, solver, batch=3, guidance=5.0)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "guidance"), [(1, 1.0), (1, 5.0), (3, 1.0)])
@pytest.mark.parametrize(("name", "solver"), CASES)
def test_pictures_equal_those_of_diffusers_in_the_other_corners(name, solver, batch, guidance):
    check(name, solver, batch, guidance)


@pytest.mark.parametrize(("solver", "batch", "guidance"), [("dpmpp_2m", 1, 5.0), ("ddim", 2, 1.0)])
def test_pictures_of_plate_equal_those_of_plain_diffusers(solver, batch, guidance):
    check("plate", solver, batch, guidance)


@pytest.mark.slow
@pytest.mark.parametrize("solver", VE)
def test_pictures_of_plate_equal_those_of_plain_diffusers_with_every_solver(solver):
    check("plate", solver, 3, 5.0)


def check(name, solver, batch, guidance):
    pipeline = pipeline_of(name)
    pipeline.scheduler = scheduler_for(name, solver)
    wanted = theirs(pipeline, name, batch=batch, guidance=guidance)
    found = ours(model_of(name), name, solver, batch=batch, guidance=guidance)
    assert levels_apart(found, wanted) <= 1
    assert np.ptp(wanted) > 0.3


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "ddim"])
def test_zero_terminal_snr_with_trailing_steps_equals_diffusers(solver):
    settings = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline = tiny.build("sd2")
    pipeline.scheduler = scheduler_for("sd2", "ddim", **settings)
    model = from_pipeline(pipeline)
    pipeline.scheduler = scheduler_for("sd2", solver, **settings)
    wanted = theirs(pipeline, "sd2", batch=2, guidance=5.0)
    assert levels_apart(ours(model, "sd2", solver, batch=2, guidance=5.0), wanted) <= 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_sd3_with_and_without_dynamic_shift_equals_diffusers(dynamic):
    pipeline = tiny.build("sd3")
    settings = {
        "shift": 1.0 if dynamic else 2.5,
        "use_dynamic_shifting": dynamic,
        "max_shift": 1.16,
    }
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**settings)
    wanted = theirs(pipeline, "sd3", batch=2, guidance=5.0)
    found = ours(from_pipeline(pipeline), "sd3", "flow_euler", batch=2, guidance=5.0)
    assert levels_apart(found, wanted) <= 1


def test_flux_without_embedded_guidance_equals_diffusers():
    with tiny.seeded(0):
        pipeline = tiny.flux(guidance_embeds=False)
    pipeline.set_progress_bar_config(disable=True)
    wanted = theirs(pipeline, "flux", batch=2, guidance=5.0)
    found = ours(from_pipeline(pipeline), "flux", "flow_euler", batch=2, guidance=5.0)
    assert levels_apart(found, wanted) <= 1
