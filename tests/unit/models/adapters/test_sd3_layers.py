"""LoRAs of kohya's trainer for Stable Diffusion 3 against the same in peft's layout."""

import pytest
import torch
from safetensors.torch import save_file

from mezzotint.errors import WeightsError
from mezzotint.models.adapters.lora import read_lora

BLOCK = "transformer.transformer_blocks.1."
FUSED = ["attn.to_q", "attn.to_k", "attn.to_v"]


def test_joined_layers_are_three_and_alpha_is_worked_in(tmp_path):
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(4, 16, generator=generator), torch.randn(48, 4, generator=generator)
    out = torch.randn(16, 4, generator=generator)
    kohya = {
        "lora_unet_joint_blocks_1_x_block_attn_qkv.lora_down.weight": down,
        "lora_unet_joint_blocks_1_x_block_attn_qkv.lora_up.weight": up,
        "lora_unet_joint_blocks_1_x_block_attn_qkv.alpha": torch.tensor(2.0),
        "lora_unet_joint_blocks_1_context_block_attn_proj.lora_down.weight": down.clone(),
        "lora_unet_joint_blocks_1_context_block_attn_proj.lora_up.weight": out,
    }
    peft = {}
    for third, layer in enumerate(FUSED):
        peft[f"{BLOCK}{layer}.lora_A.weight"] = down.clone()
        peft[f"{BLOCK}{layer}.lora_B.weight"] = up[16 * third : 16 * (third + 1)] * 0.5
    peft[f"{BLOCK}attn.to_add_out.lora_A.weight"] = down.clone()
    peft[f"{BLOCK}attn.to_add_out.lora_B.weight"] = out.clone()
    found = []
    for name, state in (("kohya", kohya), ("peft", peft)):
        save_file(state, tmp_path / f"{name}.safetensors")
        lora = read_lora(tmp_path / f"{name}.safetensors", family="sd3")
        found.append(lora.pairs["denoiser"])
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == 4
    for layer, pair in found[0].items():
        other = found[1][layer]
        assert torch.equal(pair.down, other.down)
        assert torch.equal(pair.up * pair.factor, other.up * other.factor)


@pytest.mark.parametrize(
    "name",
    ["lora_unet_joint_blocks_0_x_block_odd", "lora_te3_encoder_block_0_layer_0_SelfAttention_q"],
)
def test_a_layer_without_counterpart_is_named(name, tmp_path):
    stem = "lora_unet_joint_blocks_0_x_block_attn_proj"
    pair = {"lora_down.weight": torch.zeros(2, 8), "lora_up.weight": torch.zeros(8, 2)}
    state = {f"{one}.{kind}": t.clone() for one in (stem, name) for kind, t in pair.items()}
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(WeightsError, match=f"is known for {name}"):
        read_lora(tmp_path / "odd.safetensors", family="sd3")
