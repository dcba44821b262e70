"""IP-Adapter: pictures that speak beside the text, for some rows of a call.

A vision encoder turns pictures into a few tokens, and every cross attention of a
U-Net, or double block of FLUX, listens to them with keys and values of their own:
``attention(text) + scale * attention(pictures)``; those of Stable Diffusion 3 say something
else at each noise level. Here that sum is made by hooks that
exist only while one network call runs (see :mod:`mezzotint.models.adapters.listening`), so a
request without pictures cannot notice one before it.

Dimensions: R rows, K adapters, T tokens, D width of the text.
"""

import copy
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.models.adapters.ip_adapter_files import (
    ENCODER,
    family_of,
    find_ip_adapter,
    ip_adapter_digest,
    read_encoder,
    side_of,
    tensor_name,
)
from mezzotint.models.adapters.listening import (
    Heard,
    JointVoice,
    Linear,
    Listener,
    Pair,
    Voice,
    listeners,
)
from mezzotint.models.adapters.torch_backed import TorchBacked, torch_backed
from mezzotint.models.base import Model, Network
from mezzotint.models.digests import DIGESTS
from mezzotint.models.networks import (
    Placement,
    TorchNetwork,
    align_weights,
    is_preparing,
    use_row_linears,
)
from mezzotint.techniques.parts import ImagePrompt

__all__ = [
    "IMAGE_SCALES",
    "IMAGE_TOKENS",
    "ImagePromptAdapter",
    "ImagePromptNetwork",
    "crop_picture",
    "prepare_picture",
    "read_ip_adapter",
    "with_ip_adapters",
]

IMAGE_SCALES = "image_prompt_scales"
"""Name of the conditioning tensor with one scale per adapter, shape (R, K)."""

IMAGE_TOKENS = "image_prompt_"
"""Beginning of the names of the tokens, ``image_prompt_00``..., each (R, T, D)."""

_LONGEST = 16  # times the shorter side
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)  # of CLIP's training pictures
_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePromptAdapter:
    """An IP-Adapter.

    Args:
        name: Name for messages.
        digest: sha256 over its file and its encoder's.
        side: Pixels of the pictures that its encoder reads.
        uses_hidden: Whether the encoder's hidden states are projected ("plus"), not
            its one vector.
        encoder: The vision encoder.
        projection: Turns the encoder's answer into tokens.
        voices: What it says to every layer that listens, in order.
        is_timed: Whether tokens depend on the noise level (Stable Diffusion 3): then what
            stands beside the prompt is the encoder's answer.
    """

    name: str
    digest: str
    side: int
    uses_hidden: bool
    encoder: Network
    projection: nn.Module = field(repr=False)
    voices: tuple[Voice, ...] = field(repr=False)
    is_timed: bool = False

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
            pixels = prepare_picture(picture, self.side, is_cropped=not self.is_timed)
            (seen,) = self.encoder(pixel_values=pixels)
            if self.uses_hidden and not self.is_timed:
                (unseen,) = self.encoder(pixel_values=torch.zeros_like(pixels))
            else:
                unseen = torch.zeros_like(seen)
            positive.append(self._project(seen))
            negative.append(self._project(unseen))
        return torch.cat(positive, dim=1), torch.cat(negative, dim=1)

    def _project(self, seen: Tensor) -> Tensor:
        if self.is_timed:
            return seen.float()
        with torch.no_grad():
            return self.projection(seen).float()

    def states(
        self, tokens: Tensor, timestep: Tensor, scales: Sequence[float]
    ) -> list[tuple[Tensor, ...] | None]:
        """Return what each row's layers are told, None for a row whose scale is 0.

        Args:
            tokens: Of :meth:`tokens`, one row each. Shape (R, T, D).
            timestep: Of the rows. Shape (R,).
            scales: Of the rows.
        """
        found: list[tuple[Tensor, ...] | None] = []
        for row, scale in enumerate(scales):
            own = tokens[row : row + 1]
            if not scale:
                found.append(None)
            elif self.is_timed:
                projection = self.projection.to(own.device)
                with torch.no_grad():
                    found.append(projection(own, timestep[row : row + 1]))
            else:
                found.append((own,))
        return found


