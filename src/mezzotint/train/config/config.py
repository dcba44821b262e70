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
from typing import Any, Literal, cast

from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range, read, write
from mezzotint.train.config.kinds import (
    AdversarialConfig,
    AutoencoderConfig,
    DistillConfig,
    LoraConfig,
)
from mezzotint.train.config.model import (
    ConditioningConfig,
    DataConfig,
    NetworkConfig,
    ObjectiveConfig,
)
from mezzotint.train.config.run import (
    CheckpointConfig,
    EmaConfig,
    LoopConfig,
    OptimizerConfig,
    SamplesConfig,
)
from mezzotint.types import MAX_SEED

__all__ = ["TrainConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(Checked):
    """A whole training run.

    Args:
        output_dir: The run folder; it becomes a model.
        data: What is learned.
        kind: What is trained.
        base: Model folder that ``lora`` and ``distill`` start from; for
            ``diffusion`` and ``gan`` the weights to go on from, "" for fresh ones.
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
        if self.loop.shard and self.kind != "lora":
            raise InvalidRequest(
                f'loop.shard cuts a frozen base over processes, which kind "lora" alone has, got '
                f'"{self.kind}"; without it torchrun gives every process a whole copy',
                field="loop.shard",
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
        silent += ("data.cache_mb", "data.class_names", "data.channel_names", "data.sample_rate")
        silent += ("loop.max_", "loop.patience", "loop.shard", "lora.merge")
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
        elif isinstance(item, tuple):
            found.append((name, list(cast("tuple[Any, ...]", item))))
        else:
            found.append((name, item))
    return found
