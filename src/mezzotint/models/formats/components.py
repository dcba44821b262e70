"""Components: loose diffusers and transformers objects become a Model.

The objects are not changed: a network shares their weights but has a module
tree of its own.
"""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.models.base import Model
from mezzotint.models.formats.fit import misfits
from mezzotint.models.formats.folders import assemble
from mezzotint.models.formats.processors import image_settings
from mezzotint.models.networks import Placement
from mezzotint.models.parts import (
    Part,
    Parts,
    combine_digests,
    most_stored,
    stored_together,
)
from mezzotint.models.prompts import tokens_of
from mezzotint.plain import is_dict

__all__ = ["from_components", "from_pipeline"]

PIPELINES = {
    "ChromaTransformer2DModel": "ChromaPipeline",
    "DiTTransformer2DModel": "DiTPipeline",
    "Flux2Transformer2DModel": "Flux2KleinPipeline",
    "FluxTransformer2DModel": "FluxPipeline",
    "Lumina2Transformer2DModel": "Lumina2Pipeline",
    "PixArtTransformer2DModel": "PixArtSigmaPipeline",
    "QwenImage21Transformer2DModel": "QwenImage21Pipeline",
    "QwenImageTransformer2DModel": "QwenImagePipeline",
    "SD3Transformer2DModel": "StableDiffusion3Pipeline",
    "SanaTransformer2DModel": "SanaPipeline",
    "UNet2DModel": "DDPMPipeline",
    "ZImageTransformer2DModel": "ZImagePipeline",
}
PIXART, ALPHA = "PixArtTransformer2DModel", "PixArtAlphaPipeline"
_ONE_ENCODER = (
    "ChromaPipeline",
    "Flux2KleinPipeline",
    "Flux2Pipeline",
    "Lumina2Pipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "QwenImage21Pipeline",
    "QwenImagePipeline",
    "SanaPipeline",
    "StableDiffusionPipeline",
    "ZImagePipeline",
)
_SEEING = ("QwenImage21Pipeline",)  # whose text encoder reads pictures too
NETWORK_ROLES = (
    "unet",
    "transformer",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
)
TOKENIZER_ROLES = ("tokenizer", "tokenizer_2", "tokenizer_3", "processor")
IGNORED_ROLES = ("safety_checker", "feature_extractor", "image_encoder")
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16"}


def from_components(
    *,
    name: str = "components",
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
    **components: Any,
) -> Model:
    """Wire loose parts into a model of the family they belong to.

    Args:
        name: Name for messages and the spec.
        device: Where networks compute.
        dtype: One type for all networks; None follows the type policy.
        config: The pipeline's own settings, e.g. ``force_zeros_for_empty_prompt``, and its
            ``_class_name`` where two have the same parts.
        components: ``unet`` or ``transformer``, ``vae``, ``scheduler``,
            ``text_encoder`` with ``tokenizer``, and ``_2``, ``_3`` of both, or
            ``processor`` in place of a tokenizer.

    Raises:
        InvalidRequest: If a part is missing, unknown, or not of the right kind.
        ShapeError: If the parts do not fit together; says which and why.
    """
    given = {role: part for role, part in components.items() if part is not None}
    known = (*NETWORK_ROLES, *TOKENIZER_ROLES, *IGNORED_ROLES, "scheduler")
    if unknown := [role for role in given if role not in known]:
        raise InvalidRequest(
            f"unknown component {unknown[0]!r}; known: {', '.join(known)}", field=unknown[0]
        )
    networks = {r: _module_part(r, given[r]) for r in NETWORK_ROLES if r in given}
    settings = {**(config or {}), **_image_settings(given.get("processor"))}
    pipeline = _pipeline_of(networks, str(settings.pop("_class_name", "")))
    _check_complete(pipeline, given)
    digests = {role: part.digest for role, part in networks.items()}
    parts = Parts(
        name=name,
        pipeline=pipeline,
        networks=networks,
        tokenizers={
            r: tokens_of(getattr(given[r], "tokenizer", given[r]))
            for r in TOKENIZER_ROLES
            if r in given
        },
        scheduler=_scheduler_config(given["scheduler"]),
        config=settings,
        digest=combine_digests(digests),
    )
    if problems := misfits(parts):
        raise ShapeError(f"components do not fit together: {'; '.join(problems)}")
    return assemble(parts, Placement.choose(device, dtype, stored=_stored(networks)))


