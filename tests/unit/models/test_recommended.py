"""What a bare folder is drawn with, against the figures of model cards and of diffusers' calls."""

import inspect
import json

import diffusers
import pytest
from tests import tiny

from mezzotint.models.cards import request_defaults
from mezzotint.models.families.whole import load_foreign
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.recommended import names_of_model, recommend

XL, SD, SD3 = "StableDiffusionXLPipeline", "StableDiffusionPipeline", "StableDiffusion3Pipeline"
PUBLISHED = [  # pipeline, name of the repository or file, steps, guidance (1 is off)
    (SD, "sd-turbo", 1, 1.0),
    (XL, "sdxl-turbo", 1, 1.0),
    (XL, "sd_xl_turbo_1.0_fp16", 1, 1.0),
    (XL, "DreamShaper-XL-v2-Turbo", 4, 1.0),
    (XL, "sdxl_lightning_2step", 2, 1.0),
    (XL, "SDXL-Lightning-8steps", 8, 1.0),
    (XL, "RealVisXL_V4.0_Lightning", 4, 1.0),
    (XL, "Hyper-SDXL-1step-Unet", 1, 1.0),
    (XL, "dmd2_sdxl_4step", 4, 1.0),
    (SD, "sdxs-512-0.9", 1, 1.0),
    (XL, "playground-v2.5-1024px-aesthetic", 50, 3.0),
    (SD3, "stable-diffusion-3.5-large-turbo", 4, 1.0),
    ("FluxPipeline", "FLUX.1-Krea-dev", 28, 4.5),
    ("FluxKontextPipeline", "FLUX.1-Kontext-dev", 28, 2.5),
    ("ZImagePipeline", "Z-Image-Turbo", 8, 1.0),
    ("QwenImagePipeline", "Qwen-Image-Lightning-4steps-V1.0", 4, 1.0),
    ("QwenImageEditPlusPipeline", "Qwen-Image-Edit-2509", 40, 4.0),
    ("ChromaPipeline", "Chroma1-Flash", 8, 1.0),
    ("CogView4Pipeline", "CogView4-6B", 50, 3.5),
    ("HiDreamImagePipeline", "HiDream-I1-Dev", 28, 1.0),
    ("HiDreamImagePipeline", "HiDream-I1-Fast", 16, 1.0),
    ("PixArtAlphaPipeline", "PixArt-LCM-XL-2-1024-MS", 4, 1.0),
]


@pytest.mark.parametrize(("pipeline", "name", "steps", "scale"), PUBLISHED)
def test_a_name_tells_steps_and_guidance_of_its_model_card(pipeline, name, steps, scale):
    found = recommend(pipeline, names_of_model(name))
    assert (found["default_steps"], found["default_guidance_scale"]) == (steps, scale)


@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        (XL, "stable-diffusion-xl-base-1.0"),
        (SD, "stable-diffusion-v1-5"),
        (SD, "welcome-to-my-model"),
        (SD3, "stable-diffusion-3-medium-diffusers"),
        ("FluxPipeline", "FLUX.1-dev"),
        ("ZImagePipeline", "Z-Image"),
    ],
)
def test_members_like_their_family_have_no_row(pipeline, name):
    assert recommend(pipeline, names_of_model(name), {"guidance_embeds": True}) == {}


@pytest.mark.parametrize(("layers", "steps", "scale"), [(38, 28, 3.5), (24, 40, 4.5)])
def test_stable_diffusion_35_is_known_by_its_configuration(layers, steps, scale):
    config = {"qk_norm": "rms_norm", "num_layers": layers}
    found = recommend(SD3, ["mine"], config)
    assert (found["default_steps"], found["default_guidance_scale"]) == (steps, scale)


def test_a_snapshot_of_the_hubs_cache_is_called_as_its_repository():
    path = "/x/models--stabilityai--sdxl-turbo/snapshots/71153311d3dbb46851df1931d3ca6e939de83304"
    assert names_of_model("mine", path) == ["mine", "sdxl-turbo"]
    assert names_of_model("mine", "", {"_name_or_path": "ByteDance/SDXL-Lightning"})[-1] == (
        "sdxl-lightning"
    )


def defaults_of(family, name):
    return request_defaults(load_pipeline(tiny.folder(family), name=name).spec)


def test_a_bare_folder_means_what_its_authors_recommend():
    plain = defaults_of("sdxl", "mine")
    assert (plain["num_inference_steps"], plain["guidance_scale"]) == (30, 5.0)
    turbo = defaults_of("sdxl", "sdxl-turbo")
    assert turbo == plain | {
        "num_inference_steps": 1, "guidance_scale": 1.0, "sigma_schedule": "trailing",
        "width": 512, "height": 512,
    }  # fmt: skip
    lightning = defaults_of("sdxl", "sdxl-lightning-4step")
    assert lightning["scheduler"] == "euler"
    assert lightning["sigma_schedule"] == "trailing"
    assert defaults_of("sd1", "lcm-sd")["scheduler"] == "lcm"


def test_a_folder_that_was_saved_remembers_where_it_came_from(tmp_path):
    index = tiny.copy_of("sd3", tmp_path / "copy") / "model_index.json"
    said = json.loads(index.read_text())
    index.write_text(json.dumps(said | {"_name_or_path": "x/stable-diffusion-3.5-large-turbo"}))
    spec = load_pipeline(index.parent, name="mine").spec
    assert (spec.default_steps, spec.default_guidance_scale) == (4, 1.0)


NATIVE = {
    "sd3": diffusers.StableDiffusion3Pipeline,
    "z_image": diffusers.ZImagePipeline,
    "qwen_image": diffusers.QwenImagePipeline,
    "flux": diffusers.FluxPipeline,
    "flux2_klein": diffusers.Flux2KleinPipeline,
    "pixart_alpha": diffusers.PixArtAlphaPipeline,
    "pixart_sigma": diffusers.PixArtSigmaPipeline,
    "sana": diffusers.SanaPipeline,
}


@pytest.mark.parametrize("family", NATIVE)
def test_a_family_without_more_said_draws_in_the_steps_of_its_pipeline(family):
    call = inspect.signature(NATIVE[family].__call__).parameters
    found = defaults_of(family, "mine")
    assert found["num_inference_steps"] == call["num_inference_steps"].default


def test_a_whole_pipeline_draws_at_the_size_that_it_was_made_for(tmp_path):
    pipeline = diffusers.FluxKontextPipeline(**tiny.build("flux").components)
    pipeline.save_pretrained(tmp_path)
    spec = load_foreign(tmp_path).spec
    assert spec.default_size == (1024, 1024)
    assert (spec.default_steps, spec.default_guidance_scale) == (28, 2.5)
