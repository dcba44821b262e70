"""FLUX.1 as its authors name it, at its own width: diffusers' translation knows no other."""

import hashlib

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.quantizers.gguf.utils import GGUFParameter
from gguf import GGMLQuantizationType as Kind

from mezzotint.models.backends.packed import Packed
from mezzotint.models.formats import packed_files
from mezzotint.models.formats.filling import empty_network

CONFIG = {
    "_class_name": "FluxTransformer2DModel", "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 128, "num_attention_heads": 24, "in_channels": 64, "patch_size": 1,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
}  # fmt: skip
BOTH = ("weight", "bias")
SAME = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "double_blocks.0.img_mod.lin": "transformer_blocks.0.norm1.linear",
    "double_blocks.0.txt_mod.lin": "transformer_blocks.0.norm1_context.linear",
    "double_blocks.0.img_mlp.0": "transformer_blocks.0.ff.net.0.proj",
    "double_blocks.0.img_mlp.2": "transformer_blocks.0.ff.net.2",
    "double_blocks.0.txt_mlp.0": "transformer_blocks.0.ff_context.net.0.proj",
    "double_blocks.0.txt_mlp.2": "transformer_blocks.0.ff_context.net.2",
    "double_blocks.0.img_attn.proj": "transformer_blocks.0.attn.to_out.0",
    "double_blocks.0.txt_attn.proj": "transformer_blocks.0.attn.to_add_out",
    "single_blocks.0.modulation.lin": "single_transformer_blocks.0.norm.linear",
    "single_blocks.0.linear2": "single_transformer_blocks.0.proj_out",
    "final_layer.linear": "proj_out",
}
NORMS = {
    "double_blocks.0.img_attn.norm.query_norm": "transformer_blocks.0.attn.norm_q",
    "double_blocks.0.img_attn.norm.key_norm": "transformer_blocks.0.attn.norm_k",
    "double_blocks.0.txt_attn.norm.query_norm": "transformer_blocks.0.attn.norm_added_q",
    "double_blocks.0.txt_attn.norm.key_norm": "transformer_blocks.0.attn.norm_added_k",
    "single_blocks.0.norm.query_norm": "single_transformer_blocks.0.attn.norm_q",
    "single_blocks.0.norm.key_norm": "single_transformer_blocks.0.attn.norm_k",
}
JOINED = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{x}" for x in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{x}_proj" for x in "qkv"],
    "single_blocks.0.linear1": [
        *(f"single_transformer_blocks.0.attn.to_{x}" for x in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
    ],
}


def random_state():
    """Q4_0 for matrices, floats for the rest, by diffusers' names; of each name its own."""
    state = {}
    for name, tensor in (
        empty_network(CONFIG["_class_name"], CONFIG, where="x").state_dict().items()
    ):
        seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
        generator = torch.Generator().manual_seed(seed)
        if tensor.ndim == 2:
            size = (tensor.shape[0], tensor.shape[1] // 32 * 18)
            data = torch.randint(0, 60, size, generator=generator, dtype=torch.uint8)
            state[name] = GGUFParameter(data, quant_type=Kind.Q4_0)
        else:
            state[name] = torch.randn(tensor.shape, generator=generator)
    return state


def as_published(state):
    named = {f"{new}.{s}": state[f"{old}.{s}"] for new, old in SAME.items() for s in BOTH}
    named |= {f"{new}.scale": state[f"{old}.weight"] for new, old in NORMS.items()}
    for new, olds in JOINED.items():
        named |= {f"{new}.{s}": torch.cat([state[f"{old}.{s}"] for old in olds]) for s in BOTH}
    for s in BOTH:
        scale, shift = state[f"norm_out.linear.{s}"].chunk(2)
        named[f"final_layer.adaLN_modulation.1.{s}"] = torch.cat([shift, scale])
    return named


@pytest.mark.slow
def test_every_packed_weight_of_flux_finds_its_place():
    state = random_state()
    translated = packed_files.named_as_class(
        as_published(state), FluxTransformer2DModel.__name__, CONFIG, set(state)
    )
    found, wanted = (packed_files._packed_blocks(one) for one in (translated, state))
    assert set(found) == set(wanted)
    for name, weight in wanted.items():
        if isinstance(weight, Packed):
            assert found[name].shape == weight.shape
            assert torch.equal(found[name].tensors["bits"], weight.tensors["bits"])
        else:
            assert torch.equal(found[name], weight)
