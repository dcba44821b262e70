"""A LoRA of SDXL, SD3 and FLUX learns what diffusers draws with."""

import diffusers
import pytest
import torch
from tests import tiny
from tests.unit.train.making import picture_config, save_pictures, train

from mezzotint.errors import InvalidRequest
from mezzotint.models.adapters.lora import read_lora, with_loras
from mezzotint.models.base import Prompt
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.request import GenerationRequest
from mezzotint.train.tasks.base import Batch
from mezzotint.types import Size

CAPTIONS = ["a red apple", "a green cat"]
LORA = "pytorch_lora_weights.safetensors"


def config_of(tmp_path, family, name="run", **changes):
    save_pictures(tmp_path / "pictures", count=4, side=64)
    room = {
        "kind": "lora",
        "base": str(tiny.folder(family)),
        "data": {"resolution": 64},
        "lora": {"rank": 2},
        "loop": {"steps": 2, "batch_size": 2},
        "optimizer": {"learning_rate": 0.05},
        "ema": {"decays": []},
    }
    return picture_config(tmp_path, name, **{**room, **changes})


def told_by_diffusers(family, pipeline, text):
    """What diffusers' own pipeline tells its network of a text, by our names."""
    if family == "sdxl":
        hidden, _, pooled, _ = pipeline.encode_prompt(text, do_classifier_free_guidance=False)
        ids = torch.tensor([[64, 64, 0, 0, 64, 64]]).float()
        return {"encoder_hidden_states": hidden, "text_embeds": pooled, "time_ids": ids}
    if family == "sd3":
        hidden, _, pooled, _ = pipeline.encode_prompt(
            text, text, text, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": hidden, "pooled_projections": pooled}
    hidden, pooled, _ = pipeline.encode_prompt(text, text)
    return {
        "encoder_hidden_states": hidden,
        "pooled_projections": pooled,
        "guidance": torch.tensor([3.5]),
    }


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_lora_of_a_large_family_is_the_same_here_and_in_diffusers(tmp_path, family):
    trainer = train(config_of(tmp_path, family))
    ground = trainer._state.task.ground

    pipeline = diffusers.DiffusionPipeline.from_pretrained(str(tiny.folder(family)))
    batch = Batch(torch.zeros(2, 3, 64, 64), [0, 0], CAPTIONS)
    told = ground.steer({}, batch, torch.Generator().manual_seed(0), 0.0)
    for k, text in enumerate(CAPTIONS):
        for name, wanted in told_by_diffusers(family, pipeline, text).items():
            have = told[name][k : k + 1]
            if name == "encoder_hidden_states":  # T5's padding may be longer there
                wanted = wanted[:, : have.shape[1]]
            torch.testing.assert_close(have, wanted.float(), rtol=1e-3, atol=1e-4)

    # The run folder, merged, draws what the base draws with the LoRA added per call.
    base, merged = load_pipeline(tiny.folder(family)), load_pipeline(tmp_path / "run")
    changed = with_loras(base, [read_lora(tmp_path / "run" / LORA, family=family)])
    size = Size(64, 64)
    x = torch.randn(1, *base.latent_shape(size), generator=torch.Generator().manual_seed(1))

    def say(model, **more):
        (conditioning,) = model.encode([Prompt(text="a red apple", size=size, **more)])
        inputs = dict(conditioning.items())
        return model.networks["denoiser"](sample=x, timestep=torch.tensor([500.0]), **inputs)[0]

    plain, ours = say(base), say(merged)
    assert (plain - ours).abs().max() > 1e-3
    torch.testing.assert_close(say(changed, lora_scales=(1.0,)), ours, rtol=1e-3, atol=1e-4)
    network = "transformer" if family in ("sd3", "flux") else "unet"
    pipeline.load_lora_weights(str(tmp_path / "run"), weight_name=LORA)
    pipeline.fuse_lora()
    fused = {
        n.replace(".base_layer", ""): p
        for n, p in getattr(pipeline, network).state_dict().items()
        if "lora_" not in n
    }
    for name, value in merged.networks["denoiser"].module.state_dict().items():
        torch.testing.assert_close(value, fused[name], rtol=1e-4, atol=1e-5)
    asked = GenerationRequest(
        model="x", prompt="a cat", seed=1, num_inference_steps=2, width=64, height=64
    )
    drawn = trainer.sample(asked).images[0]
    assert (drawn.width, drawn.height) == (64, 64)


def test_a_dropped_caption_is_what_guidance_compares_with(tmp_path):
    trainer = train(config_of(tmp_path, "sdxl", lora={"rank": 2, "merge": False}))
    ground = trainer._state.task.ground
    batch = Batch(torch.zeros(2, 3, 64, 64), [0, 0], CAPTIONS)
    told = ground.steer({}, batch, torch.Generator().manual_seed(0), 1.1)
    assert not told["encoder_hidden_states"].any()  # SDXL asks for zeros
    assert not told["text_embeds"].any()


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("sdxl", {"kind": "distill"}, 'kind "lora" alone'),
        ("sd3", {"kind": "diffusion"}, 'kind "lora" alone'),
        ("flux", {"data": {"resolution": 60, "fit": "crop"}}, "multiple of"),
    ],
)
def test_what_cannot_be_is_said_before_any_compute(tmp_path, family, changes, words):
    with pytest.raises(InvalidRequest, match=words):
        train(config_of(tmp_path, family, **changes))
