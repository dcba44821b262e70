"""Flow transformers under our solver against diffusers' own pipelines, from the same noise."""

import functools
import io

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny

import mezzotint
from mezzotint.models.formats.folders import load_pipeline

# diffusers converts torch tensors with numpy, which numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

TEXTS = ["a red apple on the table", "two blue cat", "leaf " * 40]
SIZE = {"width": 64, "height": 48}
STEPS = 4
CALLS = {
    "chroma": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "flux2_dev": {"guidance_scale": 3.5},
    "flux2_klein": {"guidance_scale": 3.5},
    "qwen_image": {"true_cfg_scale": 3.5, "negative_prompt": "big"},
    "z_image": {"guidance_scale": 2.5, "negative_prompt": "big"},
}
"""What each pipeline is called with, and what that is called here."""
OURS = {
    "chroma": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "flux2_dev": {"guidance_scale": 3.5},
    "flux2_klein": {"guidance_scale": 3.5},
    "qwen_image": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "z_image": {"guidance_scale": 3.5, "negative_prompt": "big"},
}
FAMILIES = list(CALLS)


@functools.cache
def pipeline_of(name):
    return tiny.build(name)


@functools.cache
def model_of(name):
    return load_pipeline(tiny.folder(name), name=name)


def theirs(name, text, seed, **asked):
    call = {**CALLS[name], **asked}
    generator = torch.Generator().manual_seed(seed)
    picture = pipeline_of(name)(
        prompt=text,
        **SIZE,
        num_inference_steps=STEPS,
        generator=generator,
        output_type="np",
        **call,
    ).images[0]
    return np.round(picture * 255)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    models = [model_of(name) for name in FAMILIES]
    with mezzotint.Engine(models, device="cpu", home=home, backend="torch") as engine:
        yield engine


def request(name, text, seed, **asked):
    fields = {**OURS[name], "num_inference_steps": STEPS, **SIZE, **asked}
    return mezzotint.GenerationRequest(model=name, prompt=text, seed=seed, **fields)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_is_that_of_diffusers_within_a_level(engine, name):
    for seed, text in enumerate(TEXTS):
        found = engine.generate(request(name, text, seed)).images[0].pixels.astype(float)
        wanted = theirs(name, text, seed)
        assert np.abs(found - wanted).max() <= 1
        assert np.ptp(wanted) > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_backend_of_a_cpu_draws_the_picture_of_diffusers_too(name, tmp_path):
    model = load_pipeline(tiny.folder(name), name=name)
    with mezzotint.Engine([model], device="cpu", home=tmp_path) as started:
        found = started.generate(request(name, TEXTS[0], 3)).images[0].pixels.astype(float)
    assert np.abs(found - theirs(name, TEXTS[0], 3)).max() <= 1


PAINTING = {
    "chroma": (diffusers.ChromaImg2ImgPipeline, diffusers.ChromaInpaintPipeline),
    "qwen_image": (diffusers.QwenImageImg2ImgPipeline, diffusers.QwenImageInpaintPipeline),
    "z_image": (diffusers.ZImageImg2ImgPipeline, diffusers.ZImageInpaintPipeline),
}
"""Pipelines of each family that begin from a picture, and that repaint a part of one."""


def picture():
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((64, 48), Image.Resampling.BICUBIC)


def mask():
    array = np.zeros((48, 64), np.uint8)
    array[8:32, 32:] = 255
    return Image.fromarray(array)


def uploaded(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return mezzotint.ImageInput(stream.getvalue())


@pytest.mark.parametrize("name", PAINTING)
def test_a_start_picture_and_a_mask_do_what_they_do_in_diffusers(engine, name):
    parts = pipeline_of(name).components
    for cls, asked in zip(PAINTING[name], ({}, {"mask": mask()}), strict=True):
        pipeline = cls(**parts)
        pipeline.set_progress_bar_config(disable=True)
        theirs = {"image": picture(), **({"mask_image": asked["mask"]} if asked else {})}
        if cls is diffusers.ChromaInpaintPipeline:  # asks for what its transformer has not,
            pipeline.transformer.register_to_config(guidance_embeds=False)
            theirs["max_sequence_length"] = 512  # and reads less than the others of its family
        wanted = pipeline(
            TEXTS[0],
            **theirs,
            **SIZE,
            **CALLS[name],
            strength=0.5,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(9),
            output_type="np",
        ).images[0]
        fields = {field: uploaded(image) for field, image in asked.items()}
        drawn = engine.generate(
            request(name, TEXTS[0], 9, image=uploaded(picture()), strength=0.5, **fields)
        )
        found = drawn.images[0].pixels.astype(float)
        assert np.abs(found - np.round(wanted * 255)).max() <= 1, cls


@pytest.mark.parametrize("name", ["flux2_dev", "flux2_klein"])
def test_pictures_to_edit_are_tokens_as_in_diffusers(engine, name):
    first, second = picture().resize((96, 72)), picture().resize((90, 70)).rotate(180)
    generator = torch.Generator().manual_seed(9)
    wanted = pipeline_of(name)(
        [first, second],
        prompt=TEXTS[0],
        **SIZE,
        **CALLS[name],
        num_inference_steps=STEPS,
        generator=generator,
        output_type="np",
    ).images[0]
    references = (uploaded(first), uploaded(second))
    drawn = engine.generate(request(name, TEXTS[0], 9, image_references=references))
    found = drawn.images[0].pixels.astype(float)
    assert np.abs(found - np.round(wanted * 255)).max() <= 1
    plain = engine.generate(request(name, TEXTS[0], 9)).images[0].pixels
    assert np.abs(found - plain).max() > 10
