"""Flow families at the width of their released checkpoints, two layers deep, without weights.

Rows of the table that ``mezzotint.models.families.flows`` makes models of. Modules stand on
torch's meta device: names, shapes and the way of a call are those of the
checkpoints, and nothing is computed.
"""

import re
import warnings
from functools import cache
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from mezzotint.models.adapters.lora import by_layer, check_fit, read_lora
from mezzotint.models.chat_text import CHAT_FORMATS
from mezzotint.models.families.autoencoder import Autoencoder
from mezzotint.models.families.flows.chroma import CHROMA, T5_TOKENS
from mezzotint.models.families.flows.flux2 import FLUX2_DEV, FLUX2_KLEIN
from mezzotint.models.families.flows.lumina2 import LUMINA2
from mezzotint.models.families.flows.qwen_image import QWEN_IMAGE
from mezzotint.models.families.flows.qwen_image_2 import QWEN_IMAGE_2
from mezzotint.models.families.flows.sana import SANA
from mezzotint.models.families.flows.z_image import Z_IMAGE
from mezzotint.models.families.pixart import SIGMA_TOKENS, call_pixart
from mezzotint.models.formats.packed_files import named_as_class
from mezzotint.models.networks import Placement
from mezzotint.models.parts import Part

FULL = {
    "chroma": (
        CHROMA,
        lambda: diffusers.ChromaTransformer2DModel(num_layers=1, num_single_layers=1),
        4096,
        (16, 128),
    ),
    "flux2": (
        FLUX2_KLEIN,
        lambda: diffusers.Flux2Transformer2DModel(
            num_layers=1,
            num_single_layers=1,
            num_attention_heads=24,
            joint_attention_dim=7680,
            guidance_embeds=False,
        ),
        7680,
        (128, 64),
    ),
    "flux2-dev": (
        FLUX2_DEV,
        lambda: diffusers.Flux2Transformer2DModel(num_layers=1, num_single_layers=1),
        15360,
        (128, 64),
    ),
    "lumina2": (
        LUMINA2,
        lambda: diffusers.Lumina2Transformer2DModel(
            num_layers=2, num_refiner_layers=1, cap_feat_dim=2304
        ),
        2304,
        (16, 128),
    ),
    "pixart": (
        SimpleNamespace(call=call_pixart, prepare=None, reads_padding=True),
        lambda: diffusers.PixArtTransformer2DModel(
            num_layers=2,
            caption_channels=4096,
            interpolation_scale=2,
            use_additional_conditions=False,
        ),
        4096,
        (4, 128),
    ),
    "qwen-image": (
        QWEN_IMAGE,
        lambda: diffusers.QwenImageTransformer2DModel(num_layers=2),
        3584,
        (16, 128),
    ),
    "qwen-image-2": (
        QWEN_IMAGE_2,
        lambda: diffusers.QwenImage21Transformer2DModel(num_layers=2),
        4096,
        (64, 64),
    ),
    "sana": (SANA, lambda: diffusers.SanaTransformer2DModel(num_layers=2), 2304, (32, 32)),
    "z-image": (Z_IMAGE, lambda: diffusers.ZImageTransformer2DModel(n_layers=2), 2560, (16, 128)),
}
"""Row, transformer, width of the text's states, channels and side of the latents of 1024 px."""
FLUX2_LAYERS = [
    "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
    "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight",
]
TRAINED = {
    "chroma": [
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight",
    ],
    "flux2-dev": FLUX2_LAYERS,
    "flux2": FLUX2_LAYERS,
    "lumina2": [
        "lora_unet_layers_1_attn_to_q.lora_down.weight",
        "transformer.context_refiner.0.feed_forward.linear_2.lora_A.weight",
    ],
    "pixart": [
        "lora_transformer_transformer_blocks_1_attn2_to_out_0.lora_down.weight",
        "base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight",
    ],
    "qwen-image": [
        "lora_unet_transformer_blocks_1_attn_to_q.lora_down.weight",
        "diffusion_model.transformer_blocks.1.img_mlp.net.0.proj.lora_A.weight",
        "transformer.transformer_blocks.0.attn.to_add_out.lora_A.weight",
    ],
    "qwen-image-2": [
        "lora_unet_transformer_blocks_1_img_mlp_gate_layer.lora_down.weight",
        "lora_unet_transformer_blocks_0_attn_to_out_0.lora_down.weight",
        "diffusion_model.transformer_blocks.1.img_mlp.out.lora_A.weight",
        "diffusion_model.transformer_blocks.1.attn.to_q.lora_down.weight",
        "transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight",
        "transformer.txt_in.in_layer.lora_A.weight",
        "base_model.model.modulation.1.lora_A.weight",
    ],
    "sana": [
        "lora_unet_transformer_blocks_1_attn2_to_v.lora_down.weight",
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight",
    ],
    "z-image": [
        "lora_unet_layers_1_attention_to_q.lora_down.weight",
        "diffusion_model.layers.1.feed_forward.w1.lora_A.weight",
        "transformer.context_refiner.0.attention.to_out.0.lora_A.weight",
    ],
}
"""Names of layers as LoRAs of kohya's, of ai-toolkit and of diffusers have them."""

