"""The engine against diffusers' own pipelines: text, picture and mask to picture."""

import io

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from tests import tiny

from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.types import ImageInput

pytestmark = pytest.mark.filterwarnings("ignore")
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
    "plms": PNDMScheduler,
}


@pytest.fixture(scope="module")
def pipeline():
    return tiny.build("sd1")


@pytest.fixture(scope="module")
def engine(pipeline, tmp_path_factory):
    torch.set_num_threads(1)
    model = from_pipeline(pipeline, name="sd")
    home = tmp_path_factory.mktemp("home")
    with Engine([model], device="cpu", home=home, backend="torch") as started:
        yield started


def picture():
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((64, 64), Image.Resampling.BICUBIC)


def mask():
    array = np.zeros((64, 64), np.uint8)
    array[16:48, 32:] = 255
    return Image.fromarray(array)


def uploaded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return ImageInput(stream.getvalue())


def theirs(cls, pipeline, scheduler, **arguments):
    parts = {k: v for k, v in pipeline.components.items() if k != "image_encoder"}
    options = {"clip_sample": False} if scheduler == "ddim" else {}
    parts["scheduler"] = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config, **options)
    other = cls(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return np.asarray(
        other(
            "a red apple",
            negative_prompt="blue",
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(11),
            **arguments,
        ).images[0]
    )


def ours(engine, scheduler, **fields):
    request = GenerationRequest(
        model="sd", prompt="a red apple", negative_prompt="blue", guidance_scale=5.0, seed=11,
        scheduler=scheduler, **fields,
    )  # fmt: skip
    return engine.generate(request).images[0].pixels


def gap(first, second):
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_start_image_gives_the_picture_of_diffusers(engine, pipeline, scheduler, strength):
    expected = theirs(
        StableDiffusionImg2ImgPipeline, pipeline, scheduler, image=picture(), strength=strength,
        num_inference_steps=6,
    )  # fmt: skip
    drawn = ours(
        engine, scheduler, image=uploaded(picture()), strength=strength, num_inference_steps=6
    )
    assert gap(expected, drawn) <= 1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_repainting_gives_the_picture_of_diffusers(engine, pipeline, scheduler, strength):
    expected = theirs(
        StableDiffusionInpaintPipeline, pipeline, scheduler, image=picture(), mask_image=mask(),
        strength=strength, num_inference_steps=6, height=64, width=64,
    )  # fmt: skip
    drawn = ours(
        engine, scheduler, image=uploaded(picture()), mask=uploaded(mask()), strength=strength,
        num_inference_steps=6,
    )  # fmt: skip
    assert gap(expected, drawn) <= 1
