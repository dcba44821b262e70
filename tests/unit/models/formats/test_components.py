import json
import shutil

import pytest
import torch
from tests import tiny

from mezzotint.errors import InvalidRequest, ShapeError, WeightsError
from mezzotint.models.base import Conditioning, Model, Prompt
from mezzotint.models.formats.components import from_components, from_pipeline
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.types import Size

NAMES = ["sd1", "bert_sd", "sdxl", "sd3", "flux", "ddpm", "dit"]


SIZE = Size(64, 64)


def answers(model, size=SIZE):
    """Conditioning, denoised latents and pictures of fixed inputs."""
    label = 3 if model.spec.family == "dit" else None
    prompts = [
        Prompt(text="a red apple", size=size, class_label=label),
        Prompt(size=size, negative=True),
    ]
    conditioning = Conditioning.stack(model.encode(prompts))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *model.latent_shape(size), generator=generator)
    denoised = model.denoiser(latents, torch.tensor([0.5, 0.9]), conditioning)
    return [*conditioning.values(), denoised, model.decode(denoised)]


@pytest.mark.parametrize("name", NAMES)
def test_components_equal_their_folder(name):
    ours = from_pipeline(tiny.build(name))
    theirs = load_pipeline(tiny.folder(name))
    for one, other in zip(answers(ours), answers(theirs), strict=True):
        assert torch.equal(one, other)
    assert ours.spec.family == theirs.spec.family
    assert ours.spec.prediction_type == theirs.spec.prediction_type


def test_components_are_not_changed():
    pipeline = tiny.build("sd1")
    pipeline.unet.train().requires_grad_(True)
    model = Model.from_components(
        tokenizer=pipeline.tokenizer,
        text_encoder=pipeline.text_encoder,
        unet=pipeline.unet,
        vae=pipeline.vae,
        scheduler=pipeline.scheduler,
    )
    answers(model)
    assert pipeline.unet.training
    assert all(p.requires_grad for p in pipeline.unet.parameters())
    assert type(pipeline.unet.time_embedding.linear_1) is torch.nn.Linear
    own = model.networks["denoiser"].module
    assert own.conv_in.weight.data_ptr() == pipeline.unet.conv_in.weight.data_ptr()


def test_digest_follows_the_weights():
    first, second = tiny.build("sd1"), tiny.build("sd1")
    assert from_pipeline(first).spec.digest == from_pipeline(second).spec.digest
    second.unet.conv_in.weight.data[0, 0, 0, 0] += 1
    assert from_pipeline(first).spec.digest != from_pipeline(second).spec.digest


def mixed(**changes):
    pipeline = tiny.build("sd1")
    names = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
    return from_components(**{**{n: getattr(pipeline, n) for n in names}, **changes})


def test_parts_that_do_not_fit_say_which_and_why():
    with pytest.raises(ShapeError, match="unet takes 4 latent channels, vae makes 8"):
        mixed(vae=tiny.vae(8))
    with pytest.raises(
        ShapeError, match="unet reads text states of width 32, text_encoder makes 48"
    ):
        mixed(text_encoder=tiny.clip_text(tiny.clip_tokenizer(), width=48))
    with pytest.raises(ShapeError, match=r"tokenizer has \d+ tokens, text_encoder knows \d+"):
        mixed(text_encoder=tiny.bert_text(tiny.bert_tokenizer()))


def test_missing_and_unknown_parts_are_named():
    with pytest.raises(InvalidRequest, match="vae is missing; a StableDiffusionPipeline needs"):
        mixed(vae=None)
    with pytest.raises(InvalidRequest, match="a unet or a transformer is needed"):
        mixed(unet=None)
    with pytest.raises(InvalidRequest, match="unknown component 'unett'"):
        mixed(unett=1)
    with pytest.raises(InvalidRequest, match="vae must be a torch module, got int"):
        mixed(vae=3)
    with pytest.raises(
        InvalidRequest, match="unet is a AutoencoderKL; known: UNet2DConditionModel"
    ):
        mixed(unet=tiny.vae())
    with pytest.raises(InvalidRequest, match="must be a diffusers pipeline, got int"):
        from_pipeline(3)


def test_unet_of_a_refiner_width_is_refused_for_its_added_vector():
    pipeline = tiny.build("sdxl")
    pipeline.text_encoder_2 = tiny.clip_text(pipeline.tokenizer_2, width=24, projection=16)
    with pytest.raises(ShapeError, match="unet adds a vector of 72 numbers"):
        from_pipeline(pipeline)


def test_a_sana_sprint_is_no_sana():
    pipeline = tiny.build("sana")
    pipeline.transformer.register_to_config(guidance_embeds=True)
    with pytest.raises(WeightsError, match="is a Sana Sprint"):
        from_pipeline(pipeline)


@pytest.mark.parametrize(("name", "window"), [("pixart_alpha", 120), ("pixart_sigma", 300)])
def test_the_two_pixarts_are_told_apart(name, window):
    pipeline = tiny.build(name)
    assert from_pipeline(pipeline).spec.token_limit == window
    pipeline.transformer.register_to_config(use_additional_conditions=None)
    assert from_pipeline(pipeline).spec.token_limit == window  # by the pipeline's own name


@pytest.mark.parametrize("name", ["pixart_sigma", "sana"])
@pytest.mark.parametrize(("side", "longest"), [(1024, 2048), (2048, 4096), (4096, 8192)])
def test_the_longest_side_is_that_of_the_lists_of_the_pipeline(name, side, longest):
    pipeline = tiny.build(name)
    pipeline.transformer.register_to_config(sample_size=side // pipeline.vae_scale_factor)
    spec = from_pipeline(pipeline).spec
    assert (tuple(spec.default_size), spec.max_size_px) == ((side, side), longest)


def test_a_pixart_whose_files_name_the_class_of_their_day_is_read(tmp_path):
    folder = tiny.folder("pixart_alpha")
    old = shutil.copytree(folder, tmp_path / "old")
    index = json.loads((old / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "Transformer2DModel"]
    (old / "model_index.json").write_text(json.dumps(index))
    config = json.loads((old / "transformer" / "config.json").read_text())
    config["_class_name"] = "Transformer2DModel"
    del config["use_additional_conditions"]
    (old / "transformer" / "config.json").write_text(json.dumps(config))
    found, wanted = answers(load_pipeline(old)), answers(load_pipeline(folder))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_text_of_another_width_is_named():
    pipeline = tiny.build("lumina2")
    pipeline.transformer.register_to_config(cap_feat_dim=64)
    with pytest.raises(ShapeError, match="reads text states of width 64, text_encoder makes 32"):
        from_pipeline(pipeline)
