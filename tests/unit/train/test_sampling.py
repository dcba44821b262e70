import json

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.train.making import picture_config, points_config, save_pictures, train, weights

from mezzotint.errors import InvalidRequest
from mezzotint.images.metadata import read_recipe
from mezzotint.request import GenerationRequest, LatentInput, Lora
from mezzotint.sampling.solvers import plan_table
from mezzotint.train.grids import terminal_picture
from mezzotint.train.sampling import walk
from mezzotint.train.trainer import Trainer

ASK = GenerationRequest(model="x", seed=5, num_inference_steps=3)


def test_sampling_while_training_leaves_the_weights_as_they_are(tmp_path):
    changes = {"network": {"dropout": 0.1}, "loop": {"steps": 4}}
    quiet = weights(train(picture_config(tmp_path, "quiet", **changes)))
    samples = {"every": 1, "count": 2, "num_inference_steps": 2, "scheduler": "ddpm"}
    loud = weights(train(picture_config(tmp_path, "loud", **changes, samples=samples)))
    assert all(torch.equal(quiet[name], loud[name]) for name in quiet)


def test_a_grid_is_refreshed_with_the_recipes_of_its_pictures(tmp_path):
    samples = {"every": 1, "count": 4, "num_inference_steps": 2}
    train(picture_config(tmp_path, samples=samples))
    folder = tmp_path / "run" / "samples"
    assert sorted(p.name for p in folder.iterdir()) == [
        "data.png",  # what is learnt from
        "grid-00000001.png", "grid-00000002.png", "grid.json", "grid.png",
    ]  # fmt: skip
    assert (folder / "grid.png").read_bytes() == (folder / "grid-00000002.png").read_bytes()
    with Image.open(folder / "grid.png") as grid:
        assert grid.size == (38, 38)  # 2 x 2 of 16 px, gaps of 2
    about = json.loads((folder / "grid.json").read_text())
    assert [recipe["request"]["seed"] for recipe in about["recipes"]] == [0, 1, 2, 3]
    assert about["step"] == 2


def test_grids_of_class_runs_take_class_names(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("cat", "dog"):
        save_pictures(folder / name, count=4, captions=False)
    config = picture_config(
        tmp_path, conditioning={"kind": "class"},
        samples={"every": 2, "prompts": ["dog", "0"], "num_inference_steps": 2},
    )  # fmt: skip
    train(config)
    about = json.loads((tmp_path / "run" / "samples" / "grid.json").read_text())
    labels = [recipe["request"]["latent"]["class_label"] for recipe in about["recipes"]]
    assert labels == [1, 0]
    bad = picture_config(
        tmp_path, "bad", conditioning={"kind": "class"}, samples={"every": 1, "prompts": ["cow"]}
    )
    with pytest.raises(InvalidRequest, match=r"must name classes \(cat, dog\), got 'cow'"):
        train(bad)


def test_a_picture_depends_on_its_seed_alone_and_carries_its_recipe(tmp_path):
    trainer = train(picture_config(tmp_path))
    many = trainer.sample(GenerationRequest(model="x", seed=4, num_images=3, num_inference_steps=3))
    one = trainer.sample(ASK)
    assert many.images[1].data == one.images[0].data
    assert many.images[0].data != one.images[0].data
    recipe = read_recipe(one.images[0].data)
    assert recipe["request"]["num_inference_steps"] == 3
    assert recipe["request"]["seed"] == 5


def test_a_reopened_run_answers_the_same_bytes(tmp_path):
    first = train(picture_config(tmp_path)).sample(ASK)
    second = Trainer.open(tmp_path / "run").sample(ASK)
    assert first.images[0].data == second.images[0].data


def test_samples_are_the_means_and_not_the_last_weights(tmp_path):
    trainer = train(picture_config(tmp_path, ema={"decays": [0.999], "warmup": False}))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "run"))
    name = "network.conv_in.weight"
    assert torch.equal(pipeline.unet.conv_in.weight, trainer._state.ema.means[0][name])
    assert not torch.equal(
        pipeline.unet.conv_in.weight, trainer._state.task.modules.state_dict()[name]
    )


def test_a_run_draws_what_diffusers_draws_from_its_folder(tmp_path):
    trainer = train(picture_config(tmp_path, objective={"schedule": "linear", "target": "epsilon"}))
    ours = trainer.sample(ASK).images[0].pixels
    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tmp_path / "run"))
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(num_inference_steps=3, generator=torch.Generator().manual_seed(5)).images[0]
    assert np.abs(ours.astype(int) - np.asarray(theirs).astype(int)).max() <= 1


def test_what_only_the_engine_honours_is_refused_by_name(tmp_path):
    trainer = train(picture_config(tmp_path))
    for field, value in (("width", 21), ("latent", LatentInput(class_label=1))):
        with pytest.raises(InvalidRequest) as caught:
            trainer.sample(GenerationRequest(**{"model": "x", field: value}))
        assert caught.value.field.startswith(field)
    with pytest.raises(InvalidRequest, match="loras needs the engine"):
        trainer.sample(GenerationRequest(model="x", loras=(Lora(name="y"),)))


def test_drawn_values_have_the_units_of_the_data_and_their_own_seeds(tmp_path):
    trainer = train(points_config(tmp_path))
    drawn = trainer.draw(6, seed=3, num_inference_steps=4)
    assert drawn.shape == (6, 2)
    assert 0 < drawn[:, 0].mean() < 200  # the data lies around 100
    np.testing.assert_allclose(
        trainer.draw(2, seed=5, num_inference_steps=4), drawn[2:4], rtol=1e-5
    )
    stochastic = trainer.draw(6, seed=3, num_inference_steps=4, scheduler="ddpm")
    np.testing.assert_allclose(
        trainer.draw(2, seed=5, num_inference_steps=4, scheduler="ddpm"), stochastic[2:4], rtol=1e-4
    )
    with pytest.raises(InvalidRequest, match="has no classes"):
        trainer.draw(2, labels=[0, 1])
    with pytest.raises(InvalidRequest, match="use sample for pictures"):
        train(picture_config(tmp_path, "p")).draw(1)


def test_a_fully_noisy_start_carries_nothing_of_the_data():
    # with a denoiser that only knows its input, the answer is the noise's alone
    table = plan_table("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 4)
    noise = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    seen = []

    def estimate(latents, sigma, timestep):
        seen.append(latents / (sigma[:, None] ** 2 + 1).sqrt())
        return torch.zeros_like(latents)

    walk(estimate, table, noise, [torch.Generator()] * 2)
    torch.testing.assert_close(seen[0].float(), noise, rtol=1e-5, atol=1e-6)


def test_a_terminal_picture_has_two_pixels_to_a_character():
    pixels = np.zeros((4, 2, 3), np.uint8)
    pixels[0, 0] = (255, 1, 2)
    lines = terminal_picture(pixels).split("\n")
    assert len(lines) == 2
    assert lines[0].startswith("\x1b[38;2;255;1;2m\x1b[48;2;0;0;0m▀")


def test_a_finished_run_is_sampled_without_its_data(tmp_path):
    first = train(points_config(tmp_path)).draw(3, num_inference_steps=4)
    (tmp_path / "points.npy").unlink()
    second = Trainer.open(tmp_path / "run").draw(3, num_inference_steps=4)
    np.testing.assert_array_equal(first, second)
