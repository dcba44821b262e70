"""``Trainer.sample`` and the engine on the exported run folder: the same file, byte for byte."""

import pytest
import torch
from tests.unit.train.making import picture_config, points_config, save_pictures, train

from mezzotint.request import GenerationRequest, LatentInput
from mezzotint.service.engine import Engine

RUNS = {
    "free pictures": (picture_config, {}, {}),
    "flow": (picture_config, {"objective": {"schedule": "rectified_flow", "target": "flow"}}, {}),
    "zero terminal": (
        picture_config,
        {"objective": {"schedule": "scaled_linear", "zero_terminal_snr": True}},
        {"scheduler": "ddpm"},
    ),
    "text": (
        picture_config,
        {"conditioning": {"kind": "text"}, "network": {"attention": [0, 1]}},
        {"prompt": "a red square", "negative_prompt": "blue", "guidance_scale": 2.5},
    ),
    "text in latents": (
        picture_config,
        {"conditioning": {"kind": "text"}, "network": {"attention": [0, 1]}},
        {"prompt": "a green square", "guidance_scale": 2.0, "scheduler": "unipc"},
    ),
    "classes": (
        picture_config,
        {"conditioning": {"kind": "class"}},
        {"latent": LatentInput(class_label=1), "scheduler": "dpmpp_2m"},
    ),
    "points": (points_config, {}, {"scheduler": "euler"}),
    "gan": (
        picture_config,
        {"kind": "gan", "adversarial": {"base_channels": 4, "latent_size": 4}},
        {"latent": LatentInput(truncation=0.7)},
    ),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_draws_the_same_bytes_in_the_trainer_and_in_the_engine(tmp_path, kind):
    torch.set_num_threads(1)
    maker, changes, asked = RUNS[kind]
    if kind == "classes":
        for name in ("cat", "dog"):
            save_pictures(tmp_path / "pictures" / name, count=4, captions=False)
    if kind == "text in latents":
        train(picture_config(tmp_path, "vae", kind="autoencoder"))
        changes = {**changes, "network": {**changes["network"], "vae": str(tmp_path / "vae")}}
    trainer = train(maker(tmp_path, **changes, loop={"steps": 2}))
    steps = {} if kind == "gan" else {"num_inference_steps": 3}
    request = GenerationRequest(
        model=str(tmp_path / "run"), seed=11, num_images=2, **steps, **asked
    )
    ours = trainer.sample(request)
    with Engine(device="cpu", home=tmp_path / "home", backend="torch") as engine:
        theirs = engine.generate(request)
    for first, second in zip(ours.images, theirs.images, strict=True):
        assert (first.pixels == second.pixels).all()
        assert first.recipe == second.recipe
        assert first.data == second.data
