"""State: everything a run needs to go on as if it had never stopped.

Weights, running means, both moments of the optimisers, and a few counters. The
random streams need no state of their own: every draw is named by its step
(:func:`mezzotint.train.data.batches.derive`).
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.train.averaging import GradientAverager
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.config.run import LoopConfig, OptimizerConfig
from mezzotint.train.ema import Ema
from mezzotint.train.sharding import is_sharded, local, share_of, whole
from mezzotint.train.tasks.base import Task

__all__ = ["Counters", "RunState", "create_accelerator", "learning_rate"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def create_accelerator(loop: LoopConfig) -> Accelerator:
    """Return the accelerator of a run.

    Raises:
        InvalidRequest: If the device or the precision is not there.
    """
    cuda = torch.cuda.is_available()
    if loop.device == "cuda" and not cuda:
        raise InvalidRequest(
            'loop.device "cuda" was asked for but there is no CUDA device; use "auto" or "cpu"',
            field="loop.device",
            value="cuda",
        )
    if loop.device == "mps" and not torch.backends.mps.is_available():
        raise InvalidRequest(
            'loop.device "mps" was asked for but there is none; use "auto" or "cpu"',
            field="loop.device",
            value="mps",
        )
    on_cpu = loop.device == "cpu" or (loop.device == "auto" and not cuda)
    if loop.precision == "fp16" and on_cpu:
        raise InvalidRequest(
            'loop.precision "fp16" needs CUDA; use "bf16" or "no" on this device',
            field="loop.precision",
            value="fp16",
            allowed="no, bf16",
        )
    shared = AcceleratorState._shared_state  # pyright: ignore[reportPrivateUsage]
    if shared and str(shared.get("_mixed_precision", loop.precision)) != loop.precision:
        # An earlier run in this process left it behind.
        AcceleratorState._reset_state(reset_partial_state=True)  # pyright: ignore[reportPrivateUsage]
    return Accelerator(mixed_precision=loop.precision, cpu=on_cpu)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    if config.decay == "linear":
        return config.learning_rate * max(0.0, 1 - done)
    if config.decay == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.learning_rate


@dataclass(slots=True)
class Counters:
    """The plain part of the state.

    Args:
        step: Optimiser steps done.
        batches: Batches of one optimiser step, over all processes; held to where another
            number of processes goes on with a run.
        skipped: Batches that rollbacks moved past, over all processes.
        bad_steps: Steps in a row that were not finite.
        rollbacks: Rollbacks so far.
        rate_scale: Product of all rollback scales.
        best: Lowest held-out loss.
        stale: Held-out losses since then.
    """

    step: int = 0
    batches: int = 0
    skipped: int = 0
    bad_steps: int = 0
    rollbacks: int = 0
    rate_scale: float = 1.0
    best: float = math.inf
    stale: int = 0


class RunState:
    """Modules, optimisers, running means and counters of a run.

    Args:
        config: The run.
        task: What is trained; its modules are moved to the device.
        accelerator: Devices and precision.
    """

    def __init__(self, config: TrainConfig, task: Task, accelerator: Accelerator) -> None:
        self.config, self.task, self.accelerator = config, task, accelerator
        self.counters = Counters(batches=config.loop.accumulate * accelerator.num_processes)
        self.is_sharded = is_sharded(task.modules)
        if not self.is_sharded:  # shares are where they belong
            task.modules.to(accelerator.device)
        for helper in task.frozen():
            helper.to(accelerator.device).eval().requires_grad_(False)
        self.ema = Ema(task.modules, config.ema.decays, warmup=config.ema.warmup)
        self.networks: dict[str, Any] = {}
        for name, module in task.modules.items():
            self.networks[name] = _compiled(module) if config.loop.compile else module
        self.optimizers = {
            group: accelerator.prepare(self._optimizer(names))
            for group, names in task.groups.items()
        }
        count = accelerator.num_processes
        self.averagers = {
            group: GradientAverager(self.parameters(names), processes=count)
            for group, names in (task.groups.items() if count > 1 else ())
            if not self.is_sharded  # what is cut is averaged where it is put together
        }

    def _optimizer(self, names: Sequence[str]) -> torch.optim.Optimizer:
        """Build the optimiser of a group of modules."""
        options = self.config.optimizer
        cls = torch.optim.AdamW if options.kind == "adamw" else torch.optim.Adam
        return cls(
            self.parameters(names),
            lr=options.learning_rate,
            betas=options.betas,
            eps=options.epsilon,
            weight_decay=options.weight_decay,
        )

    def parameters(self, names: Sequence[str]) -> list[nn.Parameter]:
        """Return the weights of some modules that learn."""
        return [
            parameter
            for name in names
            for parameter in self.task.modules[name].parameters()
            if parameter.requires_grad
        ]

    @property
    def share(self) -> int:
        """Batches of one optimiser step that fall to each process."""
        return self.counters.batches // self.accelerator.num_processes

    def mean(self, value: float) -> float:
        """Return the mean of a number over all processes, the same in each."""
        if self.accelerator.num_processes == 1:
            return value
        own = torch.tensor(value, device=self.accelerator.device)
        return float(self.accelerator.reduce(own, "mean"))

    def anywhere(self, fact: bool) -> bool:
        """Say whether something holds in any process, so that all go the same way."""
        return self.mean(float(fact)) > 0

    @torch.no_grad()
    def average_buffers(self) -> None:
        """Make what batch normalisation remembers the same in every process."""
        if self.accelerator.num_processes == 1:
            return
        layers = [m for m in self.task.modules.modules() if isinstance(m, _NORMS)]
        both = [buffer for m in layers for buffer in (m.running_mean, m.running_var)]
        buffers = [buffer for buffer in both if buffer is not None]
        if not buffers:
            return
        message = torch.cat([buffer.flatten().float() for buffer in buffers])
        mean = self.accelerator.reduce(message, "mean")
        parts = torch.split(mean, [buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

    def set_rates(self) -> float:
        """Give every optimiser the learning rate of the next step, and return it."""
        counters, config = self.counters, self.config
        rate = learning_rate(config.optimizer, counters.step, config.loop.steps)
        rate *= counters.rate_scale
        for group, optimizer in self.optimizers.items():
            for options in optimizer.param_groups:
                options["lr"] = rate * self.task.rates[group]
        return rate

    def copies(self, index: int = 0) -> nn.ModuleDict:
        """Return copies of the modules holding a running mean, ready to be used.

        Where the state is sharded every process has to call this.
        """
        modules = self.task.modules
        if self.is_sharded:
            copied = nn.ModuleDict()
            for name, part in modules.items():
                weights = {key: nn.Parameter(whole(p)) for key, p in part.named_parameters()}
                copied[name] = nn.ParameterDict(weights)
        else:
            copied = copy.deepcopy(modules)
        if self.config.ema.decays:
            copied.load_state_dict(whole(self.ema.means[index]))
        return copied.eval().requires_grad_(False)

    def state_dict(self) -> dict[str, Any]:
        """Return everything for a checkpoint.

        Where the state is sharded every process has to call this.
        """
        state: dict[str, Any] = {
            "modules": whole(dict(self.task.modules.state_dict())),
            "ema": whole(self.ema.state_dict()),
            "optimizers": {name: whole(o.state_dict()) for name, o in self.optimizers.items()},
            "counters": {k: v for k, v in asdict(self.counters).items() if v != math.inf},
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take everything back from a checkpoint.

        Raises:
            InvalidRequest: If the batches of a step cannot be shared among the processes.
        """
        counters = Counters(**{"batches": self.counters.batches, **state["counters"]})
        count = self.accelerator.num_processes
        if counters.batches % count:
            raise InvalidRequest(
                f"output_dir {self.config.output_dir} was begun with {counters.batches} batches a "
                f"step (loop.accumulate times processes), which {count} processes cannot share: "
                "go on with a number of processes that divides it, or choose another output_dir",
                field="output_dir",
            )
        own = self.task.modules.state_dict()

        def shares(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: share_of(value, own[name]) for name, value in weights.items()}

        self.task.modules.load_state_dict(shares(state["modules"]))
        means = [shares(mean) for mean in state["ema"]["means"]]
        self.ema.load_state_dict({**state["ema"], "means": means})
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(_shares_of(state["optimizers"][name], optimizer))
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.counters = counters

    @torch.no_grad()
    def is_finite(self) -> bool:
        """Say whether every weight is finite; where the state is sharded every process asks."""
        here = all(bool(torch.isfinite(local(p)).all()) for p in self.task.modules.parameters())
        return not self.anywhere(not here) if self.is_sharded else here


def _compiled(module: nn.Module) -> nn.Module:
    """Return the module, compiled at its first call."""
    compiler: Any = torch  # its overloads leave the backend's answer open
    return compiler.compile(module)


def _shares_of(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's whole state with its moments cut as its weights are."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        number: {
            name: share_of(value, weights[int(number)]) if isinstance(value, Tensor) else value
            for name, value in kept.items()
        }
        for number, kept in state["state"].items()
    }
    return {**state, "state": moments}
