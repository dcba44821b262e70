"""Configuration of how a run goes: optimizer, averages, loop, checkpoints, samples."""

from dataclasses import dataclass
from typing import Literal

from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range
from mezzotint.types import MAX_SEED

__all__ = ["CheckpointConfig", "EmaConfig", "LoopConfig", "OptimizerConfig", "SamplesConfig"]


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
        shard: Cut the base of a LoRA over the processes of a run (FSDP2), so that each holds
            a share of every weight; one process alone holds it whole.
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
    shard: bool = False
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
        if self.shard and self.precision == "fp16":
            raise InvalidRequest(
                'loop.shard needs loop.precision "no" or "bf16": the gradient scaling of "fp16" '
                "knows no shares",
                field="loop.precision",
                value="fp16",
                allowed="no, bf16",
            )
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
