"""ControlNets, IP-Adapters and textual inversions against diffusers on the same weights."""

import io
import json

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from tests import adapters_tiny, tiny

from mezzotint.errors import InvalidRequest
from mezzotint.models.adapters.controlnet import read_controlnet
from mezzotint.models.formats.components import from_pipeline
from mezzotint.models.networks import Placement
from mezzotint.request import Control, Embedding, GenerationRequest, ImagePrompt
from mezzotint.service.engine import Engine
from mezzotint.types import ImageInput

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers, numpy 2

STEPS = 4
SIDE = 64
KINDS = ("sd1", "sdxl")


def colours(seed=0, side=SIDE):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((side, side + seed), Image.Resampling.BICUBIC)


def sent(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return ImageInput(stream.getvalue())


@pytest.fixture(scope="module")
def pipelines():
    made = {}
    for kind in KINDS:
        made[kind] = tiny.build(kind)
        config = made[kind].scheduler.config
        made[kind].scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    return made


@pytest.fixture(scope="module")
def home(pipelines, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for kind, pipeline in pipelines.items():
        for number in (1, 2):
            net = adapters_tiny.controlnet(pipeline, seed=40 + number)
            net.save_pretrained(home / "controlnets" / f"{kind}-{number}")
        adapters_tiny.ip_adapter(pipeline, home / "ip_adapters" / kind)
    adapters_tiny.union_controlnet(pipelines["sdxl"]).save_pretrained(
        home / "controlnets" / "union"
    )
    for kind, seed in (("full", 61), ("plus", 62)):
        folder = home / "ip_adapters" / kind
        adapters_tiny.ip_adapter(pipelines["sd1"], folder, kind=kind, seed=seed)
    adapters_tiny.ip_adapter(
        pipelines["sdxl"], home / "ip_adapters" / "plus-xl", kind="plus", seed=63
    )
    adapters_tiny.embedding(home / "embeddings" / "ink.safetensors")
    adapters_tiny.embedding(home / "embeddings" / "blot.safetensors", count=1, key="blot", seed=71)
    pair = {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 24)}
    save_file(pair, home / "embeddings" / "pair.safetensors")
    return home


@pytest.fixture(scope="module")
def engine(pipelines, home):
    torch.set_num_threads(1)
    models = [from_pipeline(pipeline, name=kind) for kind, pipeline in pipelines.items()]
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def ours(engine, **fields):
    defaults = {
        "prompt": "a red apple", "negative_prompt": "green", "seed": 7, "scheduler": "ddim",
        "num_inference_steps": STEPS, "guidance_scale": 5.0, "width": SIDE, "height": SIDE,
    }  # fmt: skip
    return engine.generate(GenerationRequest(**{**defaults, **fields})).images[0].pixels


def theirs(pipeline, prompt="a red apple", negative="green", **options):
    pipeline.set_progress_bar_config(disable=True)
    sizes = {} if "strength" in options else {"width": SIDE, "height": SIDE}
    defaults = {
        "num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "np",
        "negative_prompt": negative, "generator": torch.Generator().manual_seed(7), **sizes,
    }  # fmt: skip
    return np.round(pipeline(prompt, **{**defaults, **options}).images[0] * 255)


def level_difference(one, other):
    assert np.ptp(other) > 100  # a picture, not a plain field
    return np.abs(one.astype(float) - other).max()


def with_nets(pipeline, nets, cls=None):
    xl = "text_encoder_2" in pipeline.components
    cls = cls or (StableDiffusionXLControlNetPipeline if xl else StableDiffusionControlNetPipeline)
    parts = {k: v for k, v in pipeline.components.items() if k != "image_encoder"}
    options = {"add_watermarker": False} if xl else {"requires_safety_checker": False}
    return cls(**parts, controlnet=nets, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_one_controlnet_draws_what_diffusers_draws(engine, pipelines, kind):
    net = adapters_tiny.controlnet(pipelines[kind], seed=41)
    expected = theirs(
        with_nets(pipelines[kind], net), image=colours(), controlnet_conditioning_scale=0.7
    )
    control = Control(model=f"{kind}-1", image=sent(colours()), scale=0.7)
    plain = ours(engine, model=kind)
    found = ours(engine, model=kind, controls=(control,))
    assert level_difference(found, expected) <= 1
    assert level_difference(found, plain.astype(float)) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_two_controlnets_with_ranges_draw_what_diffusers_draws(engine, pipelines, kind):
    nets = [adapters_tiny.controlnet(pipelines[kind], seed=s) for s in (41, 42)]
    expected = theirs(
        with_nets(pipelines[kind], nets),
        image=[colours(), colours(3)],
        controlnet_conditioning_scale=[0.9, 0.6],
        control_guidance_start=[0.0, 0.25],
        control_guidance_end=[0.5, 1.0],
    )
    controls = (
        Control(model=f"{kind}-1", image=sent(colours()), scale=0.9, end=0.5),
        Control(model=f"{kind}-2", image=sent(colours(3)), scale=0.6, start=0.25),
    )
    assert level_difference(ours(engine, model=kind, controls=controls), expected) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_guess_mode_draws_what_diffusers_draws(engine, pipelines, kind):
    net = adapters_tiny.controlnet(pipelines[kind], seed=41)
    expected = theirs(
        with_nets(pipelines[kind], net),
        image=colours(),
        controlnet_conditioning_scale=0.9,
        guess_mode=True,
    )
    control = Control(model=f"{kind}-1", image=sent(colours()), scale=0.9, guess=True)
    found = ours(engine, model=kind, controls=(control,))
    assert level_difference(found, expected) <= 1
    full = Control(model=f"{kind}-1", image=sent(colours()), scale=0.9)
    assert level_difference(found, ours(engine, model=kind, controls=(full,)).astype(float)) > 5


@pytest.mark.parametrize("guess", [False, True])
def test_a_union_of_sdxl_draws_what_diffusers_draws(engine, pipelines, guess):
    net = adapters_tiny.union_controlnet(pipelines["sdxl"])
    asked = net.forward

    def answer(sample, *more, control_type, **options):  # guessing, it asks for half of the rows
        return asked(sample, *more, control_type=control_type[: len(sample)], **options)

    net.forward = answer
    expected = theirs(
        with_nets(pipelines["sdxl"], net, StableDiffusionXLControlNetUnionPipeline),
        control_image=[colours()],
        control_mode=[3],
        controlnet_conditioning_scale=0.8,
        guess_mode=guess,
    )
    control = Control(model="union", image=sent(colours()), scale=0.8, mode=3, guess=guess)
    found = ours(engine, model="sdxl", controls=(control,))
    assert level_difference(found, expected) <= 1
    other = Control(model="union", image=sent(colours()), scale=0.8, mode=1, guess=guess)
    assert level_difference(found, ours(engine, model="sdxl", controls=(other,)).astype(float)) > 1


def test_a_union_that_follows_two_pictures_draws_what_several_of_diffusers_draw(engine, pipelines):
    net = adapters_tiny.union_controlnet(pipelines["sdxl"])
    expected = theirs(
        with_nets(pipelines["sdxl"], [net, net], StableDiffusionXLControlNetUnionPipeline),
        control_image=[colours(), colours(3)],
        control_mode=[3, 1],
        controlnet_conditioning_scale=[0.7, 0.5],
        control_guidance_start=[0.0, 0.25],
        control_guidance_end=[0.5, 1.0],
    )
    controls = (
        Control(model="union", image=sent(colours()), scale=0.7, mode=3, end=0.5),
        Control(model="union", image=sent(colours(3)), scale=0.5, mode=1, start=0.25),
    )
    assert level_difference(ours(engine, model="sdxl", controls=controls), expected) <= 1


def test_a_union_is_told_its_mode_and_a_plain_one_none(engine, home):
    with pytest.raises(InvalidRequest, match=r"mode is needed for union.*0 to 5"):
        ours(engine, model="sdxl", controls=(Control(model="union", image=sent(colours())),))
    folder = home / "controlnets" / "union"
    config = json.loads((folder / "config.json").read_text())
    (home / "first").mkdir()
    (home / "first" / "config.json").write_text(
        json.dumps(config | {"_class_name": "ControlNetModel"})
    )
    (home / "first" / "diffusion_pytorch_model.safetensors").symlink_to(
        folder / "diffusion_pytorch_model.safetensors"
    )
    first = read_controlnet(home / "first", name="first", placement=Placement())
    assert (first.num_modes, first.kind.families) == (6, ("sdxl",))


def test_a_controlnet_steers_image_to_image_as_in_diffusers(engine, pipelines):
    net = adapters_tiny.controlnet(pipelines["sd1"], seed=41)
    pipeline = with_nets(pipelines["sd1"], net, StableDiffusionControlNetImg2ImgPipeline)
    expected = theirs(
        pipeline,
        image=colours(5, SIDE).resize((SIDE, SIDE)),
        control_image=colours(),
        strength=0.75,
        controlnet_conditioning_scale=0.8,
    )
    control = Control(model="sd1-1", image=sent(colours()), scale=0.8)
    found = ours(
        engine, model="sd1", image=sent(colours(5, SIDE).resize((SIDE, SIDE))), strength=0.75,
        controls=(control,),
    )  # fmt: skip
    assert level_difference(found, expected) <= 1


@pytest.mark.parametrize(
    ("kind", "name", "pictures"),
    [
        ("sd1", "sd1", 1),
        ("sd1", "full", 2),
        ("sd1", "plus", 2),
        ("sdxl", "sdxl", 2),
        ("sdxl", "plus-xl", 1),
    ],
)
def test_an_ip_adapter_draws_what_diffusers_draws(engine, home, kind, name, pictures):
    pipeline = tiny.build(kind)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.load_ip_adapter(
        str(home / "ip_adapters" / name), subfolder="", weight_name="ip-adapter.safetensors",
        image_encoder_folder="image_encoder",
    )  # fmt: skip
    pipeline.set_ip_adapter_scale(0.6)
    seen = [colours(k + 1) for k in range(pictures)]
    expected = theirs(pipeline, ip_adapter_image=[seen] if pictures > 1 else seen[0])
    prompt = ImagePrompt(model=name, images=tuple(map(sent, seen)), scale=0.6)
    plain = ours(engine, model=kind)
    found = ours(engine, model=kind, image_prompts=(prompt,))
    assert level_difference(found, expected) <= 1
    assert level_difference(found, plain.astype(float)) > 10


def test_textual_inversions_draw_what_diffusers_draws(engine, home):
    pipeline = tiny.build("sd1")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    for name in ("ink", "blot"):
        pipeline.load_textual_inversion(str(home / "embeddings" / f"{name}.safetensors"))
    text, negative = "a red <ink> apple on <ink>", "green blot cat"
    expected = theirs(pipeline, text, negative)
    found = ours(
        engine, model="sd1", prompt=text, negative_prompt=negative,
        embeddings=(Embedding(name="ink"), Embedding(name="blot")),
    )  # fmt: skip
    assert level_difference(found, expected) <= 1
    plain = ours(engine, model="sd1", prompt=text, negative_prompt=negative)
    assert level_difference(found, plain.astype(float)) > 10


def test_a_textual_inversion_for_both_encoders_draws_what_diffusers_draws(engine, home):
    pipeline = tiny.build("sdxl")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    state = load_file(home / "embeddings" / "pair.safetensors")
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            {"pair": state[key]}, token="pair",
            text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
            tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
        )  # fmt: skip
    expected = theirs(pipeline, "a red pair apple")
    found = ours(
        engine, model="sdxl", prompt="a red pair apple", embeddings=(Embedding(name="pair"),)
    )
    assert level_difference(found, expected) <= 1
