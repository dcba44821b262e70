"""The trainer: one loop that learns and samples.

``Trainer(config).fit()`` reads and checks the data, goes on from the newest
checkpoint if there is one, trains, and leaves a run folder that is a model.
``Trainer.sample(request)`` draws from the run at any time with its own
generators, so the weights come out the same with and without it.

Command lines need no more than::

    trainer = Trainer(TrainConfig.from_toml(path), on_event=print_event)
    for line in trainer.check().lines(): print(line)
    trainer.fit()                                    # mezzotint train CONFIG.toml
    Trainer.open("runs/x").sample(request)           # mezzotint sample RUN_DIR

The run folder holds ``metrics.jsonl``, ``data_report.json``, ``checkpoints/``,
``samples/grid.png`` and the exported model.
"""

import errno
import json
import math
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mezzotint.errors import Cancelled, InvalidRequest, WorkFailed
from mezzotint.files import write_atomically
from mezzotint.models.base import Model
from mezzotint.models.families.runs import RUN_FILE, RunDescription, RunModel, load_network
from mezzotint.request import GenerationRequest
from mezzotint.train.checkpoint import CheckpointStore, check_same_run
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.batches import BatchPlan, derive
from mezzotint.train.data.dataset import DataReport, Dataset
from mezzotint.train.data.sources import data_kind, load_data
from mezzotint.train.progress import Board, Progress, TrainEvent
from mezzotint.train.state import RunState, create_accelerator
from mezzotint.train.stepping import Stepper
from mezzotint.train.tasks.registry import create_task
from mezzotint.types import GenerationResult

__all__ = ["FitResult", "Trainer"]

