"""Stepping: one optimiser step, one held-out loss, and the way back from a bad step.

The trainer decides when; here is what. Every batch is known by its number, and
every random draw by the batch it is for.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mezzotint.errors import WorkFailed
from mezzotint.train.checkpoint import CheckpointStore
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.batches import BatchPlan, augment, derive
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.networks import seeded
from mezzotint.train.progress import Progress
from mezzotint.train.sharding import whole
from mezzotint.train.state import RunState
from mezzotint.train.tasks.base import Batch

__all__ = ["Stepper"]


class Stepper:
    """Takes the steps of a run.

    Args:
        config: The run.
        data: What is learned.
        state: What the steps change.
        plan: Which samples make up a batch.
        store: Where a bad step goes back to.
        progress: Told what happens.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Dataset,
        state: RunState,
        *,
        plan: BatchPlan,
        store: CheckpointStore,
        progress: Progress,
    ) -> None:
        self._config, self._data, self._state = config, data, state
        self._plan, self._store, self._progress = plan, store, progress

    def batch(self, indices: Sequence[int], number: int | None) -> Batch:
        """Read a batch; a training batch (with a number) is augmented."""
        data = self._data
        samples = data.read(indices)
        if number is not None:
            generator = derive(self._config.seed, "augmentation", number)
            samples = augment(samples, self._config.data, generator)
        return Batch(
            samples.to(self._state.accelerator.device),
            [data.labels[k] for k in indices] if data.labels else (),
            [data.captions[k] for k in indices] if data.captions else (),
        )

    def advance(self, last_loss: float) -> float:
        """Take one optimiser step of every group, or leave out one that is not finite.

        Returns:
            The loss of the step, or ``last_loss`` if it was left out.

        Raises:
            WorkFailed: If there is no way back from steps that are not finite.
        """
        state = self._state
        counters, loop = state.counters, self._config.loop
        rate = state.set_rates()
        figures: dict[str, float] = {}
        finite = True
        state.task.modules.train()
        for group, names in state.task.groups.items():
            finite = self._step_group(group, names, figures) and finite
            if not finite:
                break
        if not finite:
            self._go_back()
            return last_loss
        counters.bad_steps = 0
        counters.step += 1
        state.average_buffers()
        state.ema.update(state.task.modules)
        state.task.after_step(counters.step)
        loss = sum(figures[group] for group in state.task.groups)
        if counters.step % loop.log_every == 0 or counters.step == loop.steps:
            self._progress.tell_step(counters.step, loss=loss, learning_rate=rate, **figures)
        return loss

    @torch.no_grad()
    def evaluate(self) -> bool:
        """Measure the held-out loss with the running mean; True if it stopped falling."""
        state = self._state
        counters, loop = state.counters, self._config.loop
        state.task.modules.eval()
        count, own = state.accelerator.num_processes, state.accelerator.process_index
        total = 0.0
        held_out = _chunks(self._plan.held_out, self._data.buckets, loop.batch_size)
        with state.ema.applied(state.task.modules), state.accelerator.autocast():
            for number in range(own, math.ceil(len(held_out) / count) * count, count):
                is_over = number >= len(held_out)
                if is_over and not state.is_sharded:
                    break
                # A cut network is put together by all: who has no batch left takes part in
                # another one's, and forgets the loss.
                indices = held_out[number % len(held_out)]
                generator = derive(self._config.seed, "held out noise", number)
                batch = self.batch(indices, None)
                loss = state.task.held_out_loss(state.networks, batch, generator)
                total += 0.0 if is_over else float(loss) * len(indices)
        value = state.mean(total) * count / len(self._plan.held_out)
        counters.stale = 0 if value < counters.best else counters.stale + 1
        counters.best = min(counters.best, value)
        self._progress.tell("held_out", counters.step, loss=value, best=counters.best)
        return bool(loop.patience) and counters.stale >= loop.patience

    def _step_group(self, group: str, names: Sequence[str], figures: dict[str, float]) -> bool:
        """Accumulate gradients of one group and step; False if they are not finite."""
        state = self._state
        accelerator, loop = state.accelerator, self._config.loop
        optimizer, parameters = state.optimizers[group], state.parameters(names)
        optimizer.zero_grad(set_to_none=True)
        total, averager = 0.0, state.averagers.get(group)
        for micro in range(state.share):
            number = state.counters.step * state.counters.batches + state.counters.skipped
            number += micro * accelerator.num_processes + accelerator.process_index
            batch = self.batch(self._plan.batch(number), number)
            generator = derive(self._config.seed, "noise", group, number)
            with seeded(derive(self._config.seed, "dropout", group, number)):
                with accelerator.autocast():
                    loss, more = state.task.loss(group, state.networks, batch, generator)
                mean = state.mean(loss.item())
                if not math.isfinite(mean):
                    return False
                if averager is not None and micro == state.share - 1:
                    averager.begin()
                accelerator.backward(loss / state.share)
            total += mean / state.share
            figures |= {name: float(value) for name, value in more.items()}
        if averager is not None:
            averager.finish()
        limit = loop.clip_norm or math.inf
        norm: Tensor = whole(accelerator.clip_grad_norm_(parameters, limit))
        scaled = accelerator.scaler is not None  # fp16: the scaler leaves such a step out itself
        if not math.isfinite(float(norm)) and not scaled:
            optimizer.zero_grad(set_to_none=True)
            return False
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        figures[group] = total
        figures[f"{group}_norm"] = float(norm)
        return True

    def _go_back(self) -> None:
        """Pass over a step that is not finite; after several, go back."""
        state, progress = self._state, self._progress
        counters, loop = state.counters, self._config.loop
        counters.bad_steps += 1
        counters.skipped += counters.batches
        progress.tell("skipped", counters.step, message="the loss or its gradient is not finite")
        if counters.bad_steps < loop.max_bad_steps:
            return
        if counters.rollbacks >= loop.max_rollbacks:
            raise WorkFailed(
                f"the loss is not finite at step {counters.step} after {counters.rollbacks} "
                "rollbacks; lower optimizer.learning_rate or loop.clip_norm, or look at the data"
            )
        restored, _ = self._store.load_newest()
        if restored is None:
            raise WorkFailed(
                f"the loss is not finite at step {counters.step} and there is no checkpoint"
            )
        moved = counters.step - restored.step
        skipped, rollbacks, scale = counters.skipped, counters.rollbacks, counters.rate_scale
        state.load_state_dict(restored.state)
        state.counters.skipped = skipped + moved * state.counters.batches
        state.counters.rollbacks = rollbacks + 1
        state.counters.rate_scale = scale * loop.rollback_scale
        progress.tell(
            "rollback", restored.step, from_step=restored.step + moved,
            learning_rate_scale=state.counters.rate_scale,
        )  # fmt: skip


def _chunks(indices: list[int], buckets: list[int], size: int) -> list[list[int]]:
    """Cut held-out samples into batches of one bucket each."""
    groups: dict[int, list[int]] = {}
    for index in indices:
        groups.setdefault(buckets[index], []).append(index)
    return [g[k : k + size] for g in groups.values() for k in range(0, len(g), size)]
