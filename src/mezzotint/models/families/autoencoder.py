"""Autoencoders: clean latents to pictures and back, as diffusers scales them.

Dimensions: B rows, C latent channels, h and w latent rows and columns.
"""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mezzotint.errors import CardError, ShapeError, WorkFailed
from mezzotint.models.backends.cuts import Cut
from mezzotint.models.base import Network, Report
from mezzotint.models.finite import rows_not_finite
from mezzotint.models.networks import Call, Placement, TorchNetwork
from mezzotint.models.parts import Part, read_json

__all__ = [
    "PREVIEW_FILE",
    "PREVIEW_FOLDER",
    "PREVIEW_ROLE",
    "Autoencoder",
    "call_decoder",
    "fit_preview",
    "read_preview",
]

PREVIEW_FILE = "preview.json"
PREVIEW_FOLDER = "preview_decoder"
"""Folder of an AutoencoderTiny for previews, beside the parts of the pipeline."""

PREVIEW_ROLE = "preview"


def call_decoder(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Decode ``latents`` with a diffusers autoencoder of any kind."""
    return (module.decode(inputs["latents"], return_dict=False)[0],)


def _call_encoder(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Answer mean and log variance under each other, or the latents of a tiny encoder."""
    output = module.encode(inputs["images"], return_dict=False)[0]
    return (output if isinstance(output, Tensor) else output.parameters,)


def _decode_frame(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Decode ``latents`` as the only frame of a video."""
    return (module.decode(inputs["latents"][:, :, None], return_dict=False)[0][:, :, 0],)


def _encode_frame(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Encode ``images`` as the only frame of a video: mean and log variance."""
    output = module.encode(inputs["images"][:, :, None], return_dict=False)[0]
    return (output.parameters[:, :, 0],)


def _decode_layer(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Decode ``latents`` as the only frame; what is not opaque lies on white (Qwen-Image 2.1)."""
    (frame,) = _decode_frame(module, inputs)
    colours, opacity = frame[:, :3], (frame[:, 3:] + 1) / 2
    return (1 - (1 - colours) * opacity if opacity.shape[1] else colours,)


def _encode_layer(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Encode ``images`` as the only frame, opaque: mean and log variance."""
    images = inputs["images"]
    rows, channels, height, width = images.shape
    opaque = images.new_ones(rows, module.config.in_channels - channels, height, width)
    return _encode_frame(module, {"images": torch.cat([images, opaque], dim=1)})


def _decode_patches(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Decode normalised 2x2 patches (FLUX.2). (B, 4 C, h, w) -> (B, 3, H, W)."""
    mean, deviation = _statistics(module)
    patches = inputs["latents"] * deviation + mean
    rows, channels, height, width = patches.shape
    grid = patches.reshape(rows, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    latents = grid.reshape(rows, channels // 4, 2 * height, 2 * width)
    return (module.decode(latents, return_dict=False)[0],)


def _encode_patches(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Encode to normalised 2x2 patches of the mean, which FLUX.2's pipelines take."""
    latents = module.encode(inputs["images"], return_dict=False)[0].mode()
    rows, channels, height, width = latents.shape
    grid = latents.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    mean, deviation = _statistics(module)
    return ((grid.reshape(rows, 4 * channels, height // 2, width // 2) - mean) / deviation,)


def _statistics(module: Any) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of patches, as the checkpoint brings them."""
    variance = module.bn.running_var + module.config.batch_norm_eps
    return module.bn.running_mean.reshape(1, -1, 1, 1), variance.sqrt().reshape(1, -1, 1, 1)


def _of_patches(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return channels and scale of an autoencoder whose latents are 2x2 patches."""
    channels, scale = _of_pictures(config)
    return 4 * channels, 2 * scale


def _of_frames(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return channels and scale of an autoencoder of videos."""
    return int(config["z_dim"]), 2 ** len(config["temperal_downsample"])


def _of_deep_levels(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return channels and scale of a deep compression autoencoder (Sana)."""
    return int(config["latent_channels"]), 2 ** (len(config["encoder_block_out_channels"]) - 1)


def _of_pictures(config: Mapping[str, Any]) -> tuple[int, int]:
    """Return channels and scale of an autoencoder of pictures."""
    levels = config.get("block_out_channels") or config.get("decoder_block_out_channels") or ()
    return int(config.get("latent_channels", 4)), 2 ** (len(levels) - 1) if levels else 8


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a class of autoencoders is called, and what its configuration says."""

    decode: Call = call_decoder
    encode: Call = _call_encoder
    shape: Callable[[Mapping[str, Any]], tuple[int, int]] = _of_pictures


_KINDS = {
    "AutoencoderDC": _Kind(shape=_of_deep_levels),
    "AutoencoderKLFlux2": _Kind(_decode_patches, _encode_patches, _of_patches),
    "AutoencoderKLQwenImage": _Kind(_decode_frame, _encode_frame, _of_frames),
    "AutoencoderKLQwenImage21": _Kind(_decode_layer, _encode_layer, _of_frames),
}
"""By class; any other is of pictures."""


class Autoencoder:
    """The two ends of a latent model.

    Args:
        part: The VAE: AutoencoderKL, AutoencoderTiny or one of :data:`_KINDS`.
        networks: The model's networks; ``"decoder"`` and ``"encoder"`` are added.
        placement: Where and in which type it computes; a VAE that asks for
            float32 (``force_upcast``) gets it.
        upcasts: What a VAE asks for that does not say; its class says yes, and SDXL's
            pipeline alone listens.

    Attributes:
        channels: Latent channels.
        scale: Pixels per latent row and column.
        tile: Latent rows and columns of a tile: what the autoencoder was trained at.
        is_sliced: Whether pictures go through it one at a time.
        is_tiled: Whether a picture larger than a tile goes through it in tiles.
        is_circular: Whether what lies outside a picture is its other side.
    """

    def __init__(
        self,
        part: Part,
        networks: dict[str, Network],
        placement: Placement,
        *,
        upcasts: bool = False,
    ) -> None:
        config = part.config
        if config.get("force_upcast", upcasts) and placement.is_float16:
            placement = placement.in_float32()
        self._networks = networks
        kind = _KINDS.get(part.class_name, _Kind())
        self.channels, self.scale = kind.shape(config)
        self.tile = _trained_side(config.get("sample_size")) // self.scale
        self.is_sliced = False
        self.is_tiled = False
        self.is_circular = False
        self._factor = float(config.get("scaling_factor") or 1.0)  # a class without one scales not
        self._shift = float(config.get("shift_factor") or 0.0)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        self._mean = torch.tensor(mean).reshape(1, -1, 1, 1) if mean and std else None
        self._std = torch.tensor(std).reshape(1, -1, 1, 1) if mean and std else None
        build = _build_once(part)
        decoder = TorchNetwork.of(part, kind.decode, placement, build=build)
        networks["decoder"] = decoder
        encoder = TorchNetwork.of(part, kind.encode, placement, build=build)
        encoder.num_bytes = 0  # the same weights as the decoder's
        networks["encoder"] = encoder
        self._rescue = (
            decoder
            if placement.is_float32
            else TorchNetwork.of(part, kind.decode, placement.in_float32(), build=part.build)
        )

    def decode(self, latents: Tensor, report: Report | None = None) -> Tensor:
        """Turn clean latents into pictures in [-1, 1], (B, 3, H, W), float32.

        Raises:
            ShapeError: If the latents have other channels.
            WorkFailed: If a picture is not finite even in float32.
        """
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ShapeError(
                f"latents must have shape (B, {self.channels}, h, w), got {tuple(latents.shape)}"
            )
        scaled = self._unscale(latents.float())
        network = self._networks["decoder"]
        images = self._decode_with(network, scaled)
        bad = rows_not_finite(images)
        if bad and network is not self._rescue and not rows_not_finite(latents[bad]):
            images = images.clone()
            if isinstance(network, TorchNetwork):
                self._rescue.offload = network.offload
            for row in bad:  # two equal rows: the same bits however many are rescued
                images[row] = self._decode_with(self._rescue, scaled[[row, row]])[0]
                if report is not None:
                    report(row, "the decoder overflowed; the picture was decoded again in float32")
            bad = rows_not_finite(images)
        if bad:
            where = ", ".join(map(str, bad))
            raise WorkFailed(
                f"the model made no finite picture, even in float32 (row {where} of {len(images)})"
            )
        return images.clamp(-1, 1)

    def encode(
        self, images: Tensor, generators: Sequence[torch.Generator | None] | None = None
    ) -> Tensor:
        """Turn pictures in [-1, 1] into clean latents, one CPU generator each; None is the mean."""
        moments = self._encode_with(self._networks["encoder"], images)
        if moments.shape[1] == self.channels:
            return self._rescale(moments)
        mean, log_variance = moments.chunk(2, dim=1)
        deviation = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
        rows = [
            mean[k : k + 1] + deviation[k : k + 1] * _noise(mean[k : k + 1], generator)
            if (generator := generators[k] if generators else None) is not None
            else mean[k : k + 1]
            for k in range(len(mean))
        ]
        return self._rescale(torch.cat(rows))

    @property
    def offset(self) -> float:
        """What scaling takes off a clean latent for the shift of its middle."""
        return self._shift * self._factor

    def _decode_with(self, network: Network, latents: Tensor) -> Tensor:
        """Ask a decoder, in the cuts that were asked for. (B, C, h, w) -> (B, 3, H, W)."""
        cut = self._cut(before=1, after=self.scale)
        return self._in_slices(
            lambda rows: cut.call(lambda t: network(latents=t)[0], rows), latents
        )

    def _encode_with(self, network: Network, images: Tensor) -> Tensor:
        """Ask an encoder, in the cuts that were asked for. (B, 3, H, W) -> (B, 2C or C, h, w)."""
        cut = self._cut(before=self.scale, after=1)
        return self._in_slices(lambda rows: cut.call(lambda t: network(images=t)[0], rows), images)

    def _cut(self, *, before: int, after: int) -> Cut:
        side = self.tile if self.is_tiled else 0
        return Cut(side, is_circular=self.is_circular, before=before, after=after)

    def _in_slices(self, call: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """Call with all rows at once, or one by one."""
        if not self.is_sliced or len(rows) == 1:
            return call(rows)
        return torch.cat([call(row) for row in torch.split(rows, 1)])

    def _unscale(self, latents: Tensor) -> Tensor:
        """Undo the scaling that diffusion works in."""
        if self._mean is not None and self._std is not None:
            std, mean = self._std.to(latents.device), self._mean.to(latents.device)
            return latents * std / self._factor + mean
        return latents / self._factor + self._shift

    def _rescale(self, latents: Tensor) -> Tensor:
        """Apply the scaling that diffusion works in."""
        if self._mean is not None and self._std is not None:
            std, mean = self._std.to(latents.device), self._mean.to(latents.device)
            return (latents - mean) * self._factor / std
        return (latents - self._shift) * self._factor


def _trained_side(sample_size: Any) -> int:
    """Return the side of the pictures an autoencoder was trained at, in pixels."""
    is_each = isinstance(sample_size, list | tuple)
    sides = cast("Sequence[Any]", sample_size) if is_each else (sample_size or 512,)
    return max(64, *(int(side) for side in sides))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw float32 noise on the CPU, then move it."""
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device)


def _build_once(part: Part) -> Any:
    """Return a build function whose module decoder and encoder share while either has it."""
    built: dict[torch.dtype, weakref.ref[nn.Module]] = {}
    lock = threading.Lock()

    def build(dtype: torch.dtype) -> nn.Module:
        with lock:
            known = built.get(dtype)
            module = known() if known is not None else None
            if module is None:
                module = part.build(dtype)
                built[dtype] = weakref.ref(module)
            return module

    return build


def read_preview(path: str, channels: int) -> Tensor | None:
    """Read the linear map that a model folder brings in ``preview.json``, if it does.

    The file holds ``matrix`` (3 rows of C) and ``bias`` (3), colours in [-1, 1].

    Returns:
        The map as :func:`fit_preview` gives it, or None.

    Raises:
        CardError: If the file is there and cannot be understood.
    """
    file = Path(path) / PREVIEW_FILE
    if not path or not file.is_file():
        return None
    data = read_json(file)
    try:
        matrix = torch.tensor([*zip(*data["matrix"], strict=True), data["bias"]]).float()
    except (KeyError, TypeError, ValueError) as error:
        raise CardError(f"{file} needs matrix (3 rows) and bias (3): {error}") from None
    if matrix.shape != (channels + 1, 3):
        raise CardError(f"{file} is for {len(matrix) - 1} channels, the model has {channels}")
    return matrix


def fit_preview(decode: Any, channels: int, *, rows: int = 12, side: int = 16) -> Tensor:
    """Fit the linear map from latent channels to RGB by least squares.

    Latents of coarse random blocks are decoded, and each latent's picture is
    averaged over its block.

    Args:
        decode: ``(rows, C, h, w) -> (rows, 3, H, W)``.
        channels: C.
        rows: Pictures to fit on.
        side: Latent rows and columns of each.

    Returns:
        The map. Shape (C + 1, 3), float32; the last row is the bias.
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn((rows, channels, side // 4, side // 4), generator=generator)
    latents = nn.functional.interpolate(coarse, size=(side, side), mode="nearest")
    images = decode(latents).cpu()
    colours = nn.functional.adaptive_avg_pool2d(images, side).permute(0, 2, 3, 1).reshape(-1, 3)
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, channels)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    linalg: Any = torch.linalg  # says nothing of what it solves with
    return linalg.lstsq(inputs.double(), colours.double()).solution.float()