WINDOWS = {"chroma": T5_TOKENS, "pixart": SIGMA_TOKENS}
"""Tokens of families that a T5 reads for."""


@cache
def module_of(name):
    row, build, *_ = FULL[name]
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of classes that diffusers itself uses
        module = build().eval()
    if row.prepare is not None:
        row.prepare(module)
    return module


@pytest.mark.parametrize("name", FULL)
def test_a_call_of_the_released_width_answers_latents(name):
    row, _, width, (channels, side) = FULL[name]
    length = 128
    if row.reads_padding:
        length = CHAT_FORMATS[name].window if name in CHAT_FORMATS else WINDOWS[name]
    inputs = {
        "sample": torch.zeros((2, channels, side, side), device="meta"),
        "timestep": torch.zeros(2, device="meta"),
        "encoder_hidden_states": torch.zeros((2, length, width), device="meta"),
        "text_mask": torch.ones((2, length), dtype=torch.bool, device="meta"),
        "guidance": torch.ones(2, device="meta"),
    }
    with torch.no_grad():
        (answer,) = row.call(module_of(name), inputs)
    answer = answer[:, :channels]  # PixArt tells a variance too
    assert answer.shape == inputs["sample"].shape


@pytest.mark.parametrize(("name", "key"), [(n, key) for n, keys in TRAINED.items() for key in keys])
def test_layers_that_loras_name_are_there(name, key, tmp_path):
    module = module_of(name)
    flat = {layer.replace(".", "_"): layer for layer, _ in module.named_modules()}
    stem = key.removesuffix(".lora_A.weight").removesuffix(".lora_down.weight")
    layer = re.sub(r"^(diffusion_model\.|transformer\.|base_model\.model\.)", "", stem)
    is_flat = stem.startswith("lora_")
    layer = flat[re.sub("^lora_(unet|transformer)_", "", stem)] if is_flat else layer
    rows, columns = module.get_submodule(layer).weight.shape
    other = key.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
    file = tmp_path / "lora.safetensors"
    save_file({key: torch.zeros(2, columns), other: torch.zeros(rows, 2)}, file)
    modules = dict(module.named_modules())
    pairs = by_layer(read_lora(file, family=name).pairs["denoiser"], modules)
    check_fit("lora", pairs, modules)
    assert list(pairs) == [layer]


