"""ControlNets and IP-Adapters of transformers against diffusers' own pipelines, from one noise.

The autoencoders say the mean alone: pipelines draw what a ControlNet reads of its picture, here
it is the mean.
"""

import functools

import numpy as np
import pytest
import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    QwenImageControlNetPipeline,
    StableDiffusion3ControlNetPipeline,
)
from diffusers.models import FluxMultiControlNetModel, SD3MultiControlNetModel
from diffusers.models.controlnets.controlnet_qwenimage import QwenImageMultiControlNetModel
from tests import adapters_tiny, tiny
from tests.parity.test_adapters import colours, level_difference, sent
from transformers import SiglipImageProcessor

from mezzotint.errors import InvalidRequest
from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import Control, GenerationRequest, ImagePrompt
from mezzotint.service.engine import Engine

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers, numpy 2

STEPS, WIDTH, HEIGHT = 4, 64, 48
SMALL_TABLE = 6  # of 8 px each
CASES = {
    # name: control pipeline, several of them as one, call
    "flux": (FluxControlNetPipeline, FluxMultiControlNetModel, {"guidance_scale": 3.5}),
    "sd3": (
        StableDiffusion3ControlNetPipeline,
        SD3MultiControlNetModel,
        {"guidance_scale": 4.0, "negative_prompt": "green"},
    ),
    "qwen_image": (
        QwenImageControlNetPipeline,
        QwenImageMultiControlNetModel,
        {"true_cfg_scale": 3.5, "negative_prompt": "green"},
    ),
}
OURS = {
    "flux": {"guidance_scale": 3.5},
    "sd3": {"guidance_scale": 4.0, "negative_prompt": "green"},
    "qwen_image": {"guidance_scale": 3.5, "negative_prompt": "green"},
}


def shown(seed=0):
    """A control picture of the size of what is drawn."""
    return colours(seed).resize((WIDTH, HEIGHT))


@functools.cache
def pipeline_of(name):
    return adapters_tiny.deepen(tiny.build(name))


@functools.cache
def schnell_pipeline():
    pipeline = adapters_tiny.deepen(tiny.build("flux"))
    old = pipeline.transformer
    with tiny.seeded(3):
        pipeline.transformer = type(old).from_config({**old.config, "guidance_embeds": False})
    tiny.stir(pipeline.transformer, 3)
    return pipeline


@functools.cache
def xlabs_pipeline():
    pipeline = tiny.build("flux")
    pipeline.register_modules(vae=tiny.vae(4, levels=4, scaling=0.3611, shift=0.1159, quant=False))
    pipeline.vae_scale_factor = 8
    return adapters_tiny.deepen(pipeline)


def net_of(name, number=1, **config):
    return adapters_tiny.transformer_controlnet(pipeline_of(name), seed=90 + number, **config)


