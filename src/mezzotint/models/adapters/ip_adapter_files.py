"""IP-Adapter files: where they and their encoders lie, for whom they are, told without weights.

The layouts of the released files are read: ``image_proj.*`` and ``ip_adapter.*``, or XLabs'
names of the same, in one safetensors file, a vision encoder in a folder ``image_encoder``
beside it.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.adapters.controlnet import denoiser_config
from mezzotint.models.base import Model
from mezzotint.models.digests import DIGESTS
from mezzotint.models.formats.folders import read_part
from mezzotint.models.parts import Part, combine_digests, read_header, read_json

__all__ = [
    "ENCODER",
    "check_ip_adapter",
    "family_of",
    "find_ip_adapter",
    "ip_adapter_digest",
    "ip_adapter_view",
    "read_encoder",
    "side_of",
    "tensor_name",
]

ENCODER = "image_encoder"
_XLABS = re.compile(
    r"double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)"
)
_FACES = (
    {"image_proj.norm.weight", "image_proj.proj.0.weight"},
    {"image_proj.perceiver_resampler.proj_in.weight"},
)
"""Tensors that a FaceID has, and a FaceID plus."""

_KINDS = {
    "flux": (("flux",), "joint_attention_dim"),
    "sd": (("sd", "sdxl"), "cross_attention_dim"),
    "sd3": (("sd3",), ""),
}
"""Families of models by whose layers a file names, and the setting of the text's width."""

_CLIP, _SIGLIP = "CLIPVisionModelWithProjection", "SiglipVisionModel"
_WHOLES = {"CLIPModel": _CLIP, "SiglipModel": _SIGLIP}
"""Models of pictures and texts, as their authors publish them, by the encoder that is in them."""


def find_ip_adapter(path: Path, name: str) -> tuple[Path, Path]:
    """Return the file and the encoder's folder of an IP-Adapter.

    Raises:
        WeightsError: If one of them is not there.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1:
        raise WeightsError(
            f"IP-Adapter {name} needs exactly one .safetensors file in {path}, found {len(files)}"
        )
    names = {tensor_name(name) for name in read_header(files[0]).tensors}
    if not any(n.startswith("image_proj.") for n in names):
        raise WeightsError(f"{files[0]} is no IP-Adapter: no tensor is called image_proj....")
    if any(own <= names for own in _FACES):
        raise WeightsError(
            f"IP-Adapter {name} knows faces (FaceID): what looks at them, insightface's ArcFace, "
            "is published as ONNX alone, never as safetensors; use an IP-Adapter for faces that "
            "looks with CLIP (plus-face, full-face)"
        )
    folder = files[0].parent / ENCODER
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"IP-Adapter {name} needs its CLIP vision encoder in {folder}, which is not there"
        )
    return files[0], folder


def tensor_name(name: str) -> str:
    """Name a tensor of XLabs' files as those of others are named."""
    if name.startswith("ip_adapter_proj_model."):
        return "image_proj." + name.partition(".")[2]
    if match := _XLABS.fullmatch(name):
        return f"ip_adapter.{match[1]}.to_{match[2]}_ip.{match[3]}"
    return name


def family_of(names: Iterable[str]) -> str:
    """Tell whose layers an IP-Adapter's file names: FLUX's maps have biases, SD 3's norms."""
    kinds = {name.partition("_ip.")[2] for name in names if "_ip." in name}
    return "sd3" if "linear.weight" in kinds else "flux" if "bias" in kinds else "sd"


def ip_adapter_digest(path: Path, name: str) -> str:
    """Return one sha256 over an IP-Adapter's file and its encoder's."""
    file, folder = find_ip_adapter(path, name)
    encoder = read_encoder(folder)
    return combine_digests({"adapter": DIGESTS.digest(file), "encoder": encoder.digest})


def ip_adapter_view(path: Path, name: str) -> tuple[int, bool]:
    """Return how an IP-Adapter sees pictures: pixels of each side, and whether it crops them."""
    part = read_encoder(find_ip_adapter(path, name)[1])
    return side_of(part), part.class_name == _CLIP


def read_encoder(folder: Path) -> Part:
    """Read and check the folder of a vision encoder, CLIP's or SigLIP's, without building it.

    It may be one among the parts of a whole CLIP or SigLIP.
    """
    named = next(iter(read_json(folder / "config.json").get("architectures") or ()), _CLIP)
    class_name = _WHOLES.get(named, _SIGLIP if named == _SIGLIP else _CLIP)
    part = read_part(folder, ENCODER, library="transformers", class_name=class_name, wholes=_WHOLES)
    own = part.config.get("vision_config")
    return part if own is None else replace(part, config=own)


def side_of(encoder: Part) -> int:
    """Return the pixels of each side of the pictures that a vision encoder reads."""
    return int(encoder.config.get("image_size", 224))


def check_ip_adapter(path: Path, name: str, model: Model, *, field: str) -> None:
    """Refuse an IP-Adapter that was made for another text width, from its header alone.

    Raises:
        InvalidRequest: If it does not fit.
        WeightsError: If it is no IP-Adapter.
    """
    file, _ = find_ip_adapter(path, name)
    shapes = {tensor_name(key): shape for key, (_, shape) in read_header(file).tensors.items()}
    families, key = _KINDS[family_of(shapes)]
    if model.spec.family not in families:
        raise InvalidRequest(
            f"IP-Adapter {name} does not fit {model.spec.name}: it is for "
            f"{' and '.join(families)}, the model is {model.spec.family}",
            field=field,
            value=name,
        )
    found = {s[1] for one, s in shapes.items() if one.endswith("to_k_ip.weight")}
    wanted = denoiser_config(model).get(key) if key else None
    if wanted is not None and found != {wanted}:
        shown = ", ".join(map(str, sorted(found))) or "none"
        raise InvalidRequest(
            f"IP-Adapter {name} does not fit {model.spec.name}: its {key} is {shown}, the "
            f"model's is {wanted}",
            field=field,
            value=name,
        )
