"""Configuration of a training run: plain, frozen, checked before any compute.

A run is described by one TOML file::

    output_dir = "runs/rings"
    kind = "diffusion"

    [data]
    path = "pictures"
    resolution = 64

    [objective]
    schedule = "cosine"
    target = "v"

Unknown keys are refused and name the nearest known one. Paths are relative to
the folder the command runs in, as on any command line. No torch in this file.
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range, read, write
from mezzotint.types import MAX_SEED

__all__ = [
    "AdversarialConfig",
    "AutoencoderConfig",
    "CheckpointConfig",
    "ConditioningConfig",
    "DataConfig",
    "DistillConfig",
    "EmaConfig",
    "LoopConfig",
    "LoraConfig",
    "NetworkConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "SamplesConfig",
    "TrainConfig",
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig(Checked):
    """How weights move.

    Args:
        kind: ``adamw`` or ``adam``.
        learning_rate: Step size after warm-up.
        betas: Decay of the two moments.
        weight_decay: Decoupled weight decay.
        epsilon: Denominator term.
        warmup_steps: Steps of linear warm-up.
        decay: Course after warm-up: ``constant``, ``linear`` or ``cosine`` to 0.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    epsilon: float = 1e-8
    warmup_steps: int = 0
    decay: Literal["constant", "linear", "cosine"] = "constant"

    def _validate(self) -> None:
        check_range("optimizer.learning_rate", self.learning_rate, 1e-9, 10)
        for beta in self.betas:
            check_range("optimizer.betas", beta, 0, 0.999999)
        check_range("optimizer.weight_decay", self.weight_decay, 0, 10)
        check_range("optimizer.epsilon", self.epsilon, 1e-16, 1)
        check_range("optimizer.warmup_steps", self.warmup_steps, 0, 10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaConfig(Checked):
    """Running means of the weights; the first one is what samples and is served.

    Args:
        decays: One mean per decay, each in [0, 1); empty keeps none.
        warmup: Whether the decay rises as ``(1 + t) / (10 + t)`` at first.
    """

    decays: tuple[float, ...] = (0.999,)
    warmup: bool = True

    def _validate(self) -> None:
        for position, decay in enumerate(self.decays):
            check_range(f"ema.decays[{position}]", decay, 0, 0.9999999)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig(Checked):
    """How long and how the loop runs.

    Args:
        steps: Optimiser steps.
        batch_size: Samples of one forward pass on one device.
        accumulate: Forward passes of one optimiser step.
        clip_norm: Largest gradient norm; 0 does not clip.
        precision: ``no`` (float32), ``bf16`` or ``fp16`` (CUDA only).
        compile: Compile the network with ``torch.compile``.
        gradient_checkpointing: Trade time for memory.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads; 0 leaves them as they are.
        log_every: Steps between lines of ``metrics.jsonl``.
        evaluate_every: Steps between held-out losses; 0 is never.
        patience: Held-out losses without improvement before an early stop; 0 never stops.
        max_bad_steps: Non-finite steps in a row before a rollback.
        max_rollbacks: Rollbacks before the run gives up.
        rollback_scale: Factor of the learning rate at each rollback.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    clip_norm: float = 1.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int = 0
    log_every: int = 50
    evaluate_every: int = 0
    patience: int = 0
    max_bad_steps: int = 3
    max_rollbacks: int = 5
    rollback_scale: float = 0.5

    def _validate(self) -> None:
        check_range("loop.steps", self.steps, 1, 100_000_000)
        check_range("loop.batch_size", self.batch_size, 1, 65536)
        check_range("loop.accumulate", self.accumulate, 1, 4096)
        check_range("loop.clip_norm", self.clip_norm, 0, 1e6)
        check_range("loop.threads", self.threads, 0, 1024)
        check_range("loop.log_every", self.log_every, 1, 1_000_000)
        check_range("loop.evaluate_every", self.evaluate_every, 0, 100_000_000)
        check_range("loop.patience", self.patience, 0, 10_000)
        check_range("loop.max_bad_steps", self.max_bad_steps, 1, 1000)
        check_range("loop.max_rollbacks", self.max_rollbacks, 0, 1000)
        check_range("loop.rollback_scale", self.rollback_scale, 0.01, 1)
        if self.patience and not self.evaluate_every:
            raise InvalidRequest(
                "loop.patience needs loop.evaluate_every, the steps between held-out losses",
                field="loop.patience",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig(Checked):
    """When state is kept.

    Args:
        every: Steps between checkpoints; 0 keeps only the last.
        keep: Newest checkpoints that stay on disk.
        export_every: Steps between exports of the run folder as a model; 0 at the end.
    """

    every: int = 1000
    keep: int = 2
    export_every: int = 0

    def _validate(self) -> None:
        check_range("checkpoint.every", self.every, 0, 100_000_000)
        check_range("checkpoint.keep", self.keep, 1, 1000)
        check_range("checkpoint.export_every", self.export_every, 0, 100_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesConfig(Checked):
    """Pictures made while training, always from the same noise and prompts.

    Args:
        every: Steps between grids; 0 is never.
        count: Pictures of one grid where no prompts are given.
        prompts: Text of each picture, or class labels as text.
        seed: Seed of the first picture; picture k uses ``seed + k``.
        num_inference_steps: Solver steps; None is the model's own.
        guidance_scale: Guidance; None is the model's own.
        scheduler: Solver; None is the model's own.
        history: Keep each grid beside the refreshed one.
        tensorboard: Also write curves and grids for TensorBoard into ``tensorboard/``.
    """

    every: int = 0
    count: int = 16
    prompts: tuple[str, ...] = ()
    seed: int = 0
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    history: bool = True
    tensorboard: bool = False

    def _validate(self) -> None:
        check_range("samples.every", self.every, 0, 100_000_000)
        check_range("samples.count", self.count, 1, 1024)
        check_range("samples.seed", self.seed, 0, MAX_SEED)
        check_range("samples.num_inference_steps", self.num_inference_steps, 1, 1000)
        check_range("samples.guidance_scale", self.guidance_scale, 0, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig(Checked):
    """The latent space (``kind = "autoencoder"``); levels come from ``network.channels``.

    Args:
        latent_channels: Channels of the latents.
        kl_weight: Weight of the pull towards a unit normal.
        gradient_weight: Weight of the error of horizontal and vertical differences,
            which keeps edges sharp.
        mean_squared: Use squared instead of absolute error.
    """

    latent_channels: int = 4
    kl_weight: float = 1e-6
    gradient_weight: float = 0.5
    mean_squared: bool = False

    def _validate(self) -> None:
        check_range("autoencoder.latent_channels", self.latent_channels, 1, 64)
        check_range("autoencoder.kl_weight", self.kl_weight, 0, 100)
        check_range("autoencoder.gradient_weight", self.gradient_weight, 0, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialConfig(Checked):
    """GAN training (``kind = "gan"``).

    Args:
        loss: ``dcgan`` (the non-saturating loss) or ``relativistic`` (each real
            against a fake, with gradient penalties on both; arXiv:2501.05441).
        latent_size: Length of z.
        base_channels: Width of the level nearest the pixels.
        penalty: Weight of the two gradient penalties of ``relativistic``.
        augment: Probability of a differentiable augmentation of what the
            discriminator sees, fakes and reals alike (arXiv:2006.10738).
        discriminator_rate: Learning rate of the discriminator relative to the generator's.
    """

    loss: Literal["dcgan", "relativistic"] = "relativistic"
    latent_size: int = 64
    base_channels: int = 32
    penalty: float = 1.0
    augment: float = 0.5
    discriminator_rate: float = 1.0

    def _validate(self) -> None:
        check_range("adversarial.latent_size", self.latent_size, 1, 4096)
        check_range("adversarial.base_channels", self.base_channels, 4, 1024)
        check_range("adversarial.penalty", self.penalty, 0, 1000)
        check_range("adversarial.augment", self.augment, 0, 1)
        check_range("adversarial.discriminator_rate", self.discriminator_rate, 0.01, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig(Checked):
    """A low-rank change of a loaded model (``kind = "lora"``).

    Args:
        rank: Rank of each change.
        alpha: Scale; None is the rank, so that the change is used as learned.
        modules: Names of the layers changed, as suffixes.
        dropout: Dropout before each change.
        merge: Also write the whole model with the change merged in, so that the
            run folder is a model; without it the run folder holds the change alone.
    """

    rank: int = 8
    alpha: float | None = None
    modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    dropout: float = 0.0
    merge: bool = True

    def _validate(self) -> None:
        check_range("lora.rank", self.rank, 1, 1024)
        check_range("lora.alpha", self.alpha, 1e-6, 1e6)
        check_range("lora.dropout", self.dropout, 0, 0.9)
        if not self.modules:
            raise InvalidRequest("lora.modules must name at least one layer", field="lora.modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig(Checked):
    """A few-step student of a loaded model (``kind = "distill"``; arXiv:2310.04378).

    Args:
        steps: Steps the student is meant for; also the model's default.
        teacher_steps: Steps of the teacher's DDIM grid, a multiple of ``steps``.
        guidance: Range of guidance scales folded into the student.
        target_decay: Decay of the target network.
        huber: Width of the pseudo-Huber loss.
    """

    steps: int = 4
    teacher_steps: int = 50
    guidance: tuple[float, float] = (3.0, 3.0)
    target_decay: float = 0.95
    huber: float = 1e-3

    def _validate(self) -> None:
        check_range("distill.steps", self.steps, 1, 100)
        check_range("distill.teacher_steps", self.teacher_steps, self.steps, 1000)
        for scale in self.guidance:
            check_range("distill.guidance", scale, 0, 100)
        check_range("distill.target_decay", self.target_decay, 0, 0.99999)
        check_range("distill.huber", self.huber, 1e-6, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(Checked):
    """A whole training run.

    Args:
        output_dir: The run folder; it becomes a model.
        data: What is learned.
        kind: What is trained.
        base: Model folder that ``lora`` and ``distill`` start from; for
            ``diffusion`` the weights to go on from, "" for fresh ones.
        seed: Seed of weights, order, noise and augmentation.
        licence: SPDX id or a sentence, kept with the model.
    """

    output_dir: str
    data: DataConfig
    kind: Literal["diffusion", "autoencoder", "gan", "lora", "distill"] = "diffusion"
    base: str = ""
    seed: int = 0
    licence: str = "unknown"
    network: NetworkConfig = NetworkConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    loop: LoopConfig = LoopConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    lora: LoraConfig = LoraConfig()
    distill: DistillConfig = DistillConfig()

    def _validate(self) -> None:
        check_range("seed", self.seed, 0, MAX_SEED)
        if not self.output_dir:
            raise InvalidRequest("output_dir must name the run folder", field="output_dir")
        if self.kind in ("lora", "distill") and not self.base:
            raise InvalidRequest(
                f'base must name the model that kind "{self.kind}" starts from', field="base"
            )
        if self.loop.evaluate_every and not self.data.held_out:
            raise InvalidRequest(
                "loop.evaluate_every needs data.held_out, the fraction kept out of training",
                field="data.held_out",
            )

    @classmethod
    def from_toml(cls, path: str | Path) -> "TrainConfig":
        """Read a configuration file.

        Raises:
            InvalidRequest: If the file cannot be read, is not TOML, or a value
                has the wrong type or is out of range.
            UnknownName: If a key does not exist; names the nearest one.
        """
        try:
            data = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise InvalidRequest(f"cannot read {path}: {error.strerror}", field="config") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"{path} is not valid TOML: {error}", field="config") from None
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainConfig":
        """Read plain data; the inverse of :meth:`to_dict`.

        Raises:
            InvalidRequest: If something is missing or wrong, by its dotted name.
        """
        for needed in ("output_dir", "data"):
            if needed not in data:
                raise InvalidRequest(f"{needed} is needed in a training run", field=needed)
        return read(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; only what differs from the default."""
        return write(self)

    @property
    def digest(self) -> str:
        """The sha256 over everything that decides the weights, 64 hex digits."""
        return hashlib.sha256(json.dumps(self.deciding(), sort_keys=True).encode()).hexdigest()

    def deciding(self) -> dict[str, Any]:
        """Return every value that decides the weights, by its dotted name.

        Where the run writes, how often it reports and what it samples do not.
        The number of steps does only where the learning rate decays with it.
        """
        found = dict(_flatten(self, ""))
        silent = ("output_dir", "licence", "samples.", "checkpoint.", "loop.log_every")
        silent += ("data.cache_mb", "loop.max_", "loop.patience", "lora.merge")
        rooms = {"autoencoder": "autoencoder", "gan": "adversarial", "lora": "lora"}
        rooms["distill"] = "distill"
        silent += tuple(f"{room}." for kind, room in rooms.items() if kind != self.kind)
        if self.optimizer.decay == "constant":
            silent += ("loop.steps",)
        return {k: v for k, v in found.items() if not k.startswith(silent)}


def _flatten(value: Any, prefix: str) -> list[tuple[str, Any]]:
    """List every leaf of nested dataclasses with its dotted name."""
    found: list[tuple[str, Any]] = []
    for field in fields(value):
        item, name = getattr(value, field.name), f"{prefix}{field.name}"
        if is_dataclass(item):
            found += _flatten(item, f"{name}.")
        else:
            found.append((name, list(item) if isinstance(item, tuple) else item))
    return found