NETS = {
    "flux-1": lambda: net_of("flux"),
    "flux-2": lambda: net_of("flux", 2),
    "flux-union": lambda: net_of("flux", 3, num_mode=5),
    "flux-unguided": lambda: net_of("flux", 4, guidance_embeds=False, num_single_layers=0),
    "sd3-1": lambda: net_of("sd3"),
    "sd3-2": lambda: net_of("sd3", 2, force_zeros_for_pooled_projection=True),
    "sd3-3": lambda: net_of("sd3", 3, force_zeros_for_pooled_projection=False),
    "sd3-small": lambda: net_of("sd3", 5, pos_embed_max_size=SMALL_TABLE),
    "sd3-textless": lambda: net_of("sd3", 4, joint_attention_dim=None, use_pos_embed=False),
    "qwen_image-1": lambda: net_of("qwen_image"),
    "xlabs": lambda: adapters_tiny.transformer_controlnet(
        xlabs_pipeline(),
        seed=99,
        num_single_layers=0,
        conditioning_embedding_channels=4,
        patch_size=2,
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for name, make in NETS.items():
        make().save_pretrained(home / "controlnets" / name)
    adapters_tiny.flux_ip_adapter(pipeline_of("flux"), home / "ip_adapters" / "flux")
    xlabs = home / "ip_adapters" / "flux-xlabs"
    adapters_tiny.flux_ip_adapter(pipeline_of("flux"), xlabs, seed=66, is_xlabs=True)
    adapters_tiny.sd3_ip_adapter(pipeline_of("sd3"), home / "ip_adapters" / "sd3")
    return home


@pytest.fixture(scope="module")
def engine(home):
    torch.set_num_threads(1)
    models = [from_pipeline(pipeline_of(name), name=name) for name in CASES]
    models.append(from_pipeline(xlabs_pipeline(), name="xlabs"))
    models.append(from_pipeline(schnell_pipeline(), name="schnell"))
    with Engine(models, device="cpu", home=home, backend="torch") as started:
        yield started


def ours(engine, name, *, model=None, **fields):
    asked = {
        "model": model or name, "prompt": "a red apple", "seed": 7, "width": WIDTH,
        "height": HEIGHT, "num_inference_steps": STEPS, **OURS[name], **fields,
    }  # fmt: skip
    return engine.generate(GenerationRequest(**asked)).images[0].pixels


def noise_of(pipeline, name):
    """What our seed draws, packed as the pipeline packs it."""
    scale = pipeline.vae_scale_factor
    channels = pipeline.transformer.config.in_channels // (1 if name == "sd3" else 4)
    shape = (1, channels, HEIGHT // scale, WIDTH // scale)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    if name == "sd3":
        return noise
    if name == "qwen_image":
        return pipeline._pack_latents(noise[:, None], *shape)
    return pipeline._pack_latents(noise, *shape)


def theirs(pipeline, name, **options):
    pipeline.set_progress_bar_config(disable=True)
    call = {
        "width": WIDTH, "height": HEIGHT, "num_inference_steps": STEPS, "output_type": "np",
        "generator": torch.Generator().manual_seed(7), "latents": noise_of(pipeline, name),
        **CASES[name][2], **options,
    }  # fmt: skip
    return np.round(pipeline("a red apple", **call).images[0] * 255)


def with_nets(pipeline, name, nets):
    cls, several, _ = CASES[name]
    parts = {k: v for k, v in pipeline.components.items() if k not in ("image_encoder",)}
    parts.pop("feature_extractor", None)
    return cls(**parts, controlnet=several(nets) if isinstance(nets, list) else nets)


@pytest.mark.parametrize(
    "net", ["flux-1", "flux-unguided", "sd3-2", "sd3-3", "sd3-textless", "qwen_image-1"]
)
def test_a_controlnet_draws_what_diffusers_draws(engine, net):
    name = net.rpartition("-")[0]
    expected = theirs(
        with_nets(pipeline_of(name), name, NETS[net]()),
        name,
        control_image=shown(),
        controlnet_conditioning_scale=0.7,
        control_guidance_end=0.8,
    )
    control = Control(model=net, image=sent(shown()), scale=0.7, end=0.8)
    found = ours(engine, name, controls=(control,))
    assert level_difference(found, expected) <= 1
    assert level_difference(found, ours(engine, name).astype(float)) > 5


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_two_controlnets_with_ranges_draw_what_diffusers_draws(engine, name):
    nets = [f"{name}-{k}" for k in (1, 2)]
    expected = theirs(
        with_nets(pipeline_of(name), name, [NETS[net]() for net in nets]),
        name,
        control_image=[shown(), shown(3)],
        controlnet_conditioning_scale=[0.9, 0.6],
        control_guidance_start=[0.0, 0.25],
        control_guidance_end=[0.5, 1.0],
        **({"control_mode": [None, None]} if name == "flux" else {}),
    )
    controls = (
        Control(model=nets[0], image=sent(shown()), scale=0.9, end=0.5),
        Control(model=nets[1], image=sent(shown(3)), scale=0.6, start=0.25),
    )
    assert level_difference(ours(engine, name, controls=controls), expected) <= 1


@pytest.mark.parametrize("asked", [5.0, None])
def test_a_controlnet_with_guidance_steers_a_flux_that_has_none(engine, asked):
    pipeline = with_nets(schnell_pipeline(), "flux", NETS["flux-1"]())
    expected = theirs(
        pipeline,
        "flux",
        control_image=shown(),
        controlnet_conditioning_scale=0.8,
        guidance_scale=asked or 3.5,
    )
    control = Control(model="flux-1", image=sent(shown()), scale=0.8)
    found = ours(engine, "flux", model="schnell", controls=(control,), guidance_scale=asked)
    assert level_difference(found, expected) <= 1
    other = ours(engine, "flux", model="schnell", controls=(control,), guidance_scale=9.0)
    assert (found != other).any()


def test_a_controlnet_of_sd3_with_a_small_table_of_places_says_how_far_it_reaches(engine):
    control = Control(model="sd3-small", image=sent(shown()), scale=0.7)
    with pytest.raises(InvalidRequest, match=r"width must be at most 48 px with .* got 64"):
        ours(engine, "sd3", controls=(control,), width=64, height=48)
    ours(engine, "sd3", controls=(control,), width=48, height=48)


def test_a_union_follows_the_mode_that_it_is_told(engine):
    net = NETS["flux-union"]()
    expected = theirs(
        with_nets(pipeline_of("flux"), "flux", [net]),
        "flux",
        control_image=[shown(), shown(3)],
        control_mode=[4, 2],
        controlnet_conditioning_scale=[0.7, 0.5],
        control_guidance_start=[0.0, 0.0],
        control_guidance_end=[1.0, 1.0],
    )
    controls = (
        Control(model="flux-union", image=sent(shown()), scale=0.7, mode=4),
        Control(model="flux-union", image=sent(shown(3)), scale=0.5, mode=2),
    )
    found = ours(engine, "flux", controls=controls)
    assert level_difference(found, expected) <= 1
    others = (controls[0], Control(model="flux-union", image=sent(shown(3)), scale=0.5, mode=0))
    assert (found != ours(engine, "flux", controls=others)).any()


def test_several_pictures_of_qwen_image_draw_what_diffusers_draws(engine):
    net = NETS["qwen_image-1"]()
    expected = theirs(
        with_nets(pipeline_of("qwen_image"), "qwen_image", [net]),
        "qwen_image",
        control_image=[shown(), shown(3)],
        controlnet_conditioning_scale=[0.7, 0.5],
    )
    controls = (
        Control(model="qwen_image-1", image=sent(shown()), scale=0.7),
        Control(model="qwen_image-1", image=sent(shown(3)), scale=0.5),
    )
    assert level_difference(ours(engine, "qwen_image", controls=controls), expected) <= 1


def test_a_controlnet_that_reads_pixels_and_goes_round_draws_what_diffusers_draws(engine):
    pipeline = with_nets(xlabs_pipeline(), "flux", NETS["xlabs"]())
    expected = theirs(pipeline, "flux", control_image=shown(), controlnet_conditioning_scale=0.8)
    control = Control(model="xlabs", image=sent(shown()), scale=0.8)
    found = ours(engine, "flux", model="xlabs", controls=(control,))
    assert isinstance(pipeline.controlnet, FluxControlNetModel)
    assert level_difference(found, expected) <= 1
    assert level_difference(found, ours(engine, "flux", model="xlabs").astype(float)) > 5


@pytest.mark.parametrize("names", [("flux",), ("flux-xlabs", "flux")])
def test_an_ip_adapter_of_flux_draws_what_diffusers_draws(engine, home, names):
    pipeline = adapters_tiny.deepen(tiny.build("flux"))
    folder = home / "ip_adapters"
    pipeline.load_ip_adapter(
        [str(folder / name) for name in names],
        subfolder=[""] * len(names),
        weight_name=["ip-adapter.safetensors"] * len(names),
        image_encoder_pretrained_model_name_or_path=str(folder / names[0]),
        image_encoder_subfolder="image_encoder",
        image_encoder_dtype=torch.float32,
    )
    scales = [0.6, 0.4][: len(names)]
    pipeline.set_ip_adapter_scale(scales if len(names) > 1 else scales[0])
    seen = [colours(k + 1) for k in range(len(names))]
    expected = theirs(pipeline, "flux", ip_adapter_image=seen)
    prompts = tuple(
        ImagePrompt(model=name, images=(sent(picture),), scale=scale)
        for name, picture, scale in zip(names, seen, scales, strict=True)
    )
    found = ours(engine, "flux", image_prompts=prompts)
    assert level_difference(found, expected) <= 1
    assert level_difference(found, ours(engine, "flux").astype(float)) > 5


def test_an_ip_adapter_of_stable_diffusion_3_draws_what_diffusers_draws(engine, tmp_path):
    pipeline = adapters_tiny.deepen(tiny.build("sd3"))
    encoder, state = adapters_tiny.sd3_ip_adapter(pipeline, tmp_path / "again")
    sight = SiglipImageProcessor(size={"height": 32, "width": 32})
    pipeline.register_modules(image_encoder=encoder, feature_extractor=sight)
    pipeline.load_ip_adapter(
        {
            part: {k.removeprefix(f"{part}."): v for k, v in state.items() if k.startswith(part)}
            for part in ("image_proj", "ip_adapter")
        }
    )
    pipeline.set_ip_adapter_scale(0.6)
    expected = theirs(pipeline, "sd3", ip_adapter_image=colours(2))
    prompt = ImagePrompt(model="sd3", images=(sent(colours(2)),), scale=0.6)
    found = ours(engine, "sd3", image_prompts=(prompt,))
    assert level_difference(found, expected) <= 1
    assert level_difference(found, ours(engine, "sd3").astype(float)) > 5
