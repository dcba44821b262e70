"""Tiny adapters with random weights for the tiny pipelines, in their public file layouts."""

import inspect
import warnings

import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    FluxControlNetModel,
    QwenImageControlNetModel,
    SD3ControlNetModel,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from safetensors.torch import save_file
from tests import tiny
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
)


def controlnet(pipeline, seed=40, scale=0.5):
    """A ControlNet of a pipeline's U-Net whose answers are not zero."""
    with tiny.seeded(seed):
        net = ControlNetModel.from_unet(
            pipeline.unet,
            conditioning_embedding_out_channels=(4, 8, 8),
            load_weights_from_unet=False,
        )
    return tiny.stir(net, seed, scale)


def union_controlnet(pipeline, seed=45, scale=0.5, modes=6):
    """A union of ControlNets of a pipeline's U-Net whose answers are not zero."""
    known = inspect.signature(ControlNetUnionModel.__init__).parameters
    own = {k: v for k, v in pipeline.unet.config.items() if k in known and not k.startswith("_")}
    width = own["block_out_channels"][0]
    with tiny.seeded(seed):
        net = ControlNetUnionModel(
            **own,
            conditioning_embedding_out_channels=(4, 8, 8),
            num_control_type=modes,
            num_trans_channel=width,
            num_proj_channel=width,
            num_trans_head=2,
        )
    return tiny.stir(net, seed, scale)


def image_encoder(seed=50, width=32, projection=24, side=32):
    """A CLIP vision encoder."""
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=2 * width, projection_dim=projection,
        num_hidden_layers=2, num_attention_heads=4, image_size=side, patch_size=8,
    )  # fmt: skip
    return tiny.stir(CLIPVisionModelWithProjection(config), seed)


def cross_attentions(unet):
    """The cross attentions in the order that IP-Adapter files number them."""
    names = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    return [unet.get_submodule(name.removesuffix(".processor")) for name in names]


def ip_adapter(pipeline, folder, *, seed=60, kind="vector", encoder=None):
    """Write an IP-Adapter.

    ``kind`` is ``vector`` (the plain one), ``full`` (full face: hidden states, each its own
    token) or ``plus`` (hidden states, drawn together by a resampler).
    """
    encoder = encoder or image_encoder()
    generator = torch.Generator().manual_seed(seed)
    context = pipeline.unet.config.cross_attention_dim
    draw = lambda *shape: torch.randn(shape, generator=generator) / shape[-1] ** 0.5  # noqa: E731
    projection, hidden = encoder.config.projection_dim, encoder.config.hidden_size
    if kind == "vector":
        state = {
            "image_proj.proj.weight": draw(4 * context, projection),
            "image_proj.proj.bias": draw(4 * context),
        }
        norm = "image_proj.norm"
    elif kind == "plus":
        state = {f"image_proj.{k}": v for k, v in resampler(hidden, context, draw).items()}
        norm = "image_proj.norm_out"
    else:
        state = {
            "image_proj.proj.0.weight": draw(hidden, hidden),
            "image_proj.proj.0.bias": draw(hidden),
            "image_proj.proj.2.weight": draw(context, hidden),
            "image_proj.proj.2.bias": draw(context),
        }
        norm = "image_proj.proj.3"
    state |= {f"{norm}.weight": 1 + 0.1 * draw(context), f"{norm}.bias": 0.1 * draw(context)}
    for k, layer in enumerate(cross_attentions(pipeline.unet)):
        inner = layer.to_q.out_features
        state[f"ip_adapter.{2 * k + 1}.to_k_ip.weight"] = draw(inner, context)
        state[f"ip_adapter.{2 * k + 1}.to_v_ip.weight"] = draw(inner, context)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "ip-adapter.safetensors")
    encoder.save_pretrained(folder / "image_encoder")
    return folder


def resampler(hidden, context, draw, *, inner=64, queries=3, depth=4):
    """Weights of the projection of an IP-Adapter "plus", named as in the released files."""
    state = {
        "latents": draw(1, queries, inner) * inner**0.5,
        "proj_in.weight": draw(inner, hidden), "proj_in.bias": 0.1 * draw(inner),
        "proj_out.weight": draw(context, inner), "proj_out.bias": 0.1 * draw(context),
    }  # fmt: skip
    for k in range(depth):
        attention, forward = f"layers.{k}.0", f"layers.{k}.1"
        for norm in (f"{attention}.norm1", f"{attention}.norm2", f"{forward}.0"):
            state |= {f"{norm}.weight": 1 + draw(inner), f"{norm}.bias": 0.1 * draw(inner)}
        state |= {
            f"{attention}.to_q.weight": draw(64, inner),
            f"{attention}.to_kv.weight": draw(128, inner),
            f"{attention}.to_out.weight": draw(inner, 64),
            f"{forward}.1.weight": draw(4 * inner, inner),
            f"{forward}.3.weight": draw(inner, 4 * inner),
        }
    return state