PUBLISHED = {
    "qwen-image-2": [(r"img_mlp\.(gate_layer|proj)", "img_mlp.gate_up")],
    "lumina2": [
        (r"time_caption_embed\.caption_embedder", "cap_embedder"),
        (r"time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"norm_out\.linear_1", "final_layer.adaLN_modulation.1"),
        (r"norm_out\.linear_2", "final_layer.linear"),
        (r"\.norm1\.linear", ".adaLN_modulation.1"),
        (r"(?<!ffn)\.norm1(\.norm)?\.", ".attention_norm1."),
        (r"\.norm2\.", ".attention_norm2."),
        (r"\.attn\.norm_([qk])", r".attention.\1_norm"),
        (r"\.attn\.to_out\.0", ".attention.out"),
        (r"\.attn\.to_[qkv]", ".attention.qkv"),
        (r"feed_forward\.linear_", "feed_forward.w"),
    ],
    "sana": [
        (r"^patch_embed", "x_embedder"),
        (r"caption_projection\.linear_", "y_embedder.y_proj.fc"),
        (r"time_embed\.emb\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
        (r"time_embed\.emb\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
        (r"time_embed\.linear", "t_block.1"),
        (r"caption_norm", "attention_y_norm"),
        (r"^(scale_shift_table)", r"final_layer.\1"),
        (r"^proj_out", "final_layer.linear"),
        (r"^transformer_blocks", "blocks"),
        (r"attn1\.to_out\.0", "attn.proj"),
        (r"attn1\.to_[qkv]", "attn.qkv"),
        (r"attn2\.to_q", "cross_attn.q_linear"),
        (r"attn2\.to_[kv]", "cross_attn.kv_linear"),
        (r"attn2\.to_out\.0", "cross_attn.proj"),
        (r"ff\.conv_inverted", "mlp.inverted_conv.conv"),
        (r"ff\.conv_depth", "mlp.depth_conv.conv"),
        (r"ff\.conv_point", "mlp.point_conv.conv"),
    ],
}
"""What the authors of a transformer call its layers; several of diffusers' are one of theirs."""
UNUSED = {
    "lumina2": ["norm_final.weight"],
    "qwen-image-2": [],
    "sana": ["pos_embed", "y_embedder.y_embedding"],
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_in_the_names_of_its_authors_is_the_network_of_diffusers(name, prefix):
    module = module_of(name)
    wanted = module.state_dict()
    theirs = {prefix + key: torch.empty(1, device="meta") for key in UNUSED[name]}
    for key, tensor in wanted.items():
        old = key
        for pattern, replacement in PUBLISHED[name]:
            old = re.sub(pattern, replacement, old)
        known = theirs.get(prefix + old)
        theirs[prefix + old] = tensor if known is None else torch.cat([known, tensor])
    found = named_as_class(theirs, type(module).__name__, dict(module.config), set(wanted))
    assert {key: found[key].shape for key in wanted} == {k: t.shape for k, t in wanted.items()}


def test_latents_of_sana_are_32_times_smaller_than_its_pictures():
    deep = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    with torch.device("meta"):
        module = diffusers.AutoencoderDC(
            encoder_block_types=deep,
            decoder_block_types=deep,
            upsample_block_type="interpolate",
            downsample_block_type="conv",
            scaling_factor=0.41407,
        ).eval()
    part = Part(
        role="vae", class_name="AutoencoderDC", config=dict(module.config), build=lambda _: module
    )
    own = Autoencoder(part, {}, Placement())
    assert (own.channels, own.scale) == (32, 32)
    with torch.no_grad():
        picture = module.decode(torch.zeros((1, 32, 8, 8), device="meta")).sample
        latents = module.encode(picture).latent
    assert (picture.shape, latents.shape) == ((1, 3, 256, 256), (1, 32, 8, 8))


def test_latents_of_qwen_image_2_are_16_times_smaller_than_its_pictures_with_opacity():
    with torch.device("meta"):
        module = diffusers.AutoencoderKLQwenImage21().eval()
    part = Part(
        role="vae",
        class_name="AutoencoderKLQwenImage21",
        config=dict(module.config),
        build=lambda _: module,
    )
    own = Autoencoder(part, {}, Placement())
    assert (own.channels, own.scale) == (64, 16)
    with torch.no_grad():
        picture = module.decode(torch.zeros((1, 64, 1, 8, 8), device="meta")).sample
        latents = module.encode(picture).latent_dist.mean
    assert (picture.shape, latents.shape) == ((1, 4, 1, 128, 128), (1, 64, 1, 8, 8))
