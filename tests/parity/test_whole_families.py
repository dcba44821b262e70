"""Whole pipelines of named families with random weights: what diffusers draws, step by step."""

import diffusers
import numpy as np
import pytest
import torch
from tests import tiny

from mezzotint.images.codec import to_pixels
from mezzotint.models.base import Prompt
from mezzotint.models.families.whole import load_foreign
from mezzotint.types import Size

SIZE = Size(64, 64)


def pixart():
    tokenizer = tiny.t5_tokenizer()
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
        num_layers=1, cross_attention_dim=16, sample_size=32, patch_size=2, caption_channels=32,
        use_additional_conditions=False,
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=tiny.t5_text(tokenizer),
        vae=tiny.vae(),
        transformer=tiny.stir(transformer, 2),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
    )


def chroma():
    tokenizer = tiny.t5_tokenizer()
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8, approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    return diffusers.ChromaPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=tiny.vae(4, scaling=0.3611, shift=0.1159, quant=False),
        text_encoder=tiny.t5_text(tokenizer),
        tokenizer=tokenizer,
        transformer=tiny.stir(transformer, 2),
    )


def kontext():
    return diffusers.FluxKontextPipeline(**tiny.flux().components)


CASES = {
    "pixart": (pixart, {}, ("guidance_scale", "negative_prompt")),
    "chroma": (chroma, {}, ("guidance_scale", "negative_prompt")),
    "kontext": (kontext, {"max_area": 64 * 64}, ("guidance_scale",)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_a_whole_family_draws_what_diffusers_draws_and_tells_each_step(name, tmp_path):
    make, extra, steered = CASES[name]
    with tiny.seeded(0):
        oracle = make()
    oracle.set_progress_bar_config(disable=True)
    oracle.save_pretrained(tmp_path)
    model = load_foreign(tmp_path)
    assert model.spec.tells_steps
    asked = Prompt(
        text="a red cat", size=SIZE, num_inference_steps=3, distilled_guidance=4.0,
        negative_text="blue" if "negative_prompt" in steered else "",
    )  # fmt: skip
    latents = model.draw_latents(SIZE, torch.Generator().manual_seed(7))
    run, pauses = model.begin(latents, model.encode([asked])[0]), 0
    while not run.is_over:
        run.resume()
        pauses += not run.is_over
    options = {"guidance_scale": 4.0, "negative_prompt": "blue"}
    answer = oracle(
        prompt="a red cat", width=64, height=64, num_inference_steps=3, output_type="np",
        generator=torch.Generator().manual_seed(7), **extra,
        **{key: options[key] for key in steered},
    )  # fmt: skip
    wanted = np.rint(answer.images[0] * 255).astype(int)
    drawn = to_pixels(run.finish().numpy())[0].astype(int)
    assert pauses == 3
    assert drawn.shape == wanted.shape == (64, 64, 3)
    assert np.abs(drawn - wanted).max() <= 1
