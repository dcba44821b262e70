"""Fit: whether the parts of a model belong together, said before anything is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint.models.parts import Parts

__all__ = ["misfits"]

PACKED = ("ChromaTransformer2DModel", "Flux2Transformer2DModel", "FluxTransformer2DModel")
"""Classes that take 2x2 patches for channels."""

LAYERS_READ = 3  # of a language model, whose states FLUX.2 reads side by side
TEXT_WIDTHS = ("hidden_size", "d_model")


def misfits(parts: Parts) -> list[str]:
    """Say what does not fit, one sentence each; empty if all parts fit.

    Only what configurations tell is compared; missing entries are not misfits.
    """
    configs = {role: part.config for role, part in parts.networks.items()}
    network = "unet" if "unet" in configs else "transformer"
    found = [
        _latent_channels(parts, network),
        _text_width(configs),
        _caption_width(parts.pipeline, configs),
        _added_text(parts.pipeline, configs),
        _pooled_width(configs),
        _joint_width(configs),
        _rotation(configs),
        *(_vocabulary(parts, role) for role in parts.tokenizers),
    ]
    return [sentence for sentence in found if sentence]


def _latent_channels(parts: Parts, network: str) -> str | None:
    """Compare the channels the network takes with those the autoencoder makes."""
    if network not in parts.networks or "vae" not in parts.networks:
        return None
    taken = parts.networks[network].config.get("in_channels")
    made = parts.networks["vae"].config.get("latent_channels")
    if taken is None or made is None:
        return None
    is_packed = parts.networks[network].class_name in PACKED
    packed = 4 if is_packed else 1
    if int(taken) == int(made) * packed:
        return None
    return (
        f"{network} takes {taken} latent channels, vae makes {made}"
        f"{' (packed 2x2)' if packed > 1 else ''}: they were not trained together"
    )


def _text_width(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Compare the width of text states with the U-Net's cross attention."""
    wanted = configs.get("unet", {}).get("cross_attention_dim")
    encoders = [role for role in ("text_encoder", "text_encoder_2") if role in configs]
    widths = [next((configs[r][k] for k in TEXT_WIDTHS if k in configs[r]), None) for r in encoders]
    if not isinstance(wanted, int) or not widths or any(width is None for width in widths):
        return None
    if sum(int(width) for width in widths if width is not None) == wanted:
        return None
    made = " + ".join(map(str, widths))
    return (
        f"unet reads text states of width {wanted}, {' and '.join(encoders)} "
        f"make{'s' if len(encoders) == 1 else ''} {made}"
    )


def _caption_width(pipeline: str, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Compare the width of a text encoder's states with what a transformer reads."""
    transformer, encoder = configs.get("transformer", {}), configs.get("text_encoder", {})
    wanted = transformer.get("cap_feat_dim", transformer.get("caption_channels"))
    made = next((encoder[key] for key in TEXT_WIDTHS if key in encoder), None)
    if wanted is None and "text_config" in encoder:  # of a model that sees pictures too
        wanted = transformer.get("joint_attention_dim", transformer.get("context_in_dim"))
        made = encoder["text_config"].get("hidden_size")
        if made is not None and pipeline == "Flux2Pipeline":
            made = LAYERS_READ * int(made)
    if wanted is None or made is None or int(wanted) == int(made):
        return None
    return f"transformer reads text states of width {wanted}, text_encoder makes {made}"


def _added_text(pipeline: str, configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Compare SDXL's pipeline with whether its U-Net reads pooled text and time ids."""
    added = configs.get("unet", {}).get("addition_embed_type")
    if pipeline != "StableDiffusionXLPipeline" or added == "text_time":
        return None
    return f"unet must have addition_embed_type text_time in a {pipeline}, got {added}"


def _pooled_width(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Compare SDXL's pooled text and time ids with what the U-Net was built for."""
    unet = configs.get("unet", {})
    wanted, each = (
        unet.get("projection_class_embeddings_input_dim"),
        unet.get("addition_time_embed_dim"),
    )
    pooled = configs.get("text_encoder_2", {}).get("projection_dim")
    if unet.get("addition_embed_type") == "text_time" and each is None:
        return "unet reads time ids and must have addition_time_embed_dim, got none"
    if unet.get("addition_embed_type") != "text_time" or None in (wanted, each, pooled):
        return None
    if int(wanted or 0) == 6 * int(each or 0) + int(pooled or 0):
        return None
    return (
        f"unet adds a vector of {wanted} numbers, text_encoder_2 and 6 time ids make "
        f"{6 * int(each or 0) + int(pooled or 0)}"
    )


def _joint_width(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Compare the width of T5's states with what a transformer of SD 3 or FLUX reads."""
    wanted = configs.get("transformer", {}).get("joint_attention_dim")
    for role in ("text_encoder_3", "text_encoder_2"):
        made = configs.get(role, {}).get("d_model")
        if wanted is not None and made is not None and int(wanted) != int(made):
            return f"transformer reads text states of width {wanted}, {role} makes {made}"
    return None


def _rotation(configs: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Compare the widths that positions turn with the width of an attention head."""
    transformer = configs.get("transformer", {})
    axes: Sequence[int] = transformer.get("axes_dims_rope") or ()
    head = transformer.get("attention_head_dim")
    if not axes or head is None or sum(axes) == int(head):
        return None
    return (
        f"transformer turns {' + '.join(map(str, axes))} numbers of a head by position "
        f"(axes_dims_rope), and a head has {head} (attention_head_dim)"
    )


def _vocabulary(parts: Parts, role: str) -> str | None:
    """Compare the ids a tokenizer gives with those its encoder has embeddings for."""
    encoder = role.replace("tokenizer", "text_encoder")
    known = parts.networks[encoder].config.get("vocab_size") if encoder in parts.networks else None
    tokens = parts.tokenizers[role].vocabulary
    if known is None or tokens <= int(known):
        return None
    return f"{role} has {tokens} tokens, {encoder} knows {known}"
