"""Single files: one ``.safetensors`` checkpoint in SD 1.x, 2.x, XL or 3 layout.

Such a file holds weights and no configuration. What a configuration would say is
read from names and shapes; the little that shapes cannot tell (heads of 64
features, 8 heads in SD 1.x, the autoencoder's scale, the noise schedule) is
fixed by the layout. Nothing is fetched: CLIP's vocabulary is in the package.
"""

import json
import lzma
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Model
from mezzotint.models.digests import DIGESTS
from mezzotint.models.formats.filling import empty_network, fill
from mezzotint.models.formats.folders import assemble
from mezzotint.models.formats.layouts import (
    PREFIXES,
    SD3_T5,
    Layout,
    Recipe,
    layout_of,
    recipes,
)
from mezzotint.models.formats.packed_files import apply_scales
from mezzotint.models.networks import Placement
from mezzotint.models.parts import (
    STORED_BYTES,
    Part,
    Parts,
    SafetensorsHeader,
    check_digest,
    combine_digests,
    most_stored,
    read_header,
)
from mezzotint.models.prompts import Tokens, clip_tokens, load_tokens

__all__ = ["clip_vocabulary", "load_single_file"]

_PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline"}
_NO_T5 = (
    "the T5 of the file is not read, since its vocabulary is not in it: prompts are read by two "
    "CLIPs, 77 tokens; the folder of diffusers reads it"
)
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def load_single_file(
    path: str | Path,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    prediction_type: str | None = None,
    tokenizer: str | Path | None = None,
    expected: str | None = None,
) -> Model:
    """Load one ``.safetensors`` checkpoint.

    Args:
        path: The file.
        name: Name in the store; the path if None.
        device: Where networks compute.
        dtype: One type for all networks; None follows the type policy.
        prediction_type: ``"epsilon"`` or ``"v_prediction"``; None reads it from
            the file where it says so, and takes v for SD 2.x, epsilon otherwise.
        tokenizer: Folder of another tokenizer than CLIP's.
        expected: The sha256 the file should have.

    Raises:
        WeightsError: If the file is a pickle, corrupt, or of another layout.
        InvalidRequest: If ``prediction_type`` is unknown.
    """
    path = Path(path)
    header = read_header(path)
    layout = layout_of(header, path)
    digest = check_digest(path, expected=expected)
    networks = {
        role: _part(path, header, role, recipe, digest=digest)
        for role, recipe in recipes(header, layout).items()
    }
    is_xl = layout == "sdxl"
    parts = Parts(
        name=name or str(path),
        pipeline=_PIPELINES.get(layout, "StableDiffusionPipeline"),
        networks=networks,
        tokenizers=_tokenizers(layout, Path(tokenizer) if tokenizer else None),
        scheduler=_scheduler(header, layout, prediction_type),
        config={"force_zeros_for_empty_prompt": True} if is_xl else {},
        digest=digest,
        path=str(path),
    )
    model = assemble(parts, Placement.choose(device, dtype, stored=header.stored))
    if any(name.startswith(SD3_T5) for name in header.tensors):
        model.spec = replace(model.spec, limits=(*model.spec.limits, _NO_T5))
    return model


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return CLIP's vocabulary and merges, from the package.

    Returns:
        Ids by token, 49408 of them, and the merges in order of priority.
    """
    packed = resources.files("mezzotint.models") / "vocabulary" / "clip_merges.txt.xz"
    lines = lzma.decompress(packed.read_bytes()).decode("utf-8").splitlines()
    merges = [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
    letters = _byte_letters()
    tokens = [*letters, *(f"{c}</w>" for c in letters), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges


def _byte_letters() -> list[str]:
    """Return a printable letter for each byte, in the order of CLIP's ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(b) for b in printable] + [chr(256 + k) for k in range(len(others))]


@cache
def _clip(pad: str) -> Tokens:
    """Return CLIP's tokens with one of the two paddings in use."""
    vocab, merges = clip_vocabulary()
    return Tokens(clip_tokens(vocab, merges), kind="clip", max_length=77, pad=vocab[pad])


def _tokenizers(layout: Layout, folder: Path | None) -> dict[str, Tokens]:
    """Return the tokenizers of a layout: SD 2.x and XL's second pad with ``!``."""
    if folder is not None:
        tokens = load_tokens(folder)
        return {
            "tokenizer": tokens,
            **({"tokenizer_2": tokens} if layout in ("sdxl", "sd3") else {}),
        }
    if layout == "sdxl":
        return {"tokenizer": _clip("<|endoftext|>"), "tokenizer_2": _clip("!")}
    if layout == "sd3":
        return {"tokenizer": _clip("<|endoftext|>"), "tokenizer_2": _clip("!")}
    return {"tokenizer": _clip("!" if layout == "sd2" else "<|endoftext|>")}


def _scheduler(
    header: SafetensorsHeader, layout: Layout, prediction_type: str | None
) -> dict[str, Any]:
    """Return the scheduler configuration that the layout was released with."""
    if prediction_type not in (None, "epsilon", "v_prediction"):
        raise InvalidRequest(
            f"prediction_type must be epsilon or v_prediction, got {prediction_type!r}",
            field="prediction_type",
        )
    if layout == "sd3":
        if prediction_type is not None:
            raise InvalidRequest(
                f"prediction_type must be left out for Stable Diffusion 3, got {prediction_type!r}",
                field="prediction_type",
            )
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    said = str(header.metadata.get("modelspec.prediction_type", "")).lower()
    predicts_v = said.startswith("v") or "v_pred" in header.tensors
    if layout == "sd2" and not said:
        predicts_v = True
    names = {"sd1": "PNDMScheduler", "sd2": "DDIMScheduler", "sdxl": "EulerDiscreteScheduler"}
    config: dict[str, Any] = {"_class_name": names[layout], **SCHEDULER}
    config["prediction_type"] = prediction_type or ("v_prediction" if predicts_v else "epsilon")
    if layout == "sd1":
        config["skip_prk_steps"] = True
    if layout == "sd2":
        config["clip_sample"] = False
    if "ztsnr" in header.tensors:
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return config


def _part(path: Path, header: SafetensorsHeader, role: str, recipe: Recipe, *, digest: str) -> Part:
    """Describe one network of the file."""
    mine = {k: entry for k, entry in header.tensors.items() if k.startswith(PREFIXES[role])}
    sizes = (torch.Size(s).numel() * STORED_BYTES.get(kind, 4) for kind, s in mine.values())
    config = json.dumps(recipe.config)
    return Part(
        role=role,
        class_name=recipe.class_name,
        config=recipe.config,
        build=lambda dtype: _build(path, recipe, list(mine), dtype, digest=digest),
        digest=combine_digests({"file": digest, "role": role, "config": config}),
        num_bytes=sum(sizes),
        stored=most_stored(kind for kind, shape in mine.values() if len(shape) > 1),
    )


def _build(
    path: Path, recipe: Recipe, names: list[str], dtype: torch.dtype, *, digest: str
) -> nn.Module:
    """Build one network from its tensors in the file, every weight accounted for."""
    from safetensors import safe_open

    with DIGESTS.loading({path: digest}), safe_open(str(path), framework="pt") as file:
        state = {name: file.get_tensor(name).clone() for name in names}
    module = empty_network(recipe.class_name, recipe.config, where=path)
    converted = recipe.convert(apply_scales(state, where=path), recipe.config)
    if not hasattr(module, "text_model"):
        converted = {k.removeprefix("text_model."): v for k, v in converted.items()}
    return fill(module, converted, dtype, where=path)
