"""Flow transformers in the step batch: what shares calls, and that it changes nothing."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests import tiny
from tests.roads.test_exactness import differing, run, storm
from tests.techniques import disc, photo, png

from mezzotint.models.adapters.lora import read_lora, with_loras
from mezzotint.models.base import Prompt
from mezzotint.models.families.flows import seeing
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.request import GenerationRequest, GuidanceSchedule, Lora, Region, Walk
from mezzotint.service.engine import Engine
from mezzotint.types import Size

FLUX2_LAYERS = ["transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.attn.to_out"]
LAYERS = {
    "chroma": ["transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.proj_out"],
    "flux2_dev": FLUX2_LAYERS,
    "flux2_klein": FLUX2_LAYERS,
    "lumina2": ["layers.0.attn.to_q", "layers.1.feed_forward.linear_2"],
    "pixart_sigma": ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_out.0"],
    "qwen_image": ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.add_v_proj"],
    "qwen_image_21": ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.gate_layer"],
    "sana": ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_v"],
    "z_image": ["layers.0.attention.to_q", "layers.1.feed_forward.w2"],
}
"""Families, and two layers of each that a LoRA changes."""
OLDER = {
    "flux": ["transformer_blocks.0.attn.to_out.0", "single_transformer_blocks.0.proj_out"],
    "sd3": ["transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_out.0"],
}
"""The same of families with text encoders that are no language models."""
KOHYA = {
    "transformer_blocks.0.attn.to_out.0": "double_blocks_0_img_attn_proj",
    "single_transformer_blocks.0.attn.to_out": "single_blocks_0_linear2",
    "single_transformer_blocks.0.proj_out": "single_blocks_0_linear2",
}
"""What kohya's trainer calls layers of FLUX and its kin: by the names of its first publication."""
FAMILIES = list(LAYERS)
DIFFUSION = ("pixart_sigma",)
"""Families that are no flows: solvers of flows step them not."""
DISTILLED = ("flux2_dev",)
"""Families whose network takes one guidance scale as an input."""
LONG = "a red apple on the table beside two blue cats and a big leaf, " * 6
SIZE = {"width": 64, "height": 64}
NARROW = {"qwen_image_21": 32}  # whose sides are multiples of 32
SEEING = ("qwen_image_21",)
"""Families whose text encoder reads pictures to edit, which the network sees too."""


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """Read pictures to edit with 64 x 64 px in place of 1024 x 1024."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeing, "READ_SIDE_PX", 64)
        yield


def lora_state(name, scale=1.0):
    """A LoRA of rank 4 over two layers, in diffusers' own layout."""
    module, state = tiny.build(name).transformer, {}
    generator = torch.Generator().manual_seed(5)
    for layer in (LAYERS | OLDER)[name]:
        weight = module.get_submodule(layer).weight
        for matrix, shape in (("A", (4, weight.shape[1])), ("B", (weight.shape[0], 4))):
            drawn = torch.randn(shape, generator=generator) * scale / shape[1] ** 0.5
            state[f"transformer.{layer}.lora_{matrix}.weight"] = drawn
    return state


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("home")
    (home / "loras").mkdir()
    for name in FAMILIES:
        save_file(lora_state(name), home / "loras" / f"{name}.safetensors")
    models = [load_pipeline(tiny.folder(name), name=name) for name in FAMILIES]
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def ask(model, **fields):
    fields = {"prompt": "a red apple", "num_inference_steps": 3, "seed": 1, **SIZE, **fields}
    return GenerationRequest(model=model, **fields)


def variety(name):
    """Requests of every kind that share calls or keep out of each other's."""
    mask = {"image": png(photo()), "mask": png(disc())}
    curve = GuidanceSchedule(schedule="linear", start=5, end=1)
    return [
        ask(name, guidance_scale=3.0, negative_prompt="blue"),
        ask(name, prompt=LONG, guidance_scale=3.0, seed=2),
        ask(name, prompt="two blue cats", guidance_scale=1.0, seed=3, num_inference_steps=5),
        ask(name, seed=4, guidance_scale=1.5 if name in DISTILLED else curve),
        ask(name, seed=5, width=NARROW.get(name, 48), num_images=2),
        ask(name, seed=6, image=png(photo()), strength=0.7, guidance_scale=2.0),
        ask(name, seed=7, guidance_scale=2.0, **mask),
        ask(name, seed=8, regions=(Region(prompt="a cat", box=(0.0, 0.0, 0.5, 1.0)),)),
        ask(
            name,
            seed=9,
            scheduler="heun" if name in DIFFUSION else "flow_heun",
            walk=Walk(to=LONG, frames=3),
        ),
        ask(name, seed=10, loras=(Lora(name=name, scale=0.5),)),
        ask(name, seed=11, loras=(Lora(name=name, scale=-0.7),)),
        *(edits(name) if name in SEEING else ()),
    ]


def edits(name):
    """Requests with pictures to edit: other pictures, other texts, another number."""
    first, second = png(photo()), png(np.rot90(photo(), 2))
    return [
        ask(name, seed=12, image_references=(first,), guidance_scale=2.0),
        ask(name, seed=13, prompt=LONG, image_references=(second,), guidance_scale=2.0),
        ask(name, seed=14, image_references=(first, second), loras=(Lora(name=name, scale=0.5),)),
        ask(name, seed=15, image_references=(second, first), num_inference_steps=5),
    ]


SLOW = ("flux2_dev", "lumina2", "pixart_sigma", "sana")
STORMS = [  # the first reads 512 tokens for every text, on the road of Klein
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FAMILIES
]


