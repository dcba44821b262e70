"""IP-Adapter: pictures that speak beside the text, for some rows of a call.

A vision encoder turns pictures into a few tokens, and every cross attention of the
U-Net listens to them with keys and values of their own:
``attention(text) + scale * attention(pictures)``. Here that sum is made by hooks that
exist only while one network call runs, row by row, so base weights are not changed, a
row's answer does not depend on its neighbours, and a request without pictures cannot
notice one before it.

The layout of the released files is read: ``image_proj.*`` and ``ip_adapter.*`` in one
safetensors file, a CLIP vision encoder in a folder ``image_encoder`` beside it.

Dimensions: R rows, K adapters, T tokens, D width of the text, L positions, H heads.
"""

import copy
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.models.adapters.controlnet import unet_config
from mezzotint.models.adapters.torch_backed import TorchBacked, torch_backed
from mezzotint.models.base import Model, Network
from mezzotint.models.digests import DIGESTS
from mezzotint.models.formats.folders import read_part
from mezzotint.models.networks import (
    Placement,
    TorchNetwork,
    align_weights,
    is_preparing,
    use_row_linears,
)
from mezzotint.models.parts import Part, combine_digests, read_header

__all__ = [
    "IMAGE_SCALES",
    "IMAGE_TOKENS",
    "ImagePromptAdapter",
    "ImagePromptNetwork",
    "check_ip_adapter",
    "crop_picture",
    "ip_adapter_side",
    "prepare_picture",
    "read_ip_adapter",
    "with_ip_adapters",
]

IMAGE_SCALES = "image_prompt_scales"
"""Name of the conditioning tensor with one scale per adapter, shape (R, K)."""

IMAGE_TOKENS = "image_prompt_"
"""Beginning of the names of the tokens, ``image_prompt_00``..., each (R, T, D)."""

