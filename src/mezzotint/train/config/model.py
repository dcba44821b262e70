"""Configuration of what is learned: the data, the network, its steering, its objective."""

from dataclasses import dataclass
from typing import Literal

from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range

__all__ = [
    "ConditioningConfig",
    "DataConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "Schedule",
    "Target",
]

Schedule = Literal["linear", "scaled_linear", "cosine", "sigmoid_beta", "sigmoid", "rectified_flow"]
Target = Literal["epsilon", "v", "sample", "flow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig(Checked):
    """What is learned.

    Args:
        path: A folder or a file. Folders of pictures (with ``metadata.jsonl`` or
            ``NAME.txt`` captions), folders of class folders, ``.parquet``,
            ``.tar`` shards (WebDataset), ``.npy``, ``.npz``, Zarr.
        kind: What the path holds; ``"auto"`` looks.
        resolution: Shorter side in pixels; None takes the pictures' own.
        channels: 3 for colour, 1 for grey pictures. Arrays have their own.
        fit: What happens to a picture of another size: ``exact`` refuses,
            ``crop`` scales and crops the middle, ``pad`` scales and pads,
            ``buckets`` keeps the aspect in size buckets of equal area.
        bucket_multiple: Bucket sides are multiples of this, in pixels.
        flip: Mirror half of the pictures or fields left to right.
        shift: Largest random translation as a fraction of the side, 0 to 0.5.
        brightness: Largest random change of brightness, 0 to 1.
        contrast: Largest random change of contrast, 0 to 1.
        image_column: Column or tar extension of the encoded picture; "" looks.
        caption_column: Column (or ``metadata.jsonl`` key) of the caption.
        label_column: Column of the class label; "" has none.
        array: Name of the array in an ``.npz`` or Zarr group; "" takes the only one.
        labels: Name of the array with integer class labels; "" has none.
        class_names: Name of the array with a text for each class; "" has none, and the
            classes are called by their numbers.
        channel_names: What each channel of an array is, with its unit, for figures.
        sample_rate: Values a second of series that are sound, in Hz: they are written as
            WAV and drawn as spectrograms, and their values are fractions of full scale,
            -1 to 1. 0 is no sound.
        normalisation: ``standard`` (mean 0, deviation 1 of each channel),
            ``range`` (each channel to [-1, 1]) or ``none``; arrays only. It is
            kept with the model and undone on output.
        held_out: Fraction kept out of training for the held-out loss, 0 to 0.5.
        on_broken: ``refuse`` names broken files and stops; ``skip`` leaves them out.
        cache_mb: Memory for decoded pictures.
    """

    path: str
    kind: Literal["auto", "images", "classes", "parquet", "webdataset", "arrays"] = "auto"
    resolution: int | None = None
    channels: Literal[1, 3] = 3
    fit: Literal["exact", "crop", "pad", "buckets"] = "exact"
    bucket_multiple: int = 8
    flip: bool = False
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    image_column: str = ""
    caption_column: str = "text"
    label_column: str = ""
    array: str = ""
    labels: str = ""
    class_names: str = ""
    channel_names: tuple[str, ...] = ()
    sample_rate: int = 0
    normalisation: Literal["standard", "range", "none"] = "standard"
    held_out: float = 0.0
    on_broken: Literal["refuse", "skip"] = "refuse"
    cache_mb: int = 1024

    def _validate(self) -> None:
        check_range("data.resolution", self.resolution, 4, 4096, unit=" px")
        check_range("data.bucket_multiple", self.bucket_multiple, 1, 512, unit=" px")
        check_range("data.shift", self.shift, 0, 0.5)
        check_range("data.brightness", self.brightness, 0, 1)
        check_range("data.contrast", self.contrast, 0, 1)
        check_range("data.held_out", self.held_out, 0, 0.5)
        check_range("data.cache_mb", self.cache_mb, 0, 1 << 20, unit=" MiB")
        check_range("data.sample_rate", self.sample_rate, 0, 1 << 20, unit=" Hz")
        if not self.path:
            raise InvalidRequest("data.path must name a folder or a file", field="data.path")
        if self.fit == "buckets" and self.resolution is None:
            raise InvalidRequest(
                'data.fit "buckets" needs data.resolution, the side of the square bucket',
                field="data.resolution",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig(Checked):
    """The network that learns.

    Args:
        kind: ``unet2d`` (pictures and fields), ``unet2d_condition`` (with text),
            ``dit`` (a transformer over patches), ``mlp`` (points), ``unet1d``
            (series); ``auto`` chooses from data and conditioning.
        channels: Width of each level, from full resolution down.
        layers: Residual blocks of each level.
        attention: Levels with self-attention, 0 is full resolution.
        hidden: Width of ``mlp`` and ``dit``.
        depth: Blocks of ``mlp`` and ``dit``.
        heads: Attention heads; ``hidden`` (or each attended level) must divide by it.
        patch: Side of a ``dit`` patch.
        fold: Neighbouring values of a series that ``unet1d`` takes for one position of so
            many channels; the first level is as much shorter, and as much cheaper.
        gated: Let gates choose what passes through ``unet1d`` in place of bending the
            signal: for sound, whose label is its frequencies.
        dropout: Dropout inside the network, 0 to 0.9.
        vae: Model folder whose ``vae`` gives the latent space; "" is pixel space.
        text_encoder: Model folder whose ``tokenizer`` and ``text_encoder`` are
            used, frozen; "" learns small ones together with the network.
        text_hidden: Width of a learned text encoder.
        text_layers: Layers of a learned text encoder.
        text_tokens: Longest caption in tokens, start and end included.
        vocabulary: Size of a learned vocabulary, at most.
    """

    kind: Literal["auto", "unet2d", "unet2d_condition", "dit", "mlp", "unet1d"] = "auto"
    channels: tuple[int, ...] = (64, 128, 256)
    layers: int = 2
    attention: tuple[int, ...] = ()
    hidden: int = 256
    depth: int = 4
    heads: int = 4
    patch: int = 2
    fold: int = 1
    gated: bool = False
    dropout: float = 0.0
    vae: str = ""
    text_encoder: str = ""
    text_hidden: int = 128
    text_layers: int = 2
    text_tokens: int = 77
    vocabulary: int = 2048

    def _validate(self) -> None:
        if not self.channels:
            raise InvalidRequest(
                "network.channels must name the width of at least one level",
                field="network.channels",
            )
        for position, width in enumerate(self.channels):
            check_range(f"network.channels[{position}]", width, 4, 8192)
        for level in self.attention:
            check_range("network.attention", level, 0, len(self.channels) - 1)
        check_range("network.layers", self.layers, 1, 16)
        check_range("network.hidden", self.hidden, 4, 16384)
        check_range("network.depth", self.depth, 1, 128)
        check_range("network.heads", self.heads, 1, 256)
        check_range("network.patch", self.patch, 1, 64)
        check_range("network.fold", self.fold, 1, 4096)
        check_range("network.dropout", self.dropout, 0, 0.9)
        check_range("network.text_hidden", self.text_hidden, 8, 4096)
        check_range("network.text_layers", self.text_layers, 1, 64)
        check_range("network.text_tokens", self.text_tokens, 4, 512)
        check_range("network.vocabulary", self.vocabulary, 300, 65536)
        if self.kind == "dit" and self.hidden % self.heads:
            raise InvalidRequest(
                f"network.hidden must be a multiple of network.heads, got {self.hidden} "
                f"and {self.heads}",
                field="network.hidden",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditioningConfig(Checked):
    """What steers the network.

    Args:
        kind: ``none``, ``class`` (labels) or ``text`` (captions).
        dropout: Fraction of samples trained without it, for guidance, 0 to 1.
    """

    kind: Literal["none", "class", "text"] = "none"
    dropout: float = 0.1

    def _validate(self) -> None:
        check_range("conditioning.dropout", self.dropout, 0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveConfig(Checked):
    """What is predicted, under which noise, and how errors weigh.

    Args:
        schedule: Noise schedule. ``sigmoid`` is a sigmoid of alpha-bar
            (arXiv:2212.11972), ``sigmoid_beta`` one of beta (diffusers'
            ``sigmoid``); they differ widely. ``rectified_flow`` is the straight
            path between data and noise.
        target: What the network predicts; ``flow`` belongs to ``rectified_flow``.
        zero_terminal_snr: Rescale the schedule so that the last step is pure
            noise (arXiv:2305.08891); needs target ``v`` or ``sample``.
        num_train_timesteps: Length of the schedule.
        min_snr_gamma: Cap of the signal-to-noise weight (arXiv:2303.09556);
            0 weighs all noise levels alike.
        logit_mean: Centre of the logit-normal times of ``rectified_flow``.
        logit_std: Width of the logit-normal times; 0 draws times uniformly.
        flow_shift: Shift of the flow times towards noise, > 0; 1 is none.
        loss: ``mse``, ``l1`` or ``huber``.
    """

    schedule: Schedule = "cosine"
    target: Target = "v"
    zero_terminal_snr: bool = False
    num_train_timesteps: int = 1000
    min_snr_gamma: float = 0.0
    logit_mean: float = 0.0
    logit_std: float = 1.0
    flow_shift: float = 1.0
    loss: Literal["mse", "l1", "huber"] = "mse"

    def _validate(self) -> None:
        check_range("objective.num_train_timesteps", self.num_train_timesteps, 2, 100_000)
        check_range("objective.min_snr_gamma", self.min_snr_gamma, 0, 1000)
        check_range("objective.logit_mean", self.logit_mean, -10, 10)
        check_range("objective.logit_std", self.logit_std, 0, 10)
        check_range("objective.flow_shift", self.flow_shift, 1e-3, 100)
        if (self.schedule == "rectified_flow") != (self.target == "flow"):
            raise InvalidRequest(
                'objective.target "flow" and objective.schedule "rectified_flow" belong together, '
                f"got target {self.target!r} with schedule {self.schedule!r}",
                field="objective.target",
                value=self.target,
            )
        if self.zero_terminal_snr and self.target not in ("v", "sample"):
            raise InvalidRequest(
                'objective.zero_terminal_snr needs target "v" or "sample": at pure noise '
                f"epsilon says nothing about the data, got {self.target!r}",
                field="objective.zero_terminal_snr",
                value=self.target,
                allowed="v, sample",
            )
        if self.min_snr_gamma and self.target == "flow":
            raise InvalidRequest(
                "objective.min_snr_gamma is defined for noise schedules, not for target "
                '"flow"; use logit_mean and logit_std',
                field="objective.min_snr_gamma",
            )