def from_pipeline(
    pipeline: Any,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
) -> Model:
    """Wire the parts of a loaded diffusers pipeline into a model.

    Raises:
        InvalidRequest: If it is not a diffusers pipeline of a native family.
        ShapeError: If its parts do not fit together.
    """
    parts = getattr(pipeline, "components", None)
    if not is_dict(parts):
        raise InvalidRequest(
            f"pipeline must be a diffusers pipeline, got {type(pipeline).__name__}",
            field="pipeline",
        )
    known = (*NETWORK_ROLES, *TOKENIZER_ROLES, "scheduler")
    settings = {k: v for k, v in dict(pipeline.config).items() if not isinstance(v, tuple)}
    settings["_class_name"] = type(pipeline).__name__
    return from_components(
        name=name or type(pipeline).__name__,
        device=device,
        dtype=dtype,
        config=settings,
        **{role: part for role, part in parts.items() if role in known},
    )


def _pipeline_of(networks: Mapping[str, Part], said: str) -> str:
    """Return the pipeline that the denoising network belongs to, by what it is and what is said."""
    network = networks.get("unet") or networks.get("transformer")
    if network is None:
        raise InvalidRequest("a unet or a transformer is needed", field="unet")
    if network.class_name == "UNet2DConditionModel":
        is_xl = network.config.get("addition_embed_type") == "text_time"
        return "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    if network.class_name not in PIPELINES:
        known = ", ".join(("UNet2DConditionModel", *PIPELINES))
        raise InvalidRequest(
            f"{network.role} is a {network.class_name}; known: {known}", field=network.role
        )
    encoder = networks.get("text_encoder")
    if encoder is not None and encoder.class_name.startswith("Mistral3"):
        return "Flux2Pipeline"
    is_told_size = network.config.get("use_additional_conditions")
    if network.class_name == PIXART and (is_told_size or said == ALPHA):
        return ALPHA
    return PIPELINES[network.class_name]


def _check_complete(pipeline: str, given: Mapping[str, Any]) -> None:
    """Refuse a set of parts in which one is missing."""
    needed = ["scheduler"]
    if pipeline != "DDPMPipeline":
        needed.append("vae")
    if pipeline not in ("DDPMPipeline", "DiTPipeline"):
        needed += ["text_encoder", "processor" if pipeline in _SEEING else "tokenizer"]
    if pipeline not in ("DDPMPipeline", "DiTPipeline", *_ONE_ENCODER):
        needed += ["text_encoder_2", "tokenizer_2"]
    if missing := [role for role in needed if role not in given]:
        raise InvalidRequest(
            f"{missing[0]} is missing; a {pipeline} needs {', '.join(needed)}", field=missing[0]
        )


def _image_settings(processor: Any) -> dict[str, Any]:
    """Return what a processor says of pictures, as an entry of a pipeline's settings."""
    said = getattr(processor, "image_processor", None)
    return image_settings(said.to_dict()) if said is not None else {}


def _config_of(part: Any) -> dict[str, Any]:
    """Return a component's configuration as plain data."""
    config: Any = getattr(part, "config", {})
    return dict(config.to_dict() if hasattr(config, "to_dict") else config)


def _scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler's configuration without what its class filled in by default.

    Another class has other defaults; diffusers' ``from_config`` does the same.
    """
    config = _config_of(scheduler)
    defaulted = {"_use_default_values", *config.get("_use_default_values", ())}
    kept = {key: value for key, value in config.items() if key not in defaulted}
    return {"_class_name": type(scheduler).__name__, **kept}


def _module_part(role: str, module: Any) -> Part:
    """Describe a loaded network.

    Raises:
        InvalidRequest: If it is not a torch module.
    """
    if not isinstance(module, nn.Module):
        raise InvalidRequest(
            f"{role} must be a torch module, got {type(module).__name__}", field=role
        )
    tensors = dict(module.state_dict())
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    kinds = [_NAMES.get(t.dtype, "F32") for t in tensors.values() if t.ndim > 1]
    return Part(
        role=role,
        class_name=type(module).__name__,
        config=_config_of(module),
        build=lambda dtype: _share(module, dtype),
        digest=_digest(tensors),
        num_bytes=num_bytes,
        stored=most_stored(kinds),
    )


def _share(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a module tree of our own over the same weights, in another type if needed."""
    kept: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    own = copy.deepcopy(module, kept)
    for layer in own.modules():
        for name, weight in layer.named_parameters(recurse=False):
            setattr(layer, name, nn.Parameter(weight.detach().to(dtype), requires_grad=False))
        for name, values in layer.named_buffers(recurse=False):
            if values.is_floating_point():
                setattr(layer, name, values.to(dtype))
    return own


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def _stored(networks: Mapping[str, Part]) -> str:
    """Return the type most weights are in, as safetensors spells it."""
    return stored_together(part.stored for part in networks.values())
