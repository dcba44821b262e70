"""What a LoRA's names say of the family that it was made for."""

import pytest

from mezzotint.models.adapters.lora_families import lora_families, text_width
from mezzotint.models.parts import SafetensorsHeader


def header(*names, shape=(16, 64)):
    tensors = {name: ("F16", shape) for name in names}
    return SafetensorsHeader(tensors=tensors, metadata={}, data_bytes=0)


@pytest.mark.parametrize(
    ("name", "families"),
    [
        # kohya's, diffusers', peft's and the first publications' names of released LoRAs
        ("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight",
         ("sd", "sdxl")),
        ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
         ("sd", "sdxl")),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.lora_down.weight",
         ("sd", "sdxl")),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight", ("sd3",)),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
         ("chroma", "flux", "flux2", "flux2-dev")),
        ("transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight", ("chroma", "flux")),
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight",
         ("flux2", "flux2-dev")),
        ("transformer_blocks.0.img_mlp.net.2.lora_A.default.weight", ("qwen-image",)),
        ("lora_unet_transformer_blocks_0_txt_mod_1.lora_down.weight", ("qwen-image",)),
        ("diffusion_model.layers.0.attention.to_q.lora_A.weight", ("z-image", "lumina2")),
        ("base_model.model.layers.3.feed_forward.w2.lora_A.weight", ("z-image", "lumina2")),
        ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
         ("sd3", "qwen-image", "qwen-image-2", "chroma", "flux", "flux2", "flux2-dev")),
        ("transformer.transformer_blocks.0.attn.add_q_proj.lora_A.weight",
         ("sd3", "qwen-image", "chroma", "flux", "flux2", "flux2-dev")),
        ("transformer.transformer_blocks.0.img_mlp.gate_layer.lora_A.weight", ("qwen-image-2",)),
        ("lora_unet_transformer_blocks_1_img_mlp_out.lora_down.weight", ("qwen-image-2",)),
        ("transformer.transformer_blocks.1.attn1.to_q.lora_A.weight", ("dit", "pixart", "sana")),
        ("transformer.transformer_blocks.1.attn2.to_v.lora_A.weight", ("pixart", "sana", "sd3")),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", ()),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", ()),
        ("something.else.lora_A.weight", ()),
    ],
)  # fmt: skip
def test_layers_are_named_by_one_family_or_few(name, families):
    assert lora_families(header(name)) == families


@pytest.mark.parametrize(
    "layer",
    [
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight",
    ],
)
@pytest.mark.parametrize(("width", "families"), [(768, ("sd",)), (2048, ("sdxl",))])
def test_a_u_nets_is_told_by_the_text_that_it_reads(layer, width, families):
    told = header(layer, shape=(16, width))
    assert text_width(told) == width
    assert lora_families(told) == families
