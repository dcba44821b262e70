"""Flow transformers under our solver against diffusers' own pipelines, from the same noise."""

import functools
import io

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from tests.tiny_flows import UNBINNED

import mezzotint
from mezzotint.models.formats.folders import load_pipeline

# diffusers converts torch tensors with numpy, which numpy 2 warns of
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")

TEXTS = ["a red apple on the table", "two blue cat", "leaf " * 40]
SIZE = {"width": 64, "height": 48}
STEPS = 4
SIZES = {"qwen_image_21": {"width": 64, "height": 96}, "sana": {"width": 96, "height": 64}}
"""Of pipelines that count in 32."""
CALLS = {
    "chroma": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "flux2_dev": {"guidance_scale": 3.5},
    "flux2_klein": {"guidance_scale": 3.5},
    "lumina2": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "pixart_alpha": {"guidance_scale": 3.5, "negative_prompt": "big", **UNBINNED},
    "pixart_sigma": {"guidance_scale": 3.5, "negative_prompt": "big", **UNBINNED},
    "qwen_image": {"true_cfg_scale": 3.5, "negative_prompt": "big"},
    "qwen_image_21": {"true_cfg_scale": 3.5, "negative_prompt": "big"},
    "sana": {"guidance_scale": 3.5, "negative_prompt": "big", **UNBINNED},
    "z_image": {"guidance_scale": 2.5, "negative_prompt": "big"},
}
"""What each pipeline is called with, and what that is called here."""
OURS = {
    "chroma": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "flux2_dev": {"guidance_scale": 3.5},
    "flux2_klein": {"guidance_scale": 3.5},
    "lumina2": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "pixart_alpha": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "pixart_sigma": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "qwen_image": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "qwen_image_21": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "sana": {"guidance_scale": 3.5, "negative_prompt": "big"},
    "z_image": {"guidance_scale": 3.5, "negative_prompt": "big"},
}
FAMILIES = list(CALLS)


@functools.cache
def pipeline_of(name):
    return tiny.build(name)


@functools.cache
def model_of(name):
    return load_pipeline(tiny.folder(name), name=name)


def size_of(name):
    return SIZES.get(name, SIZE)


def theirs(name, text, seed, **asked):
    call = {**CALLS[name], **asked}
    generator = torch.Generator().manual_seed(seed)
    picture = pipeline_of(name)(
        prompt=text,
        **size_of(name),
        num_inference_steps=STEPS,
        generator=generator,
        output_type="np",
        **call,
    ).images[0]
    return np.round(on_white(picture) * 255)


def on_white(picture):
    """Lay a picture with opacity on white; others are as they are. Shape (H, W, 3), 0 to 1."""
    colours, opacity = picture[..., :3], picture[..., 3:]
    return colours * opacity + 1 - opacity if opacity.size else colours


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    models = [model_of(name) for name in FAMILIES]
    with mezzotint.Engine(models, device="cpu", home=home, backend="torch") as engine:
        yield engine


def request(name, text, seed, **asked):
    fields = {**OURS[name], "num_inference_steps": STEPS, **size_of(name), **asked}
    return mezzotint.GenerationRequest(model=name, prompt=text, seed=seed, **fields)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_is_that_of_diffusers_within_a_level(engine, name):
    for seed, text in enumerate(TEXTS):
        found = engine.generate(request(name, text, seed)).images[0].pixels.astype(float)
        wanted = theirs(name, text, seed)
        assert np.abs(found - wanted).max() <= 1
        assert np.ptp(wanted) > 60


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


def picture(width=64, height=48):
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def mask(width=64, height=48):
    array = np.zeros((height, width), np.uint8)
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


STARTED = ("lumina2", "pixart_sigma", "sana")
"""Families whose pipelines begin from noise alone, but take latents and noise levels."""


