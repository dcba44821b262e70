"""Every kind of run ends in a folder that the field's own loaders open."""

import json

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.unit.train.making import picture_config, points_config, train, weights

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.families.gan import load_gan
from mezzotint.models.families.runs import load_run
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.train.trainer import Trainer

TEXT = {"conditioning": {"kind": "text"}, "network": {"attention": [0, 1]}}
SOME = {"loop": {"steps": 1}}


@pytest.fixture(scope="module")
def latent(tmp_path_factory):
    """An autoencoder, and a text-conditional model in its latent space."""
    folder = tmp_path_factory.mktemp("latent")
    train(picture_config(folder, "vae", kind="autoencoder"))
    network = {"vae": str(folder / "vae"), "attention": [0, 1]}
    train(picture_config(folder, "sd", network=network, conditioning={"kind": "text"}))
    return folder


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_free_pictures_are_a_pipeline_that_diffusers_draws_with(tmp_path):
    trainer = train(picture_config(tmp_path, **SOME))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "run"))
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == "DDIMPipeline"
    picture = pipeline(
        num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)
    )
    assert picture.images.shape == (1, 16, 16, 3)
    mean = trainer._state.ema.means[0]["network.conv_in.weight"]
    assert torch.equal(pipeline.unet.conv_in.weight, mean)
    model = load_pipeline(tmp_path / "run")
    assert model.spec.family == "unconditional"


@pytest.mark.parametrize(
    ("changes", "network"),
    [
        (
            {"conditioning": {"kind": "text"}, "network": {"attention": [0, 1]}},
            "UNet2DConditionModel",
        ),
        ({"objective": {"schedule": "rectified_flow", "target": "flow"}}, "UNet2DModel"),
        ({"network": {"kind": "dit"}}, "DiTTransformer2DModel"),
    ],
)
def test_what_fits_no_pipeline_is_a_run_that_loads(tmp_path, changes, network):
    trainer = train(picture_config(tmp_path, **changes, **SOME))
    model = load_run(tmp_path / "run")
    assert (model.spec.family, model.description.network) == ("denoiser", network)
    assert model.spec.default_size == (16, 16)
    mean = trainer._state.ema.means[0]
    module = model.networks["denoiser"].module
    for name, value in module.state_dict().items():
        assert torch.equal(value, mean[f"network.{name}"])