def _call_vector(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (module(inputs["pixel_values"]).image_embeds,)


def _call_hidden(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    output = module(pixel_values=inputs["pixel_values"], output_hidden_states=True)
    return (output.hidden_states[-2],)


def prepare_picture(pixels: np.ndarray, side: int, *, is_cropped: bool = True) -> Tensor:
    """Bring a picture to what a vision encoder reads.

    Args:
        pixels: Shape (H, W, 3), uint8.
        side: Pixels of each side afterwards.
        is_cropped: As for CLIP: the middle, CLIP's mean and deviation. Else as for SigLIP: all
            of it, in [-1, 1].

    Returns:
        Shape (1, 3, side, side), float32.
    """
    array = crop_picture(pixels, side, is_cropped=is_cropped).astype(np.float32) / 255
    array = (array - _MEAN) / _STD if is_cropped else array * 2 - 1
    return torch.as_tensor(np.ascontiguousarray(array.transpose(2, 0, 1))[None])


def crop_picture(pixels: np.ndarray, side: int, *, is_cropped: bool = True) -> np.ndarray:
    """Bring a picture's shorter side to what an encoder reads and keep the middle.

    What is cropped already stays as it is.

    Args:
        pixels: Shape (H, W, 3), uint8.
        side: Pixels of each side afterwards.
        is_cropped: False brings both sides to it.

    Returns:
        Shape (side, side, 3), uint8.
    """
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if not is_cropped:
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).copy()
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
    part = read_encoder(folder)
    with DIGESTS.loading({file: DIGESTS.digest(file)}):
        state = {tensor_name(key): tensor.clone() for key, tensor in load_file(file).items()}
    family = family_of(state)
    make = _joint_voices if family == "sd3" else _pairs
    voices = make(_below(state, "ip_adapter."), file)
    projection = _projection(_below(state, "image_proj."), file, family=family)
    uses_hidden = type(projection).__name__ != "ImageProjection"
    encoder = TorchNetwork.of(part, _call_hidden if uses_hidden else _call_vector, placement)
    encoder.field = f"{ImagePrompt.where}.model"
    return ImagePromptAdapter(
        name=name,
        digest=digest or ip_adapter_digest(path, name),
        side=side_of(part),
        uses_hidden=uses_hidden,
        encoder=encoder,
        projection=projection,
        voices=voices,
        is_timed=family == "sd3",
    )


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}