ENCODER = "image_encoder"
_LONGEST = 16  # times the shorter side
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of CLIP's training pictures
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePromptAdapter:
    """An IP-Adapter.

    Args:
        name: Name for messages.
        digest: sha256 over its file and its encoder's.
        width: Width D of the text that its tokens stand beside.
        side: Pixels of the pictures that its encoder reads.
        uses_hidden: Whether the encoder's hidden states are projected ("plus"), not
            its one vector.
        encoder: The vision encoder.
        projection: Builds what turns the encoder's answer into tokens.
        pairs: Keys and values, (inner, D) each, of every cross attention in order.
    """

    name: str
    digest: str
    width: int
    side: int
    uses_hidden: bool
    encoder: Network
    projection: nn.Module = field(repr=False)
    pairs: tuple[tuple[Tensor, Tensor], ...] = field(repr=False)

    def tokens(self, pictures: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Turn pictures into tokens, and the absence of each into tokens of its own.

        Args:
            pictures: Each of shape (H, W, 3), uint8.

        Returns:
            Tokens of the pictures and of nothing, each (1, T, D), float32.
        """
        positive: list[Tensor] = []
        negative: list[Tensor] = []
        for picture in pictures:
            pixels = prepare_picture(picture, self.side)
            (seen,) = self.encoder(pixel_values=pixels)
            if self.uses_hidden:
                (unseen,) = self.encoder(pixel_values=torch.zeros_like(pixels))
            else:
                unseen = torch.zeros_like(seen)
            positive.append(self._project(seen))
            negative.append(self._project(unseen))
        return torch.cat(positive, dim=1), torch.cat(negative, dim=1)

    def _project(self, seen: Tensor) -> Tensor:
        with torch.no_grad():
            return self.projection(seen).float()


def _call_vector(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (module(inputs["pixel_values"]).image_embeds,)


def _call_hidden(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    output = module(inputs["pixel_values"], output_hidden_states=True)
    return (output.hidden_states[-2],)


def prepare_picture(pixels: np.ndarray, side: int) -> Tensor:
    """Bring a picture to what CLIP reads: shorter side, middle, CLIP's mean and deviation.

    Args:
        pixels: Shape (H, W, 3), uint8.
        side: Pixels of each side afterwards.

    Returns:
        Shape (1, 3, side, side), float32.
    """
    array = crop_picture(pixels, side).astype(np.float32) / 255
    array = (array - _MEAN) / _STD
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))[None])


def crop_picture(pixels: np.ndarray, side: int) -> np.ndarray:
    """Bring a picture's shorter side to what CLIP reads and keep the middle.

    What is cropped already stays as it is.

    Args:
        pixels: Shape (H, W, 3), uint8.
        side: Pixels of each side afterwards.

    Returns:
        Shape (side, side, 3), uint8.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    short, most = min(picture.size), _LONGEST * min(picture.size)
    if max(picture.size) > most:  # far from the middle; all of it enlarged would fill the memory
        left, top = (max(length - most, 0) // 2 for length in picture.size)
        picture = picture.crop((left, top, picture.width - left, picture.height - top))
    width, height = (int(side * length / short) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return np.asarray(picture)[top : top + side, left : left + side].copy()


def read_ip_adapter(
    path: Path, *, name: str, placement: Placement, digest: str = ""
) -> ImagePromptAdapter:
    """Read an IP-Adapter with its vision encoder.

    Args:
        path: The safetensors file, or a folder with exactly one; the encoder stands
            beside it in ``image_encoder``.
        name: Name for messages.
        placement: Where and in which type the encoder computes.
        digest: sha256 of its content, if known.

    Raises:
        CardError: If the encoder's folder holds something else.
        WeightsError: If a file is missing, corrupt, a pickle, or no IP-Adapter.
    """
    file, folder = find_ip_adapter(path, name)
    part = _read_encoder(folder)
    with DIGESTS.loading({file: DIGESTS.digest(file)}):
        state = {key: tensor.clone() for key, tensor in load_file(file).items()}
    projection = _projection(_below(state, "image_proj."), file)
    uses_hidden = type(projection).__name__ != "ImageProjection"
    pairs = _pairs(_below(state, "ip_adapter."), file)
    encoder = TorchNetwork.of(part, _call_hidden if uses_hidden else _call_vector, placement)
    encoder.field = "image_prompts.model"
    return ImagePromptAdapter(
        name=name,
        digest=digest or ip_adapter_digest(path, name),
        width=int(pairs[0][0].shape[1]),
        side=_side_of(part),
        uses_hidden=uses_hidden,
        encoder=encoder,
        projection=projection,
        pairs=pairs,
    )


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
    folder = files[0].parent / ENCODER
    if not (folder / "config.json").is_file():
        raise WeightsError(
            f"IP-Adapter {name} needs its CLIP vision encoder in {folder}, which is not there"
        )
    names = read_header(files[0]).tensors
    if not any(n.startswith("image_proj.") for n in names):
        raise WeightsError(f"{files[0]} is no IP-Adapter: no tensor is called image_proj....")
    return files[0], folder


def ip_adapter_digest(path: Path, name: str) -> str:
    """Return one sha256 over an IP-Adapter's file and its encoder's."""
    file, folder = find_ip_adapter(path, name)
    encoder = _read_encoder(folder)
    return combine_digests({"adapter": DIGESTS.digest(file), "encoder": encoder.digest})


def ip_adapter_side(path: Path, name: str) -> int:
    """Return the pixels of each side of the pictures that an IP-Adapter's encoder reads."""
    return _side_of(_read_encoder(find_ip_adapter(path, name)[1]))


def _read_encoder(folder: Path) -> Part:
    return read_part(
        folder, ENCODER, library="transformers", class_name="CLIPVisionModelWithProjection"
    )


def _side_of(encoder: Part) -> int:
    return int(encoder.config.get("image_size", 224))


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}


def _projection(state: dict[str, Tensor], file: Path) -> nn.Module:
    """Build the projection; diffusers tells the kinds apart and names their layers."""
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    if "norm.weight" in state and "proj.0.weight" in state:
        raise WeightsError(f"{file} reads faces with another network (FaceID), which is not here")
    build = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    try:
        module = build(cast("Any", None), state, low_cpu_mem_usage=False)
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{file} holds no projection that is known: {error}") from None
    module = cast("nn.Module", module).eval().requires_grad_(False)
    return use_row_linears(align_weights(module))


def _pairs(state: Mapping[str, Tensor], file: Path) -> tuple[tuple[Tensor, Tensor], ...]:
    """Return keys and values in the order of the cross attentions."""
    numbers = sorted({int(k.split(".")[0]) for k in state if k.split(".")[0].isdecimal()})
    try:
        pairs = tuple((state[f"{n}.to_k_ip.weight"], state[f"{n}.to_v_ip.weight"]) for n in numbers)
    except KeyError as error:
        raise WeightsError(f"{file} is no whole IP-Adapter: {error} is missing") from None
    if not pairs or any(v.ndim != 2 for pair in pairs for v in pair):
        raise WeightsError(f"{file} is no IP-Adapter: it holds no keys and values (ip_adapter....)")
    return pairs


def check_ip_adapter(
    path: Path, name: str, model: Model, *, field: str = "image_prompts.model"
) -> None:
    """Refuse an IP-Adapter that was made for another text width, from its header alone.

    Raises:
        InvalidRequest: If it does not fit.
        WeightsError: If it is no IP-Adapter.
    """
    file, _ = find_ip_adapter(path, name)
    shapes = read_header(file).tensors
    found = {s[1] for key, (_, s) in shapes.items() if key.endswith("to_k_ip.weight")}
    wanted = unet_config(model).get("cross_attention_dim")
    if wanted is not None and found != {wanted}:
        shown = ", ".join(map(str, sorted(found))) or "none"
        raise InvalidRequest(
            f"IP-Adapter {name} does not fit {model.spec.name}: its cross_attention_dim is "
            f"{shown}, the model's is {wanted}",
            field=field,
            value=name,
        )


class ImagePromptNetwork:
    """A U-Net that listens to pictures while it runs.

    Args:
        source: The U-Net without them; shared, never changed.
        adapters: The adapters, in the order of the scales.

    Raises:
        WeightsError: If an adapter was made for another U-Net.
    """

    def __init__(self, source: TorchBacked, adapters: Sequence[ImagePromptAdapter]) -> None:
        self.source = source
        self._adapters = tuple(adapters)
        self._lock = threading.Lock()
        self._layers = _cross_attentions(source.module)
        for adapter in adapters:
            inner = [layer.to_q.out_features for layer in self._layers]
            if [pair[0].shape[0] for pair in adapter.pairs] != inner:
                raise WeightsError(
                    f"IP-Adapter {adapter.name} does not fit this model: it has keys for "
                    f"{len(adapter.pairs)} cross attentions, the model has {len(inner)} of widths "
                    f"{inner}"
                )

    def __deepcopy__(self, memo: object) -> "ImagePromptNetwork":
        """Return itself: a copy of a model shares its weights."""
        return self

    @property
    def module(self) -> nn.Module:
        """The module of the U-Net without pictures."""
        return self.source.module

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the U-Net without pictures."""
        return self.source.config

    @property
    def num_bytes(self) -> int:
        """Bytes of the keys and values alone; the base network counts for itself."""
        return sum(4 * t.numel() for a in self._adapters for pair in a.pairs for t in pair)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network once; ``image_prompt_scales`` (R, K) and tokens may differ per row."""
        scales = inputs.pop(IMAGE_SCALES)
        tokens = [inputs.pop(f"{IMAGE_TOKENS}{k:02d}") for k in range(len(self._adapters))]
        if is_preparing():
            return self.source(**inputs)
        with self._lock, self._hooked(scales.tolist(), tokens):
            return self.source(**inputs)

    @contextmanager
    def _hooked(self, scales: list[list[float]], tokens: Sequence[Tensor]) -> Generator[None]:
        """Let every cross attention listen for the time of the body."""
        with ExitStack() as stack:
            for number, layer in enumerate(self._layers):
                pairs = [adapter.pairs[number] for adapter in self._adapters]
                remember, add = _hooks(layer.heads, pairs, scales, tokens)
                stack.callback(layer.to_q.register_forward_hook(remember).remove)
                stack.callback(layer.to_out[0].register_forward_pre_hook(add).remove)
            yield


def _cross_attentions(module: Any) -> list[Any]:
    """Return the cross attentions of a U-Net in the order that IP-Adapters number them."""
    names = [name.removesuffix(".processor") for name in module.attn_processors]
    return [module.get_submodule(name) for name in names if not name.endswith("attn1")]


def _hooks(
    heads: int,
    pairs: Sequence[tuple[Tensor, Tensor]],
    scales: list[list[float]],
    tokens: Sequence[Tensor],
) -> tuple[Callable[..., None], Callable[..., tuple[Tensor, ...]]]:
    """Return a hook that keeps the queries and one that adds what pictures answer to them."""
    queries: list[Tensor] = []
    owner = threading.get_ident()  # another thread may be in the same layers, without pictures

    def remember(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if threading.get_ident() == owner:
            queries[:] = [output]

    def add(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if threading.get_ident() != owner:
            return inputs
        hidden = inputs[0]
        rows: list[Tensor] = []
        for row, own in enumerate(scales):
            total = hidden[row : row + 1]
            query = _split(queries[0][row : row + 1], heads)
            for (key, value), scale, states in zip(pairs, own, tokens, strict=True):
                if scale:
                    seen = states[row : row + 1].to(device=query.device, dtype=query.dtype)
                    answer = functional.scaled_dot_product_attention(
                        query,
                        _split(functional.linear(seen, key.to(seen)), heads),
                        _split(functional.linear(seen, value.to(seen)), heads),
                    )
                    total = total + scale * answer.transpose(1, 2).flatten(2).to(total.dtype)
            rows.append(total)
        return (torch.cat(rows), *inputs[1:])

    return remember, add


def _split(states: Tensor, heads: int) -> Tensor:
    """Split the width over heads: (1, L, W) to (1, H, L, W / H)."""
    return states.unflatten(2, (heads, -1)).transpose(1, 2)


def with_ip_adapters(model: Model, adapters: Sequence[ImagePromptAdapter]) -> Model:
    """Return a view of a model that takes image prompts; the model itself stays as it is.

    The view shares every weight. Its conditionings have to carry :data:`IMAGE_SCALES`
    and the tokens that :meth:`~mezzotint.models.base.Model.encode_image_prompt` gives.

    Args:
        model: The base model; its U-Net must be able to run in torch.
        adapters: The adapters, in the order of the scales.

    Raises:
        InvalidRequest: If the model is no U-Net over latents.
        WeightsError: If an adapter does not fit.
    """
    if model.spec.family not in ("sd", "sdxl"):
        raise InvalidRequest(
            f"image_prompts cannot be honoured by {model.spec.name}: IP-Adapters are for families "
            f"sd and sdxl, it is {model.spec.family}",
            field="image_prompts",
        )
    view = copy.deepcopy(model)  # networks share themselves, see TorchNetwork.__deepcopy__
    source = torch_backed(view.networks["denoiser"], "image_prompts")
    view.networks["denoiser"] = ImagePromptNetwork(source, adapters)
    view.networks.update({f"{ENCODER}_{k}": a.encoder for k, a in enumerate(adapters)})

    def encode(index: int, pictures: Sequence[Any]) -> tuple[Tensor, Tensor]:
        return adapters[index].tokens(pictures)

    view.encode_image_prompt = encode  # type: ignore[method-assign]
    return view
