"""Single files at the width that was published: every tensor finds its place.

Those that ``mezzotint.models.formats.single_file`` reads, and transformers alone. Nothing is as large as it says: a tensor has one number for each of its rows, spread over the
row without memory. Rows differ, so that a matrix that is cut, joined or turned in another way
than diffusers does is seen. Names and shapes are those of the authors (``tests/published.py``),
configurations those of the folders on the hub, the translation that of diffusers.
"""

import zlib

import pytest
import torch
from diffusers.loaders import single_file_utils
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from tests import published

from mezzotint.models.formats.filling import empty_network
from mezzotint.models.formats.layouts import PREFIXES, layout_of, recipes
from mezzotint.models.formats.packed_files import apply_scales, named_as_class
from mezzotint.models.parts import SafetensorsHeader

SLOW = pytest.mark.slow
CROSS, UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2,
}  # fmt: skip
SD3_VAE = {
    **VAE, "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
    "use_quant_conv": False, "use_post_quant_conv": False, "sample_size": 1024,
}  # fmt: skip
SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
          "num_attention_heads": 12, "hidden_act": "quick_gelu"}  # fmt: skip
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
          "num_attention_heads": 20, "hidden_act": "gelu"}  # fmt: skip


def mmdit_config(layers, heads, side, twice=0, norm=None):
    return SD3 | {
        "num_layers": layers, "num_attention_heads": heads, "caption_projection_dim": 64 * heads,
        "pos_embed_max_size": side, "dual_attention_layers": list(range(twice)), "qk_norm": norm,
    }  # fmt: skip


OPEN_CLIP = "conditioner.embedders.1.model."
CLIPS = (
    "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", OPEN_CLIP,
    "text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.",
)  # fmt: skip
FILES = {
    "sd15": (
        published.sd15,
        {
            "unet": {
                "sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8,
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": [*[CROSS] * 3, "DownBlock2D"],
                "up_block_types": ["UpBlock2D", *[UP] * 3],
            },
            "vae": VAE | {"sample_size": 512},
            "text_encoder": CLIP_L,
        },
    ),
    "sdxl": (
        published.sdxl,
        {
            "unet": {
                "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
                "block_out_channels": [320, 640, 1280], "use_linear_projection": True,
                "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
                "down_block_types": ["DownBlock2D", CROSS, CROSS],
                "up_block_types": [UP, UP, "UpBlock2D"],
            },
            "vae": VAE | {"scaling_factor": 0.13025, "sample_size": 1024},
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G | {"projection_dim": 1280},
        },
    ),
    "sd3-medium": (
        lambda: published.sd3(published.mmdit(2, width=1536, side=192)),
        {"transformer": mmdit_config(2, 24, 192), "vae": SD3_VAE,
         "text_encoder": CLIP_L | {"projection_dim": 768},
         "text_encoder_2": CLIP_G | {"projection_dim": 1280}},
    ),
    "sd35-large": (
        lambda: published.sd3(published.mmdit(2, width=2432, side=192, normed=True), t5_layers=24),
        {"transformer": mmdit_config(2, 38, 192, norm="rms_norm")},
    ),
    "sd35-medium": (
        lambda: published.sd3(published.mmdit(2, width=1536, side=384, twice=1, normed=True)),
        {"transformer": mmdit_config(2, 24, 384, 1, "rms_norm")},
    ),
}  # fmt: skip
"""What is in a file, and the configurations of the same model's folder."""


def numbered(name, shape):
    """A tensor of 16-bit floats with a number of its own for each row."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    rows = shape[:1] or (1,)
    first = torch.randn(rows, generator=generator).half()
    return first.reshape(*rows, *(1 for _ in shape[1:])).expand(shape) if shape else first[0]


def edges(tensor):
    """First column and first row: all that tells such a tensor from others of its shape."""
    column = tensor.reshape(len(tensor), -1)[:, 0] if tensor.is_contiguous() else tensor
    while column.ndim > 1:
        column = column.select(-1, 0)
    return column.numpy().tobytes(), tensor[0].flatten()[:64].numpy().tobytes()


def by_diffusers(role, class_name, state, module):
    """Translate a network's tensors as ``from_single_file`` does."""
    if role.startswith("text_encoder"):
        prefix = next(p for p in CLIPS if any(name.startswith(p) for name in state))
        if prefix == OPEN_CLIP:
            return single_file_utils.convert_open_clip_checkpoint(module, state, prefix=prefix)
        return single_file_utils.convert_ldm_clip_checkpoint(state, remove_prefix=prefix)
    translate = SINGLE_FILE_LOADABLE_CLASSES[class_name]["checkpoint_mapping_fn"]
    return translate(checkpoint=state, config=dict(module.config))


