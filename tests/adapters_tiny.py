"""Tiny adapters with random weights for the tiny pipelines, in their public file layouts."""

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from tests import tiny
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection


def controlnet(pipeline, seed=40, scale=0.5):
    """A ControlNet of a pipeline's U-Net whose answers are not zero."""
    with tiny.seeded(seed):
        net = ControlNetModel.from_unet(
            pipeline.unet,
            conditioning_embedding_out_channels=(4, 8, 8),
            load_weights_from_unet=False,
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