def embedding(path, width=32, count=2, key="<ink>", seed=70):
    """Write a textual inversion with ``count`` vectors under ``key``."""
    generator = torch.Generator().manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: torch.randn((count, width), generator=generator)}, path)
    return path


def deepen(pipeline, seed=80):
    """Give a pipeline's transformer more blocks than its ControlNets have; latents stay quiet."""
    old = pipeline.transformer
    counts = {"num_layers": 5}
    if "num_single_layers" in old.config:
        counts["num_single_layers"] = 3
    with tiny.seeded(seed):
        pipeline.transformer = type(old).from_config({**old.config, **counts})
    tiny.stir(pipeline.transformer, seed)
    hush(pipeline.vae)
    return pipeline


def hush(vae):
    """Let an autoencoder say the mean alone, whose pipelines draw from a distribution."""
    last = getattr(vae, "quant_conv", None) or vae.encoder.conv_out
    half = last.out_channels // 2
    last.weight.data[half:] = 0
    last.bias.data[half:] = -30.0


def transformer_controlnet(pipeline, seed=90, **config):
    """A ControlNet of two blocks, and one single block, for a pipeline's transformer."""
    kinds = {
        "FluxTransformer2DModel": FluxControlNetModel,
        "QwenImageTransformer2DModel": QwenImageControlNetModel,
        "SD3Transformer2DModel": SD3ControlNetModel,
    }
    old = pipeline.transformer
    cls = kinds[type(old).__name__]
    known = inspect.signature(cls.__init__).parameters
    counts = {"num_layers": 2, "num_single_layers": 1, "extra_conditioning_channels": 0}
    wanted = {k: v for k, v in {**old.config, **counts, **config}.items() if k in known}
    with tiny.seeded(seed), warnings.catch_warnings():  # of a class that diffusers itself uses
        warnings.simplefilter("ignore", FutureWarning)
        net = cls(**wanted)
    return tiny.stir(net, seed, 0.7)


def flux_ip_adapter(pipeline, folder, *, seed=60, is_xlabs=False):
    """Write an IP-Adapter for FLUX, named as XLabs or diffusers names its tensors."""
    encoder = image_encoder()
    generator = torch.Generator().manual_seed(seed)
    config = pipeline.transformer.config
    context, width = config.joint_attention_dim, pipeline.transformer.inner_dim
    draw = lambda *shape: torch.randn(shape, generator=generator) / shape[-1] ** 0.5  # noqa: E731
    head = "ip_adapter_proj_model" if is_xlabs else "image_proj"
    state = {
        f"{head}.proj.weight": draw(4 * context, encoder.config.projection_dim),
        f"{head}.proj.bias": draw(4 * context),
        f"{head}.norm.weight": 1 + 0.1 * draw(context),
        f"{head}.norm.bias": 0.1 * draw(context),
    }
    names = {"k": "ip_adapter_double_stream_k_proj", "v": "ip_adapter_double_stream_v_proj"}
    for k in range(config.num_layers):
        for which in ("k", "v"):
            name = f"ip_adapter.{k}.to_{which}_ip"
            if is_xlabs:
                name = f"double_blocks.{k}.processor.{names[which]}"
            state[f"{name}.weight"] = draw(width, context)
            state[f"{name}.bias"] = 0.1 * draw(width)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "ip-adapter.safetensors")
    encoder.save_pretrained(folder / "image_encoder")
    return folder


def sd3_ip_adapter(pipeline, folder, *, seed=60):
    """Write an IP-Adapter for Stable Diffusion 3 with a SigLIP, and return its parts."""
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    encoder = tiny.stir(SiglipVisionModel(config), seed)
    old = pipeline.transformer.config
    width = old.num_attention_heads * old.attention_head_dim
    projection = IPAdapterTimeImageProjection(
        embed_dim=32, output_dim=width, hidden_dim=64, heads=1, num_queries=4, timestep_in_dim=32
    )
    state = {f"image_proj.{k}": v for k, v in tiny.stir(projection, seed + 1).state_dict().items()}
    for k in range(len(pipeline.transformer.attn_processors)):
        voice = SD3IPAdapterJointAttnProcessor2_0(
            hidden_size=width, ip_hidden_states_dim=width, head_dim=old.attention_head_dim,
            timesteps_emb_dim=64,
        )  # fmt: skip
        own = tiny.stir(voice, seed + 2 + k).state_dict()
        state |= {f"ip_adapter.{k}.{name}": value for name, value in own.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "ip-adapter.safetensors")
    encoder.save_pretrained(folder / "image_encoder")
    return encoder, state