@pytest.mark.parametrize("name", ["sd15", *(pytest.param(k, marks=SLOW) for k in list(FILES)[1:])])
def test_a_published_file_is_the_networks_of_its_folder(name, tmp_path):
    make, folder = FILES[name]
    shapes = make()
    header = SafetensorsHeader({k: ("F16", shape) for k, shape in shapes.items()}, {}, 0)
    found = recipes(header, layout_of(header, tmp_path))
    assert set(folder) <= set(found)
    for role, config in folder.items():
        recipe = found[role]
        module = empty_network(recipe.class_name, recipe.config, where=name)
        theirs = empty_network(recipe.class_name, config, where=name)
        for key, value in config.items():
            said = getattr(module.config, key)
            assert (list(said) if isinstance(said, tuple) else said) == value, (role, key)
        wanted = theirs.state_dict()
        shaped = {k: t.shape for k, t in wanted.items()}
        assert {k: t.shape for k, t in module.state_dict().items()} == shaped
        mine = [k for k in shapes if k.startswith(PREFIXES[role])]
        state = {k: numbered(k, shapes[k]) for k in mine}
        ours = recipe.convert(dict(state), recipe.config)
        told = by_diffusers(role, recipe.class_name, state, theirs)
        bare = "" if hasattr(theirs, "text_model") else "text_model."
        ours, told = ({k.removeprefix(bare): t for k, t in some.items()} for some in (ours, told))
        for key, shape in shaped.items():
            assert ours[key].shape == shape, (role, key)
            assert edges(ours[key]) == edges(told[key]), (role, key)


TRANSFORMERS = {
    "flux-dev": (published.flux, (1, 1), {"guidance_embeds": True}, 780),
    "flux-schnell": (lambda *n: published.flux(*n, guided=False), (1, 1), {}, 776),
    "qwen-image": (published.qwen_image, (2,), {}, 1933),
    "z-image": (published.z_image, (2,), {}, 453),
}
CLASSES = {
    "flux-dev": ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "flux-schnell": ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "qwen-image": ("QwenImageTransformer2DModel", {"num_layers": 2}),
    "z-image": ("ZImageTransformer2DModel", {"n_layers": 2}),
}
"""Transformers that are published alone: names, layers here, and how many tensors are published."""


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=SLOW if "flux" in k else ()) for k in TRANSFORMERS]
)
def test_a_published_transformer_is_that_of_its_folder(name):
    make, layers, more, count = TRANSFORMERS[name]
    class_name, config = CLASSES[name]
    assert len(make()) == count
    module = empty_network(class_name, config | more, where=name)
    shaped = {k: t.shape for k, t in module.state_dict().items()}
    bare = {k: numbered(k, shape) for k, shape in make(*layers).items()}
    told = by_diffusers("transformer", class_name, dict(bare), module)
    for prefix in ("", published.UNET):
        state = {prefix + k: tensor for k, tensor in bare.items()}
        ours = named_as_class(state, class_name, dict(module.config), set(shaped))
        for key, shape in shaped.items():
            assert ours[key].shape == shape, key
            assert edges(ours[key]) == edges(told[key]), key


def test_networks_of_the_names_of_diffusers_under_a_prefix_are_found():
    class_name, config = CLASSES["z-image"]
    module = empty_network(class_name, config, where="z-image")
    shaped = {k: t.shape for k, t in module.state_dict().items()}
    state = {published.UNET + k: numbered(k, shape) for k, shape in shaped.items()}
    found = named_as_class(state, class_name, dict(module.config), set(shaped))
    assert {k: found[k].shape for k in shaped} == shaped


def scaled(shapes, *prefixes):
    """Names of a file whose matrices are 8-bit floats with a scale beside each."""
    kinds = {}
    for name, shape in shapes.items():
        packed = name.startswith(prefixes) and name.endswith(".weight") and len(shape) == 2
        kinds[name] = ("F8_E4M3" if packed else "F16", shape)
        if packed:
            kinds[name.removesuffix("weight") + "scale_weight"] = ("F32", (1,))
    return kinds | {f"{prefix}scaled_fp8": ("F8_E4M3", (2,)) for prefix in prefixes}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "sd35-medium"])
def test_8_bit_floats_with_scales_stand_in_the_same_places(name, tmp_path):
    shapes = FILES[name][0]()
    plain = SafetensorsHeader({k: ("F16", shape) for k, shape in shapes.items()}, {}, 0)
    texts = ("text_encoders.clip_l.transformer.",) if name != "sdxl" else ()
    header = SafetensorsHeader(scaled(shapes, published.UNET, *texts), {}, 0)
    found, wanted = (recipes(h, layout_of(h, tmp_path)) for h in (header, plain))
    assert {role: one.config for role, one in found.items()} == {
        role: one.config for role, one in wanted.items()
    }
    role, start = ("unet", f"{published.UNET}middle_block.1.transformer_blocks.0.")
    if texts:
        role, start = "text_encoder", f"{texts[0]}text_model.encoder.layers.0."
    mine = {k: entry for k, entry in header.tensors.items() if k.startswith(start)}
    kinds = {"F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn, "F32": torch.float32}
    state = {k: torch.ones(shape).to(kinds[kind]) for k, (kind, shape) in mine.items()}
    state |= {k: torch.full_like(t, 0.5) for k, t in state.items() if k.endswith("scale_weight")}
    numbers = apply_scales(state, where=name)
    assert set(numbers) == {k for k in shapes if k.startswith(start)}
    for key, tensor in numbers.items():
        half = key[: -len("weight")] + "scale_weight" in mine
        assert tensor.shape == shapes[key]
        assert tensor.float().unique().tolist() == [0.5 if half else 1.0], (role, key)
