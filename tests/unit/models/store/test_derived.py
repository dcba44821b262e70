"""A derived model is its base with a LoRA in its weights, and refuses another base."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.cards import builtin_cards
from mezzotint.models.formats.identify import identify
from mezzotint.models.store.derived import LORA_FILE, describe_derived
from mezzotint.models.store.loading import load_path

LAYERS = {  # name: (out, in) and the kernel's side
    "down_blocks.0.resnets.0.conv1": (64, 64, 3),
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (128, 384, 0),
    "time_embedding.linear_1": (256, 64, 0),
}


@pytest.fixture
def folder(tmp_path):
    """A change of three layers of plate, with a solver of its own."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, (rows, columns, side) in LAYERS.items():
        kernel = (side, side) if side else ()
        one = (1, 1) if side else ()
        down = torch.randn(4, columns, *kernel, generator=generator) * 0.1
        up = torch.randn(rows, 4, *one, generator=generator) * 0.1
        state[f"unet.{name}.lora_A.weight"], state[f"unet.{name}.lora_B.weight"] = down, up
    path = tmp_path / "quick"
    (path / "scheduler").mkdir(parents=True)
    save_file(state, path / LORA_FILE, metadata={"format": "pt"})
    (path / "config.json").write_text(
        json.dumps(describe_derived("plate", steps=4, guidance_scale=1.0))
    )
    scheduler = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path


def test_weights_are_those_that_diffusers_fuses(folder):
    assert identify(folder) == "derived"
    model = load_path(folder, name="plate-quick")
    network = model.networks["denoiser"]
    ours = getattr(network, "source", network).module
    pipeline = diffusers.DiffusionPipeline.from_pretrained(builtin_cards()["plate"].path)
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(str(folder), weight_name=LORA_FILE)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    fused = pipeline.unet.state_dict()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, fused[name].float(), rtol=1e-4, atol=1e-5)
    changed = {name for name in before if not torch.equal(before[name], fused[name])}
    assert changed == {f"{name}.weight" for name in LAYERS}


def test_the_rest_is_the_base_and_the_solver_its_own(folder):
    model, base = load_path(folder, name="plate-quick"), load_path(builtin_cards()["plate"].path)
    assert model.spec.default_scheduler == "ddim"
    assert (model.spec.default_steps, model.spec.default_guidance_scale) == (4, 1.0)
    assert model.spec.scheduler_config["_class_name"] == "DDIMScheduler"
    assert model.spec.default_size == base.spec.default_size
    assert model.spec.digest != base.spec.digest


def test_a_change_of_other_weights_is_refused(folder):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "base_sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="was learnt on plate with weights of sha256 0000"):
        load_path(folder)


@pytest.mark.parametrize("base", ["plate/../plate", "absent", "/tmp", ""])
def test_a_base_is_a_name_of_a_built_in_model(folder, base):
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, "base": base}))
    with pytest.raises(CardError, match="base must be a built-in model"):
        load_path(folder)


def test_a_change_that_does_not_fit_is_refused_when_it_is_built(folder, tmp_path):
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    state = {
        "unet.conv_in.lora_A.weight": torch.zeros(2, 5, 3, 3),
        "unet.conv_in.lora_B.weight": torch.zeros(64, 2, 1, 1),
    }
    save_file(state, wrong / LORA_FILE, metadata={"format": "pt"})
    network = load_path(wrong).networks["denoiser"]
    source = getattr(network, "source", network)
    with pytest.raises(WeightsError, match="does not fit this model"):
        assert source.module
