"""LoRAs whose layers are named with underscores, or as Lumina 2 was published."""

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lumina2_lora_to_diffusers as converted_by_diffusers,
)

from mezzotint.errors import WeightsError
from mezzotint.models.adapters.flat_layers import from_flat

WIDTH, KEYS = 2304, 768  # of Lumina 2: several queries share keys and values
SHAPES = {
    "attention.qkv": (WIDTH, WIDTH + 2 * KEYS),
    "attention.out": (WIDTH, WIDTH),
    "feed_forward.w1": (WIDTH, 8),
    "feed_forward.w2": (8, WIDTH),
    "feed_forward.w3": (WIDTH, 8),
    "adaLN_modulation.1": (16, 4),
}


def published():
    """A LoRA of rank 1 over every layer of one block, in the names of the authors."""
    generator = torch.Generator().manual_seed(4)
    state = {}
    for layer, (inside, outside) in SHAPES.items():
        key = f"diffusion_model.layers.0.{layer}"
        state[f"{key}.lora_A.weight"] = torch.randn((1, inside), generator=generator)
        state[f"{key}.lora_B.weight"] = torch.randn((outside, 1), generator=generator)
    return state


def test_layers_of_lumina_2_are_dealt_out_as_diffusers_deals_them_out():
    state = published()
    wanted = converted_by_diffusers(dict(state))
    found = from_flat(state, "lumina2")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_part_of_the_layers_in_the_names_of_a_trainer_is_enough():
    up, down = torch.randn(16, 2), torch.randn(2, 8)
    stem = "lora_unet_noise_refiner_1_attention_qkv"
    found = from_flat(
        {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up,
         f"{stem}.alpha": torch.tensor(1.0)},
        "lumina2",
    )  # fmt: skip
    layer = "transformer.noise_refiner.1.attn"
    for name, share in zip(("to_q", "to_k", "to_v"), up.split([8, 4, 4]), strict=True):
        assert torch.equal(found[f"{layer}.{name}.lora_A.weight"], down)
        assert torch.equal(found[f"{layer}.{name}.lora_B.weight"], share * 0.5)


def test_underscores_wait_for_the_network_and_other_families_stay_as_they_are():
    stem = "lora_unet_transformer_blocks_0_attn1_to_q"
    state = {
        f"{stem}.lora_down.weight": torch.ones(2, 4),
        f"{stem}.lora_up.weight": torch.ones(4, 2),
    }
    assert list(from_flat(state, "sana")) == [
        "transformer.transformer_blocks_0_attn1_to_q.lora_A.weight",
        "transformer.transformer_blocks_0_attn1_to_q.lora_B.weight",
    ]
    assert from_flat(state, "sd") is state
    dotted = {"diffusion_model.a.b.lora_A.weight": torch.ones(1)}
    assert list(from_flat(dotted, "pixart")) == ["transformer.a.b.lora_A.weight"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"lora_unet_a.lora_down.weight": torch.ones(1, 1)}, "a matrix of the LoRA's layer"),
        ({"lora_unet_a.lora_down.weight": torch.ones(1, 1), "odd": torch.ones(1)}, "for odd of"),
    ],
)
def test_what_fits_no_layer_is_refused(state, said):
    with pytest.raises(WeightsError, match=said):
        from_flat(state, "pixart")