CONFIG_FILE = "train_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a run came to.

    Args:
        run_dir: The run folder, a model.
        steps: Optimiser steps done.
        loss: Training loss of the last step.
        held_out_loss: Lowest held-out loss, None if none was measured.
        stopped_early: Whether the held-out loss ended the run.
        rollbacks: How often the run went back.
    """

    run_dir: Path
    steps: int
    loss: float
    held_out_loss: float | None = None
    stopped_early: bool = False
    rollbacks: int = 0


class Trainer:
    """Trains one model and samples from it.

    Args:
        config: The run; see :class:`mezzotint.train.config.config.TrainConfig`.
        on_event: Called with every event of the run, see
            :mod:`mezzotint.train.progress`.
    """

    def __init__(
        self, config: TrainConfig, *, on_event: Callable[[TrainEvent], None] | None = None
    ) -> None:
        self.config = config
        self.run_dir = Path(config.output_dir)
        self._on_event = on_event
        self._store = CheckpointStore(self.run_dir / "checkpoints", keep=config.checkpoint.keep)
        self._data: tuple[Dataset, DataReport] | None = None
        self._state: RunState | None = None
        self._model: tuple[int, Model] | None = None
        self._exported = -1
        self._stop = threading.Event()

    @classmethod
    def open(cls, run_dir: str | Path) -> "Trainer":
        """Return the trainer of a run folder, at its newest checkpoint.

        Raises:
            InvalidRequest: If the folder is no run.
        """
        path = Path(run_dir) / CONFIG_FILE
        try:
            plain = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"{run_dir} is no run folder: {path.name} cannot be read ({error})", field="model"
            ) from None
        return cls(TrainConfig.from_dict({**plain, "output_dir": str(run_dir)}))

    def check(self) -> DataReport:
        """Read and check the data, and report what it is; no compute is spent.

        Raises:
            InvalidRequest: If data and configuration do not fit together.
        """
        if self._data is None:
            self._data = load_data(self.config)
        return self._data[1]

    def stop(self) -> None:
        """Ask a running :meth:`fit` to write a checkpoint and return; from any thread."""
        self._stop.set()

    def fit(self, *, resume: bool = True) -> FitResult:
        """Train to the configured number of steps.

        Args:
            resume: Go on from the newest checkpoint; False refuses a folder
                that has one.

        Raises:
            InvalidRequest: If the data, the configuration or the checkpoint do
                not fit together; nothing has been trained then.
            Cancelled: If :meth:`stop` was called; a checkpoint was written.
            WorkFailed: If the loss is not finite after every rollback, or the
                model cannot be written.
        """
        state = self._prepare(resume=resume)
        is_new = not self._store.steps()
        state.accelerator.wait_for_everyone()  # so that all have looked before one writes
        progress = self._progress(state)
        progress.rewind(state.counters.step)
        progress.tell("started", state.counters.step, steps=self.config.loop.steps)
        if self.config.loop.shard and not state.is_sharded:
            told = "loop.shard has one process to cut the base over: it holds the base whole"
            progress.tell("warning", state.counters.step, message=told)
        if is_new:
            self._checkpoint(state, progress)
        assert self._data is not None  # noqa: S101  (_prepare reads it)
        stepper = Stepper(
            self.config, self._data[0], state, plan=self._batch_plan(), store=self._store,
            progress=progress,
        )  # fmt: skip
        self._stop.clear()
        loss, patience = progress.last_loss(), self.config.loop.patience
        early = patience > 0 and state.counters.stale >= patience
        progress.start_clock(state.counters.step)
        if state.counters.step >= self.config.loop.steps:
            told = f"the run has its {self.config.loop.steps} steps; loop.steps takes it further"
            progress.tell("warning", state.counters.step, message=told)
        while state.counters.step < self.config.loop.steps and not early:
            loss = stepper.advance(loss)
            early = self._periodic(state, stepper, progress)
            if state.anywhere(self._stop.is_set()):
                self._checkpoint(state, progress)
                raise Cancelled(f"training was stopped at step {state.counters.step}")
        self._checkpoint(state, progress)
        self._export(state)
        counters = state.counters
        best = None if counters.best == math.inf else counters.best
        progress.tell("finished", counters.step, loss=loss, held_out_loss=best, stopped_early=early)
        return FitResult(
            run_dir=self.run_dir, steps=counters.step, loss=loss, held_out_loss=best,
            stopped_early=early, rollbacks=counters.rollbacks,
        )  # fmt: skip

    def sample(self, request: GenerationRequest) -> GenerationResult:
        """Draw pictures from the run as it is, with the running mean of the weights.

        Own generators, copies of the weights: training is not touched. The
        answer equals the engine's on the exported run folder.

        Args:
            request: What to draw; ``model`` is ignored.

        Raises:
            InvalidRequest: If the request does not fit the model.
        """
        from mezzotint.train.sampling import sample_model

        return sample_model(self.model(), request)

    def draw(
        self,
        count: int,
        *,
        seed: int = 0,
        num_inference_steps: int | None = None,
        scheduler: str | None = None,
        guidance_scale: float | None = None,
        labels: list[int] | None = None,
        circle: bool = False,
    ) -> np.ndarray:
        """Draw samples of an array run in the units of its data.

        Args:
            count: How many.
            seed: Sample k uses ``seed + k``.
            num_inference_steps: Solver steps; None is the model's own.
            scheduler: Solver; None is the model's own.
            guidance_scale: Guidance towards the labels; None is the model's own.
            labels: Class of each sample, for class-conditional runs.
            circle: Take the noise from a circle through that of ``seed`` and of
                ``seed + 1``, for movies: neighbours are alike, the last leads to the first.

        Returns:
            Shape (count, *shape), float32.
        """
        from mezzotint.train.sampling import draw_values

        return draw_values(
            self._array_model(), count, seed=seed, num_inference_steps=num_inference_steps,
            scheduler=scheduler, guidance_scale=guidance_scale, labels=labels, circle=circle,
        )  # fmt: skip

    def describe(self) -> RunDescription:
        """Return what an array run is: its shape, names, sample rate and statistics.

        Raises:
            InvalidRequest: If the run is of pictures.
        """
        return self._array_model().description

    def model(self) -> Model:
        """Return the run as a model, as its folder would be served.

        The folder itself if it is up to date; otherwise what would be written
        now goes through a temporary folder, so that both are the same. While a sharded
        run is under way its processes put it together: all of them have to call this.

        Raises:
            InvalidRequest: If the run draws nothing (an autoencoder).
        """
        return self._open()

    def _open(self, weights: nn.ModuleDict | None = None) -> Model:
        """Return the run as a model; ``weights`` are those of now, if they are at hand."""
        from mezzotint.models.config import PlacementConfig
        from mezzotint.models.store.loading import load_path

        if self._is_exported():
            step, device = self._exported, self.config.loop.device
        else:
            state = self._prepare(resume=True)
            where = state.accelerator.device
            # Of several processes each has a processor of its own number to accelerate.
            step, device = state.counters.step, str(where) if where.type == "cuda" else where.type
        if self._model is not None and self._model[0] == step:
            return self._model[1]
        place = PlacementConfig(device=device)
        with tempfile.TemporaryDirectory() as temporary:
            is_current = self._exported == step and self._is_model
            folder = self.run_dir if is_current else Path(temporary)
            if folder != self.run_dir:
                state = self._prepare(resume=True)
                state.task.write_model(folder, weights or state.copies(), {})
            model = load_path(folder, name=str(self.run_dir), placement=place)
            for network in model.networks.values():
                getattr(network, "module", None)  # read while the folder is there
        self._model = (step, model)
        return model

    @property
    def draws_arrays(self) -> bool:
        """Whether the run answers points, series or fields: :meth:`draw`, not :meth:`sample`."""
        if self.config.kind != "diffusion" or self.config.network.vae:
            return False
        if self._is_exported():
            about = json.loads((self.run_dir / RUN_FILE).read_text("utf-8"))
            return about["data"] not in ("pixels", "latents")
        return data_kind(self.config) == "arrays"

    @property
    def _is_model(self) -> bool:
        """Whether the run folder is a model: not an autoencoder, not a LoRA alone."""
        kind = self.config.kind
        return kind != "autoencoder" and (kind != "lora" or self.config.lora.merge)

    def _is_exported(self) -> bool:
        """Whether the folder's model is of the newest step, so that no data is needed."""
        if self._state is not None or not self._is_model:
            return False
        self._exported = _exported_steps(self.run_dir)
        return self._exported >= max(self._store.steps(), default=0) and self._exported > 0

    def _array_model(self) -> RunModel:
        """Return the run of an array, made for many samples at once."""
        if self._is_exported():
            about = RunDescription.load(self.run_dir)
            network = load_network(about.network, self.run_dir / "network")
        else:
            state = self._prepare(resume=True)
            ground = getattr(state.task, "ground", None)
            if ground is None:
                raise InvalidRequest("draw answers arrays; use sample for pictures", field="kind")
            about, network = ground.description, state.copies()["network"]
        if about.data in ("pixels", "latents"):
            raise InvalidRequest("draw answers arrays; use sample for pictures", field="kind")
        return RunModel(about, network, exact=False)

    def _prepare(self, *, resume: bool) -> RunState:
        """Check everything, build everything, and go to the newest checkpoint."""
        if self._state is not None:
            return self._state
        restored, damaged = self._store.load_newest()
        if restored is not None:
            if not resume:
                raise InvalidRequest(
                    f"output_dir {self.run_dir} already holds a run at step {restored.step}; "
                    "resume it or choose another folder",
                    field="output_dir",
                )
            check_same_run(restored, self.config)
        if self.config.loop.threads:
            torch.set_num_threads(self.config.loop.threads)
        accelerator = create_accelerator(self.config.loop)
        report = self.check()
        assert self._data is not None  # noqa: S101  (check reads it)
        task = create_task(self.config, self._data[0], derive(self.config.seed, "weights"))
        self._batch_plan()
        state = RunState(self.config, task, accelerator)
        if restored is not None:
            state.load_state_dict(restored.state)
            self._exported = _exported_steps(self.run_dir)
        if accelerator.is_main_process:
            self._write_about(report, damaged)
        self._state = state
        return state

    def _write_about(self, report: DataReport, damaged: list[str]) -> None:
        """Write configuration and data report into the run folder."""
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            config = json.dumps(self.config.to_dict(), indent=1)
            write_atomically(self.run_dir / CONFIG_FILE, config.encode())
            about = json.dumps(asdict(report), indent=1)
            write_atomically(self.run_dir / "data_report.json", about.encode())
            self._show_data()
        except OSError as error:
            raise InvalidRequest(
                f"output_dir {self.run_dir} cannot be written: {error.strerror}",
                field="output_dir",
            ) from None
        for sentence in damaged:
            if self._on_event is not None:
                self._on_event({"event": "warning", "step": 0, "message": sentence})

    def _show_data(self) -> None:
        """Draw some of what is learned from, once, so that people see what it is."""
        if self._data is None or (self.run_dir / "samples" / "data.png").exists():
            return
        from mezzotint.train.grids import write_data_sheet

        write_data_sheet(self._data[0], self.run_dir)

    def _batch_plan(self) -> BatchPlan:
        assert self._data is not None  # noqa: S101  (called after check)
        return BatchPlan(
            self._data[0].buckets,
            batch_size=self.config.loop.batch_size,
            held_out=self.config.data.held_out,
            seed=self.config.seed,
        )

    def _progress(self, state: RunState) -> Progress:
        main = state.accelerator.is_main_process
        board = Board(self.run_dir / "tensorboard") if self.config.samples.tensorboard else None
        return Progress(
            self.run_dir / "metrics.jsonl" if main else None,
            steps=self.config.loop.steps,
            listener=self._on_event if main else None,
            board=board if main else None,
        )

    def _periodic(self, state: RunState, stepper: Stepper, progress: Progress) -> bool:
        """Do what is due after a step; True ends the run."""
        step, config = state.counters.step, self.config
        last = step >= config.loop.steps
        early = False
        if _due(step, config.loop.evaluate_every, state.counters.bad_steps):
            early = stepper.evaluate()
        if _due(step, config.samples.every, state.counters.bad_steps):
            self._write_samples(state, progress)
        if _due(step, config.checkpoint.every, state.counters.bad_steps) and not last:
            self._checkpoint(state, progress)
        if _due(step, config.checkpoint.export_every, state.counters.bad_steps) and not last:
            self._export(state)
        return early

    def _checkpoint(self, state: RunState, progress: Progress) -> None:
        """Write a checkpoint; a full disk is told and the run goes on."""
        main, step = state.accelerator.is_main_process, state.counters.step
        if not (main or state.is_sharded):
            return
        finite, everything = state.is_finite(), state.state_dict()
        if not main:
            return
        if not finite:
            progress.tell("warning", step, message="weights are not finite, checkpoint left out")
            return
        for attempt in range(2):
            try:
                self._store.save(step, everything, self.config)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if attempt == 0 and full and self._store.drop_oldest():
                    continue
                message = f"checkpoint could not be written: {error.strerror or error}"
                progress.tell("warning", step, message=message)
                return
            progress.tell("checkpoint", step)
            return

    def _write_samples(self, state: RunState, progress: Progress) -> None:
        """Refresh the grid of fixed noise and prompts."""
        main, step = state.accelerator.is_main_process, state.counters.step
        weights = state.copies() if state.is_sharded else None
        if not main:
            return
        from mezzotint.train.grids import write_grid

        path = write_grid(self._open(weights), self.config, self.run_dir, step)
        progress.tell("samples", step, path=str(path))

    def _export(self, state: RunState) -> None:
        """Write the run folder's model, whole or not at all.

        Raises:
            WorkFailed: If it cannot be written.
        """
        main = state.accelerator.is_main_process
        if not (main or state.is_sharded):
            return
        from mezzotint.train.tasks.export import export_run

        training = {
            "config": self.config.to_dict(),
            "steps": state.counters.step,
            "torch": torch.__version__,
        }
        try:
            self._exported = -1
            for index, decay in enumerate(self.config.ema.decays or (0.0,)):
                weights = state.copies(index)
                if not main:
                    continue
                folder = self.run_dir / "ema" / f"{decay:g}" if index else self.run_dir
                if index:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
                export_run(state.task, folder, weights, training)
                if not index:
                    self._exported, self._model = state.counters.step, None
        except OSError as error:
            raise WorkFailed(
                f"the model could not be written to {self.run_dir}: {error.strerror or error}; "
                "the checkpoint is whole, make room and run again"
            ) from error


def _exported_steps(run_dir: Path) -> int:
    """Return the step that the model in a run folder is of, -1 if there is none."""
    for name in (RUN_FILE, "training.json"):
        try:
            plain = json.loads((run_dir / name).read_text("utf-8"))
            return int(plain.get("training", plain)["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return -1


def _due(step: int, every: int, bad_steps: int) -> bool:
    """Say whether something that happens every so many steps is due."""
    return every > 0 and step > 0 and step % every == 0 and not bad_steps
