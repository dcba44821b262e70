"""The aesthetic gate with weights of the user's own, against transformers itself."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.tiny import stir

from mezzotint.errors import WeightsError
from mezzotint.gates.aesthetic import AestheticGate
from mezzotint.gates.judge import GateJudge
from mezzotint.request import Gates, GateSettings


@pytest.fixture
def folder(tmp_path):
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=32, patch_size=8, projection_dim=12,
    )  # fmt: skip
    target = tmp_path / "aesthetic"
    stir(CLIPVisionModelWithProjection(config), 4).save_pretrained(target / "clip")
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(target / "clip")
    return target


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pixels():
    return np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def embedding(folder):
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(folder / "clip").eval()
    processor = CLIPImageProcessor.from_pretrained(folder / "clip")
    inputs = processor(Image.fromarray(pixels()), return_tensors="pt")
    with torch.no_grad():
        made = model(**inputs).image_embeds
    return (made / made.norm(dim=-1, keepdim=True)).double()


def test_a_linear_head_scores_the_normalised_embedding(folder):
    weight, bias = random(1, 12), random(1, seed=1)
    save_file({"weight": weight, "bias": bias}, folder / "head.safetensors")
    expected = float(embedding(folder) @ weight.double().T + bias.double())
    assert AestheticGate(folder).score(pixels()).value == pytest.approx(expected, abs=1e-5)


def test_a_head_of_several_layers_is_applied_in_the_order_of_its_numbers(folder):
    widths = {"layers.0": (8, 12), "layers.2": (6, 8), "layers.10": (1, 6)}
    state, value = {}, embedding(folder)
    for k, (name, shape) in enumerate(widths.items()):
        state[f"{name}.weight"], state[f"{name}.bias"] = random(*shape, seed=k), random(shape[0])
        value = value @ state[f"{name}.weight"].double().T + state[f"{name}.bias"].double()
    save_file(state, folder / "head.safetensors")
    assert AestheticGate(folder).score(pixels()).value == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": random(2, 12)}, "must end in one number"),
        ({"weight": random(1, 7)}, "takes embeddings of 7 numbers, clip makes 12"),
        ({"other": random(3)}, "is no head"),
    ],
)
def test_heads_that_do_not_fit_are_refused(folder, state, message):
    save_file(state, folder / "head.safetensors")
    with pytest.raises(WeightsError, match=message):
        AestheticGate(folder)


def test_missing_files_are_named(folder, tmp_path):
    with pytest.raises(WeightsError, match="expected the head of the aesthetic gate"):
        AestheticGate(folder)
    with pytest.raises(WeightsError, match="expected the folder clip"):
        AestheticGate(tmp_path / "nowhere")


def test_the_judge_finds_it_in_the_users_folder_before_the_built_in_one(folder, tmp_path):
    save_file({"weight": random(1, 12)}, folder / "head.safetensors")
    asked = Gates(gates=(("aesthetic", GateSettings(threshold=-100.0)),))
    judge = GateJudge(tmp_path)
    assert "aesthetic" in judge.names()
    policy = judge.policy(asked)
    assert not policy.rules[0].passes_below
    assert judge.judge(pixels(), policy)[0].passed
    built_in = GateJudge(tmp_path / "empty")
    assert (
        built_in.judge(pixels(), built_in.policy(asked))[0].score
        != judge.judge(pixels(), policy)[0].score
    )