@pytest.mark.parametrize("name", STORMS)
def test_every_kind_of_request_gives_the_same_bytes_alone_and_in_a_storm(engine, name):
    requests = variety(name)
    alone = {k: run(engine, request) for k, request in enumerate(requests)}
    stormy = storm(engine, requests, random.Random(7), cancels=3)
    assert differing(alone, stormy) == []
    drawn = [np.asarray(result.images[0].pixels, float) for result in alone.values()]
    assert all(np.ptp(pixels) > 60 for pixels in drawn)


@pytest.mark.parametrize("name", SLOW)
def test_texts_of_two_lengths_give_the_same_bytes_alone_and_together(engine, name):
    requests = variety(name)[:2]
    alone = {k: run(engine, request) for k, request in enumerate(requests)}
    stormy = storm(engine, requests, random.Random(7), cancels=1)
    assert differing(alone, stormy) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_of_different_length_are_rows_of_one_shape(engine, name):
    model = load_pipeline(tiny.folder(name), name=name)
    short, longer = (
        model.encode(model.align([Prompt(text=text), Prompt(negative=True)]))
        for text in ("a", "a red apple on the table")
    )
    assert {half.shape_key for half in (*short, *longer)} == {short[0].shape_key}
    assert model.encode([Prompt(text="a")])[0].shape_key == short[0].shape_key


@pytest.mark.parametrize("name", [*FAMILIES, *OLDER])
def test_a_lora_of_any_layout_is_what_its_matrices_added_to_the_weights_are(name, tmp_path):
    state, pipeline = lora_state(name), tiny.build(name)
    layouts = {
        "diffusers": state,
        "peft": {f"base_model.model.{k.removeprefix('transformer.')}": v for k, v in state.items()},
        "kohya": {
            f"lora_unet_{KOHYA.get(layer, layer).replace('.', '_')}.{kohya}": state[f"transformer.{layer}.{ours}"]
            for layer in (LAYERS | OLDER)[name]
            for kohya, ours in (
                ("lora_down.weight", "lora_A.weight"), ("lora_up.weight", "lora_B.weight"),
            )
        },
    }  # fmt: skip
    if name == "sd3":
        del layouts["kohya"]  # it joins query, key and value: tests/unit/models/adapters
    model = load_pipeline(tiny.folder(name), name=name)
    for layer in (LAYERS | OLDER)[name]:
        weight = pipeline.transformer.get_submodule(layer).weight
        down, up = (state[f"transformer.{layer}.lora_{m}.weight"] for m in "AB")
        weight.data += 0.5 * up @ down
    fused = tiny_model(pipeline)
    wanted = predict(fused, ())
    assert (wanted - predict(model, ())).abs().max() > 1e-2
    for layout, tensors in layouts.items():
        file = tmp_path / f"{layout}.safetensors"
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, file)
        view = with_loras(model, [read_lora(file, family=model.spec.family)])
        torch.testing.assert_close(predict(view, (0.5,)), wanted, rtol=1e-4, atol=1e-4)


def tiny_model(pipeline):
    from mezzotint.models.formats.components import from_pipeline

    return from_pipeline(pipeline)


def predict(model, scales):
    """One estimate of the model, its LoRAs at some scales."""
    size = Size(**SIZE)
    prompt = Prompt(text="a red apple", size=size, lora_scales=scales)
    (conditioning,) = model.encode([prompt])
    latents = model.draw_latents(size, torch.Generator().manual_seed(3))
    return model.denoiser(latents, torch.tensor([0.7]), conditioning)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preview_looks_like_the_picture(engine, name):
    model = load_pipeline(tiny.folder(name), name=name)
    latents = model.draw_latents(Size(**SIZE), torch.Generator().manual_seed(1))
    preview, picture = model.preview(latents), model.decode(latents)[0]
    assert preview.shape[0] == 3
    small = torch.nn.functional.adaptive_avg_pool2d(picture, preview.shape[-2:])
    both = torch.stack([preview.flatten(), small.flatten()])
    is_white = name in ("pixart_sigma", "qwen_image_21")  # a decoder at random that often is
    least = 0.1 if is_white else 0.3
    assert torch.corrcoef(both)[0, 1] > least


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_network_cannot_weigh_or_read_is_said(engine, name):
    weighted = run(engine, ask(name, prompt="a (red:1.4) apple", prompt_dialect="a1111"))
    notes = weighted.images[0].warnings
    is_said = any("weights of words have no effect" in note for note in notes)
    assert is_said == (name not in ("chroma", "pixart_sigma"))  # a T5's states are weighed
    endless = run(engine, ask(name, prompt="big leaf " * 1100, num_inference_steps=1))
    assert any("prompt cut at" in note for note in endless.images[0].warnings)


OTHERS = ("sd1", "sd3", "flux")


@pytest.mark.slow
def test_a_hundred_mixed_requests_over_twelve_families_give_the_same_bytes_alone_and_in_a_storm(
    tmp_path,
):
    models = [load_pipeline(tiny.folder(name), name=name) for name in (*FAMILIES, *OTHERS)]
    (tmp_path / "loras").mkdir()
    for name in FAMILIES:
        save_file(lora_state(name), tmp_path / "loras" / f"{name}.safetensors")
    rng = random.Random(17)
    kinds = {name: variety(name) for name in FAMILIES}
    requests = [replace(rng.choice(kinds[name]), seed=rng.randrange(2**32)) for name in kinds
                for _ in range(10)]  # fmt: skip
    requests += [
        ask(rng.choice(OTHERS), prompt=rng.choice((LONG, "two blue cats")), seed=rng.randrange(99))
        for _ in range(100 - len(requests))
    ]
    with Engine(models, device="cpu", home=tmp_path, backend="torch") as started:
        alone = {k: run(started, request) for k, request in enumerate(requests)}
        stormy = storm(started, requests, random.Random(18), cancels=20, patience_s=3600)
    assert differing(alone, stormy) == []