def begin(name, side):
    """Return the family's own pipeline with its picture's latents, noise, and noised latents.

    Of four steps the last two are run: the picture of a strength of 0.5.
    """
    parts = dict(pipeline_of(name).components)
    if name == "sana":  # its own scheduler takes no noise levels
        parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = type(pipeline_of(name))(**parts)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(9)
    pixels = torch.from_numpy(np.array(picture(**side))).float().movedim(-1, 0)[None] / 127.5 - 1
    encoded, config = pipeline.vae.encode(pixels), pipeline.vae.config
    clean = encoded.latent if name == "sana" else encoded.latent_dist.sample(generator)
    clean = (clean - (config.get("shift_factor") or 0)) * config.scaling_factor
    noise = torch.randn(clean.shape, generator=generator)
    scheduler = pipeline.scheduler
    if name == "pixart_sigma":
        scheduler.set_timesteps(STEPS)
        times = scheduler.timesteps[2:]
        return pipeline, clean, noise, {"timesteps": times.tolist()}, times
    last = scheduler.sigma_min if name == "sana" else 1 / STEPS
    levels = np.linspace(1, last, STEPS)[2:]
    scheduler.set_timesteps(sigmas=levels)
    return pipeline, clean, noise, {"sigmas": levels}, scheduler.timesteps.clone()


@pytest.mark.parametrize("name", STARTED)
def test_a_pipeline_that_begins_from_noised_latents_draws_what_a_start_picture_does(engine, name):
    side = size_of(name)
    pipeline, clean, noise, levels, times = begin(name, side)

    def noised(time):
        if name == "pixart_sigma":
            return pipeline.scheduler.add_noise(clean, noise, time[None])
        level = time / 1000
        return level * noise + (1 - level) * clean

    def repaint(_, step, time, state):
        known = noised(times[step + 1]) if step + 1 < len(times) else clean
        return {"latents": torch.where(shown, state["latents"], known)}

    cell = side["width"] // clean.shape[-1]
    shown = torch.from_numpy(np.array(mask(**side))[::cell, ::cell] > 0)
    asked = {} if name == "pixart_sigma" else {"mask": mask(**side)}  # which cannot be stopped
    for fields in ({}, asked):
        wanted = pipeline(
            TEXTS[0], **side, **CALLS[name], **levels, latents=noised(times[0]), output_type="np",
            **({"callback_on_step_end": repaint} if fields else {}),
        ).images[0]  # fmt: skip
        uploads = {field: uploaded(image) for field, image in fields.items()}
        own = {} if name == "pixart_sigma" else {"scheduler": "flow_euler"}
        drawn = engine.generate(
            request(
                name, TEXTS[0], 9, image=uploaded(picture(**side)), strength=0.5, **uploads, **own
            )
        )
        found = drawn.images[0].pixels.astype(float)
        assert np.abs(found - np.round(wanted * 255)).max() <= 1, fields


def test_a_sana_with_a_flow_scheduler_leaves_the_levels_to_it(engine):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = diffusers.SanaPipeline(**{**pipeline_of("sana").components, "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        TEXTS[0], **size_of("sana"), **CALLS["sana"], num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(3), output_type="np",
    ).images[0]  # fmt: skip
    drawn = engine.generate(request("sana", TEXTS[0], 3, scheduler="flow_euler"))
    found = drawn.images[0].pixels.astype(float)
    assert np.abs(found - np.round(wanted * 255)).max() <= 1


@pytest.mark.parametrize("name", ["pixart_sigma", "sana"])
def test_a_prompt_is_read_in_lower_case_as_its_authors_read_it(engine, name):
    plain = engine.generate(request(name, "a red apple", 3)).images[0].pixels
    found = engine.generate(request(name, " A Red APPLE\n", 3)).images[0].pixels
    assert np.array_equal(found, plain)
    wanted = theirs(name, " A Red APPLE\n", 3)
    assert np.abs(found.astype(float) - wanted).max() <= 1
