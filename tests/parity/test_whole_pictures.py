"""Whole pipelines that edit, begin from or repaint pictures: what diffusers draws of them."""

import io

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from PIL import Image
from tests import tiny, tiny_flows

from mezzotint.models.families.whole import load_foreign
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine
from mezzotint.types import ImageInput, Stepped

SIZE = (64, 64)


def photo(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(SIZE, Image.Resampling.BICUBIC)


def half():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 32:] = 255
    return Image.fromarray(pixels)


def png(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return ImageInput(stream.getvalue())


def kontext():
    return diffusers.FluxKontextPipeline(**tiny.flux().components)


def widened(unet, channels):
    """Return a U-Net of this make with other channels that come in."""
    config = {**unet.config, "in_channels": channels}
    return tiny.stir(diffusers.UNet2DConditionModel.from_config(config), 9)


def inpainting():
    parts = dict(tiny.sd1().components)
    parts["unet"] = widened(parts["unet"], 9)
    return diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)


def xl_inpainting():
    parts = dict(tiny.sdxl().components)
    parts["unet"] = widened(parts["unet"], 9)
    return diffusers.StableDiffusionXLInpaintPipeline(**parts)


def fill():
    parts = dict(tiny.flux().components)
    config = {k: v for k, v in parts["transformer"].config.items() if not k.startswith("_")}
    config |= {"in_channels": 96, "out_channels": 16}
    transformer = diffusers.FluxTransformer2DModel(**config)
    parts = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    return diffusers.FluxFillPipeline(**{**parts, "transformer": tiny.stir(transformer, 9)})


def flux_start():
    return diffusers.FluxImg2ImgPipeline(**tiny.flux().components)


def pix2pix():
    parts = dict(tiny.sd1().components)
    parts["unet"] = widened(parts["unet"], 8)
    return diffusers.StableDiffusionInstructPix2PixPipeline(**parts, requires_safety_checker=False)


def qwen_edit_plus():
    return tiny_flows.qwen_image_edit(diffusers.QwenImageEditPlusPipeline)


SIDES = {"width": 64, "height": 64}
MASKED = {"image": photo(), "mask": half(), "strength": 0.5}
TRUE_CFG = {"true_cfg_scale": 4.0, "negative_prompt": " ", **SIDES}
REFERENCE = {"image_references": (photo(1),), **SIDES}
CASES = {
    "inpainting": (inpainting, MASKED, {"image": photo(), "mask_image": half(), **SIDES}),
    "xl inpainting": (xl_inpainting, MASKED, {"image": photo(), "mask_image": half(), **SIDES}),
    "fill": (fill, MASKED, {"image": photo(), "mask_image": half(), **SIDES}),
    "flux start": (flux_start, {"image": photo(), "strength": 0.5}, {"image": photo(), **SIDES}),
    "kontext": (kontext, REFERENCE, {"image": photo(1), "max_area": 64 * 64, **SIDES}),
    "pix2pix": (pix2pix, REFERENCE, {"image": photo(1)}),
    "qwen edit": (tiny_flows.qwen_image_edit, REFERENCE, {"image": photo(1), **TRUE_CFG}),
    "qwen edit plus": (
        qwen_edit_plus,
        {"image_references": (photo(1), photo(2)), **SIDES},
        {"image": [photo(1), photo(2)], **TRUE_CFG},
    ),
}
QUICK = ("inpainting", "kontext", "qwen edit")


def encoded(fields):
    def one(value):
        if isinstance(value, Image.Image):
            return png(value)
        return tuple(map(one, value)) if isinstance(value, tuple) else value

    return {name: one(value) for name, value in fields.items()}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_a_pipeline_that_takes_pictures_draws_what_diffusers_draws(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [SIZE])
    edits, plus = pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus  # read a megapixel
    monkeypatch.setattr(edits, "calculate_dimensions", lambda *_: (*SIZE, None))
    monkeypatch.setattr(plus, "calculate_dimensions", lambda *_: SIZE)
    make, fields, options = CASES[name]
    with tiny.seeded(0):
        oracle = make()
    oracle.set_progress_bar_config(disable=True)
    oracle.save_pretrained(tmp_path)
    model = load_foreign(tmp_path)
    request = GenerationRequest(
        model=model.spec.name, prompt="a red cat", seed=7, num_inference_steps=4,
        guidance_scale=4.0, **encoded(fields),
    )  # fmt: skip
    with Engine(models=[model]) as engine:
        job = engine.submit(request)
        told = [event.step for event in job.events() if isinstance(event, Stepped)]
        drawn = job.result(timeout_s=60).images[0].pixels.astype(int)
    strength = {"strength": 0.5} if "strength" in fields else {}
    answer = oracle(
        prompt="a red cat", num_inference_steps=4, guidance_scale=4.0, output_type="np",
        generator=torch.Generator().manual_seed(7), **strength, **options,
    )  # fmt: skip
    wanted = np.rint(answer.images[0] * 255).astype(int)
    assert told == list(range(1, 3 if strength else 5))
    assert drawn.shape == wanted.shape == (64, 64, 3)
    assert np.abs(drawn - wanted).max() <= 1


@pytest.mark.slow
def test_a_picture_to_edit_changes_what_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [SIZE])
    edits, plus = pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus  # read a megapixel
    monkeypatch.setattr(edits, "calculate_dimensions", lambda *_: (*SIZE, None))
    monkeypatch.setattr(plus, "calculate_dimensions", lambda *_: SIZE)
    with tiny.seeded(0):
        kontext().save_pretrained(tmp_path)
    model = load_foreign(tmp_path)
    with Engine(models=[model]) as engine:
        pictures = [
            engine.generate(
                GenerationRequest(
                    model=model.spec.name, prompt="a cat", seed=7, num_inference_steps=2,
                    image_references=references, **SIDES,
                )
            ).images[0].pixels
            for references in ((), (png(photo(1)),), (png(photo(2)),))
        ]  # fmt: skip
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