def test_what_steers_a_run_is_never_read_from_a_pickle(tmp_path):
    train(picture_config(tmp_path, **TEXT, **SOME))
    encoder = tmp_path / "run" / "text_encoder"
    torch.save(load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle"):
        load_run(tmp_path / "run")
    (encoder / "pytorch_model.bin").unlink()
    with pytest.raises(WeightsError, match="weights missing"):
        load_run(tmp_path / "run")
    (encoder / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(WeightsError, match="cannot load the text_encoder"):
        load_run(tmp_path / "run")


def test_array_runs_answer_in_the_units_of_their_data(tmp_path):
    train(points_config(tmp_path))
    model = load_run(tmp_path / "run")
    data = np.load(tmp_path / "points.npy")
    latents = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    wanted = data.mean(0) + np.array([[0, 0], [1, -1]]) * data.std(0)
    np.testing.assert_allclose(model.values(latents).numpy(), wanted, rtol=1e-5)
    assert model.decode(latents).shape == (2, 3, 64, 64)


def test_a_text_run_in_latents_is_stable_diffusion_to_everybody(latent):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(latent / "sd"))
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    picture = pipeline("a red square", num_inference_steps=2, output_type="np", height=16, width=16)
    assert picture.images.shape == (1, 16, 16, 3)
    model = load_pipeline(latent / "sd")
    assert model.spec.takes_prompt


def test_the_scaling_factor_makes_latents_of_unit_deviation(latent):
    vae = diffusers.AutoencoderKL.from_pretrained(str(latent / "vae" / "vae"))
    trainer = Trainer.open(latent / "vae")
    trainer._prepare(resume=True)
    samples = trainer._data[0].read(range(12))
    with torch.no_grad():
        means = vae.encode(samples).latent_dist.mean * vae.config.scaling_factor
    assert float(means.std()) == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(InvalidRequest, match=r"name it as network\.vae"):
        trainer.model()


def test_a_lora_changes_only_what_it_says_and_loads_in_diffusers(latent, tmp_path):
    config = picture_config(
        latent, "lora", kind="lora", base=str(latent / "sd"), lora={"rank": 2, "alpha": 4.0},
        loop={"steps": 3}, optimizer={"learning_rate": 0.05}, ema={"decays": []},
    )  # fmt: skip
    trainer = train(config)
    assert all(name.startswith("lora.") for name in weights(trainer))
    base = load_file(latent / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    merged = load_file(latent / "lora" / "unet" / "diffusion_pytorch_model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert all(".to_" in name for name in changed)

    def say(unet):
        with torch.no_grad():
            return unet(noise((1, 4, 8, 8)), 500, noise((1, 12, 8), 1)).sample

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(str(latent / "sd"))
    plain = say(pipeline.unet)
    pipeline.load_lora_weights(str(latent / "lora"), weight_name="pytorch_lora_weights.safetensors")
    with_lora = say(pipeline.unet)
    ours = say(diffusers.UNet2DConditionModel.from_pretrained(str(latent / "lora" / "unet")))
    assert (with_lora - plain).abs().max() > 1e-3
    torch.testing.assert_close(with_lora, ours, rtol=1e-4, atol=1e-5)


def test_a_lora_of_layers_that_are_not_there_names_those_that_are(latent):
    config = picture_config(
        latent, "x", kind="lora", base=str(latent / "sd"), lora={"modules": ["q_proj"]}
    )
    with pytest.raises(InvalidRequest, match=r"q_proj are not in .* end in .*to_q"):
        Trainer(config).fit()


def test_a_student_keeps_the_layout_of_its_teacher_and_asks_for_few_steps(latent):
    config = picture_config(
        latent, "student", kind="distill", base=str(latent / "sd"),
        distill={"steps": 2, "teacher_steps": 10},
    )  # fmt: skip
    train(config)
    scheduler = json.loads((latent / "student" / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["_class_name"] == "LCMScheduler"
    model = load_pipeline(latent / "student")
    assert (model.spec.default_scheduler, model.spec.prediction_type) == ("lcm", "v_prediction")
    assert diffusers.DiffusionPipeline.from_pretrained(str(latent / "student"))


def test_going_on_from_a_model_begins_with_its_weights(latent):
    config = picture_config(
        latent, "further", base=str(latent / "sd"), optimizer={"learning_rate": 1e-9},
        loop={"steps": 1},
    )  # fmt: skip
    train(config)
    first = load_file(latent / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    second = load_file(latent / "further" / "unet" / "diffusion_pytorch_model.safetensors")
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-7, rtol=0)


def test_a_base_that_is_no_model_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    config = picture_config(tmp_path, kind="lora", base=str(tmp_path / "empty"))
    with pytest.raises(InvalidRequest, match="neither a diffusers folder nor a run folder"):
        Trainer(config).fit()


@pytest.mark.parametrize("loss", ["dcgan", "relativistic"])
def test_a_gan_run_is_a_gan_folder(tmp_path, loss):
    options = {"loss": loss, "base_channels": 4, "latent_size": 4}
    trainer = train(picture_config(tmp_path, kind="gan", adversarial=options))
    model = load_gan(tmp_path / "run")
    mean = trainer._state.ema.means[0]["generator.main.0.weight"]
    assert torch.equal(model.networks["decoder"].module.main[0].weight, mean)
    assert model.decode(noise((2, 4))).shape == (2, 3, 16, 16)


def test_a_gan_resumes_bit_for_bit(tmp_path):
    options = {"base_channels": 4, "latent_size": 4}
    changes = {"kind": "gan", "adversarial": options}
    whole = weights(train(picture_config(tmp_path, "whole", **changes, loop={"steps": 4})))
    train(picture_config(tmp_path, "parts", **changes, loop={"steps": 2}))
    parts = weights(train(picture_config(tmp_path, "parts", **changes, loop={"steps": 4})))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
