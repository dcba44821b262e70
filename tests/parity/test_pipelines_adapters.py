"""Encoders, denoisers and decoders of each family against diffusers' own pipelines.

Here a diffusers scheduler makes the steps, so that only our adapters are on trial; the native
solvers are compared in ``test_pipelines_solvers.py``.
"""

import copy

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tests import tiny

from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.sampling.denoiser import prediction_from_denoised
from mezzotint.types import Size

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers, numpy 2

TEXTS = ["a red apple on the table", "two blue cat", "big leaf"]
NEGATIVE = "green"
STEPS = 3
SIZE = Size(64, 48)


def generators(count):
    return [torch.Generator().manual_seed(100 + k) for k in range(count)]


def size_of(name):
    return {"ddpm": Size(32, 32), "dit": Size(64, 64)}.get(name, SIZE)


def theirs(pipeline, name, *, batch, guidance, negative):
    """What the pipeline draws, as levels 0 to 255."""
    options = {"num_inference_steps": STEPS, "output_type": "np", "generator": generators(batch)}
    if name == "ddpm":
        return pipeline(batch_size=batch, **options).images
    if name == "dit":
        return pipeline([1, 5, 7][:batch], guidance_scale=guidance, **options).images
    if name != "flux":
        options["negative_prompt"] = [NEGATIVE] * batch if negative else None
    size = size_of(name)
    return pipeline(
        TEXTS[:batch], guidance_scale=guidance, width=size.width, height=size.height, **options
    ).images


def conditionings(model, name, *, batch, guidance, negative):
    """The two halves of each picture, ours."""
    size = size_of(name)
    distilled = guidance if model.spec.takes_distilled_guidance else None
    prompts = [
        Prompt(
            text=TEXTS[k] if model.spec.takes_prompt else "",
            class_label=[1, 5, 7][k] if name == "dit" else None,
            size=size,
            distilled_guidance=distilled,
        )
        for k in range(batch)
    ]
    empty = Prompt(text=NEGATIVE if negative else "", size=size, negative=True)
    halves = model.encode(model.align([*prompts, empty]))
    return Conditioning.stack(halves[:-1]), Conditioning.stack(halves[-1:] * batch)


def ours(model, scheduler, name, *, batch, guidance, negative):
    """The same pictures with our model under a diffusers scheduler."""
    size, is_guided = size_of(name), guidance != 1 and model.spec.takes_guidance
    cond, uncond = conditionings(model, name, batch=batch, guidance=guidance, negative=negative)
    shape = model.latent_shape(size)
    x = torch.cat([torch.randn((1, *shape), generator=g) for g in generators(batch)])
    is_flow = model.spec.prediction_type == "flow"
    if is_flow:
        if scheduler.config.use_dynamic_shifting:
            from diffusers.pipelines.flux.pipeline_flux import calculate_shift

            mu = calculate_shift(model.sequence_length(size), 256, 4096, 0.5, 1.15)
            scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=mu)
        else:
            scheduler.set_timesteps(STEPS)
    else:
        scheduler.set_timesteps(STEPS)
    for k, t in enumerate(scheduler.timesteps):
        if is_flow:
            sigma, latents = scheduler.sigmas[k], x
        else:
            alpha_bar = scheduler.alphas_cumprod[t].double()
            sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
            latents = (x.double() * (1 + sigma**2).sqrt()).float()
        levels = sigma.float().expand(batch)
        denoised = model.denoiser(latents, levels, cond)
        if is_guided:
            other = model.denoiser(latents, levels, uncond)
            denoised = other + guidance * (denoised - other)
        said = prediction_from_denoised(denoised, latents, levels, model.spec.prediction_type)
        x = scheduler.step(said, t, x, return_dict=False)[0]
    return model.decode(x).permute(0, 2, 3, 1).numpy() / 2 + 0.5


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("name", tiny.BUILDERS)
def test_pictures_equal_those_of_diffusers_within_a_level(name, guidance, batch):
    pipeline = tiny.build(name)
    if name not in ("sd3", "flux"):
        pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    assert isinstance(pipeline.scheduler, DDIMScheduler | FlowMatchEulerDiscreteScheduler)
    model = load_pipeline(tiny.folder(name))
    case = {"batch": batch, "guidance": guidance, "negative": batch > 1}
    one = ours(model, copy.deepcopy(pipeline.scheduler), name, **case)
    other = theirs(pipeline, name, **case)
    difference = np.abs(np.round(one * 255) - np.round(other * 255)).max()
    assert difference <= 1
    assert np.ptp(other) > 0.5  # a picture, not a plain field


def test_prompt_and_guidance_change_the_picture():
    pipeline = tiny.build("sdxl")
    case = {"batch": 3, "negative": False}
    one = theirs(pipeline, "sdxl", guidance=1.0, **case)
    other = theirs(pipeline, "sdxl", guidance=5.0, **case)
    assert np.abs(one - other).max() > 10 / 255