def _projection(state: dict[str, Tensor], file: Path, *, family: str) -> nn.Module:
    """Build the projection; diffusers tells the kinds apart and names their layers."""
    from diffusers.loaders.transformer_flux import FluxTransformer2DLoadersMixin
    from diffusers.loaders.transformer_sd3 import SD3Transformer2DLoadersMixin
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    loaders: dict[str, Any] = {
        "flux": FluxTransformer2DLoadersMixin,
        "sd3": SD3Transformer2DLoadersMixin,
        "sd": UNet2DConditionLoadersMixin,
    }
    build = loaders[family]._convert_ip_adapter_image_proj_to_diffusers
    try:
        module = build(cast("Any", None), state, low_cpu_mem_usage=False)
    except (KeyError, RuntimeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{file} holds no projection that is known: {error}") from None
    module = cast("nn.Module", module).eval().requires_grad_(False)
    return use_row_linears(align_weights(module))


def _pairs(state: Mapping[str, Tensor], file: Path) -> tuple[Voice, ...]:
    """Return keys and values in the order of the layers."""

    def linear(name: str) -> Linear:
        return Linear(state[f"{name}.weight"], state.get(f"{name}.bias"))

    try:
        pairs = tuple(Pair(linear(f"{n}.to_k_ip"), linear(f"{n}.to_v_ip")) for n in _numbers(state))
    except KeyError as error:
        raise WeightsError(f"{file} is no whole IP-Adapter: {error} is missing") from None
    if not pairs or any(one.weight.ndim != 2 for pair in pairs for one in pair):
        raise WeightsError(f"{file} is no IP-Adapter: it holds no keys and values (ip_adapter....)")
    return pairs


def _numbers(state: Mapping[str, Tensor]) -> list[int]:
    """Return the numbers of the layers that a file speaks to, rising."""
    return sorted({int(k.split(".")[0]) for k in state if k.split(".")[0].isdecimal()})


def _joint_voices(state: Mapping[str, Tensor], file: Path) -> tuple[Voice, ...]:
    """Return the layers of an IP-Adapter for Stable Diffusion 3, in order."""
    from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0

    voices: list[Voice] = []
    try:
        for number in _numbers(state):
            own = _below(state, f"{number}.")
            inner, width = own["to_k_ip.weight"].shape
            module: Any = SD3IPAdapterJointAttnProcessor2_0(
                hidden_size=inner,
                ip_hidden_states_dim=width,
                head_dim=own["norm_q.weight"].shape[0],
                timesteps_emb_dim=own["norm_ip.linear.weight"].shape[1],
            )
            module.load_state_dict(own)
            voices.append(JointVoice(use_row_linears(module.eval().requires_grad_(False))))
    except (KeyError, RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise WeightsError(f"{file} is no whole IP-Adapter: {first}") from None
    return tuple(voices)


class ImagePromptNetwork:
    """A denoiser that listens to pictures while it runs.

    Args:
        source: The denoiser without them; shared, never changed.
        adapters: The adapters, in the order of the scales.

    Raises:
        WeightsError: If an adapter was made for another denoiser.
    """

    def __init__(self, source: TorchBacked, adapters: Sequence[ImagePromptAdapter]) -> None:
        self.source = source
        self._adapters = tuple(adapters)
        self._lock = threading.Lock()
        self._held = source.module  # held, or a network that is let go builds other layers
        self._layers: list[Listener] = listeners(self._held)
        for adapter in adapters:
            inner = [layer.inner for layer in self._layers]
            if [voice.inner for voice in adapter.voices] != inner:
                raise WeightsError(
                    f"IP-Adapter {adapter.name} does not fit this model: it has keys for "
                    f"{len(adapter.voices)} layers, the model has {len(inner)} of widths {inner}"
                )

    def __deepcopy__(self, memo: object) -> "ImagePromptNetwork":
        """Return itself: a copy of a model shares its weights."""
        return self

    @property
    def module(self) -> nn.Module:
        """The module of the denoiser without pictures."""
        return self.source.module

    @property
    def config(self) -> Mapping[str, Any]:
        """The configuration of the denoiser without pictures."""
        return self.source.config

    @property
    def num_bytes(self) -> int:
        """Bytes of the adapters alone; the base network counts for itself."""
        voices = sum(voice.num_bytes for adapter in self._adapters for voice in adapter.voices)
        return voices + sum(p.nbytes for a in self._adapters for p in a.projection.parameters())

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network once; ``image_prompt_scales`` (R, K) and tokens may differ per row."""
        scales = inputs.pop(IMAGE_SCALES)
        tokens = [inputs.pop(f"{IMAGE_TOKENS}{k:02d}") for k in range(len(self._adapters))]
        if is_preparing():
            return self.source(**inputs)
        plain: list[list[float]] = scales.cpu().numpy().tolist()
        states = [
            adapter.states(own, inputs["timestep"], [row[k] for row in plain])
            for k, (adapter, own) in enumerate(zip(self._adapters, tokens, strict=True))
        ]
        with self._lock, self._hooked(plain, states):
            return self.source(**inputs)

    @contextmanager
    def _hooked(
        self,
        scales: list[list[float]],
        states: Sequence[Sequence[tuple[Tensor, ...] | None]],
    ) -> Generator[None]:
        """Let every layer listen for the time of the body."""
        with ExitStack() as stack:
            for number, layer in enumerate(self._layers):
                voices = [adapter.voices[number] for adapter in self._adapters]
                layer.listen(Heard(voices, scales, states), stack)
            yield


def with_ip_adapters(model: Model, adapters: Sequence[ImagePromptAdapter]) -> Model:
    """Return a view of a model that takes image prompts; the model itself stays as it is.

    The view shares every weight. Its conditionings have to carry :data:`IMAGE_SCALES`
    and the tokens that :meth:`~mezzotint.models.base.Model.encode_image_prompt` gives.

    Args:
        model: The base model; its denoiser must be able to run in torch.
        adapters: The adapters, in the order of the scales.

    Raises:
        InvalidRequest: If the model's denoiser does not run in torch.
        WeightsError: If an adapter does not fit.
    """
    view = copy.deepcopy(model)  # networks share themselves, see TorchNetwork.__deepcopy__
    source = torch_backed(view.networks["denoiser"], ImagePrompt.where)
    view.networks["denoiser"] = ImagePromptNetwork(source, adapters)
    view.networks.update({f"{ENCODER}_{k}": a.encoder for k, a in enumerate(adapters)})

    def encode(index: int, pictures: Sequence[Any]) -> tuple[Tensor, Tensor]:
        return adapters[index].tokens(pictures)

    view.encode_image_prompt = encode  # type: ignore[method-assign]
    return view
