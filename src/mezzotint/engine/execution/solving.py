"""Solving: one image's solver state, and one update for a whole mixed batch.

Native solvers are tables of coefficients over registers, so images at different
steps of different solvers move together in one elementwise update. Any other
diffusers scheduler is an object of the image's own, stepped by itself.

Dimensions: B images, R registers, then the shape of the latents (C, h, w).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import WorkFailed
from mezzotint.models.base import Model
from mezzotint.models.solvers import SchedulerSolver
from mezzotint.planning.plan import Plan
from mezzotint.planning.schedulers import evaluation_steps
from mezzotint.sampling.schedules import frame_of
from mezzotint.sampling.solvers import REGISTERS, SolverTable, advance, clip_denoised, plan_table
from mezzotint.sampling.timesteps import dynamic_mu
from mezzotint.schedulers import NATIVE

__all__ = ["ForeignSolver", "NativeSolver", "advance_together", "make_solver", "prepare"]


class NativeSolver:
    """A solver table and one image's registers on their way through it.

    Args:
        table: The whole run.
        noise: Standard noise. Shape (1, ...), float32.
        clean: Clean latents of a start image, or None.
        generator: The image's own; draws the noise of stochastic solvers.
    """

    def __init__(
        self, table: SolverTable, *, noise: Tensor, clean: Tensor | None, generator: torch.Generator
    ) -> None:
        self._table = table
        self._generator = generator
        self._coefficients = torch.stack([e.tensor() for e in table.evaluations]).to(noise.device)
        self._drawn: Tensor | None = None
        self.position = 0
        self.registers = noise.new_zeros((1, REGISTERS, *noise.shape[1:]))
        self.registers[:, 0] = self._start(noise, clean)

    def _start(self, noise: Tensor, clean: Tensor | None) -> Tensor:
        """Return the latents of the first evaluation."""
        if clean is None:
            return noise * self._table.init_noise_sigma
        sigma = self._table.evaluations[0].sigma
        if self._table.frame == "flow":
            return (1 - sigma) * clean + sigma * noise
        return clean + sigma * noise

    @property
    def latents(self) -> Tensor:
        """What the network sees next. Shape (1, C, h, w)."""
        return self.registers[:, 0]

    @property
    def is_done(self) -> bool:
        """Whether no evaluation is left."""
        return self.position >= len(self._table.evaluations)

    @property
    def sigma(self) -> float:
        """Noise level of the next evaluation; 0 after the last."""
        return 0.0 if self.is_done else self._table.evaluations[self.position].sigma

    @property
    def timestep(self) -> float:
        """What the network is told about the noise level."""
        return self._table.evaluations[self.position].timestep

    @property
    def coefficients(self) -> Tensor:
        """Coefficients of the next update. Shape (R, R + 4)."""
        return self._coefficients[self.position]

    def clip(self, denoised: Tensor) -> Tensor:
        """Do to an estimate what the model's scheduler does to it."""
        return clip_denoised(denoised, self._table.clip)

    def noise(self) -> Tensor | None:
        """Return the noise of the next update, drawn once even if the update is repeated."""
        if not self._table.evaluations[self.position].draws_noise:
            return None
        if self._drawn is None:
            latents = self.latents
            drawn = torch.randn(latents.shape, generator=self._generator, dtype=torch.float32)
            self._drawn = drawn.to(latents.device)
        return self._drawn

    def commit(self, registers: Tensor) -> None:
        """Make an update the state."""
        self.registers = registers
        self._drawn = None
        self.position += 1

    def blend(self, latents: Tensor) -> None:
        """Replace what the network sees next."""
        self.registers = torch.cat([latents[:, None], self.registers[:, 1:]], dim=1)


class ForeignSolver:
    """A diffusers scheduler of one image's own.

    Args:
        scheduler: The object, fresh.
        is_flow: Whether latents live in the flow frame.
        noise: Standard noise. Shape (1, ...), float32.
        clean: Clean latents of a start image, or None.
        generator: The image's own.
        first: Network call to begin at.
    """

    def __init__(
        self,
        scheduler: SchedulerSolver,
        is_flow: bool,
        *,
        noise: Tensor,
        clean: Tensor | None,
        generator: torch.Generator,
        first: int,
    ) -> None:
        self._scheduler = scheduler
        self._points = scheduler.points[first:]
        self._first = first
        self._generator = generator
        self.position = 0
        if clean is None:
            self.latents = scheduler.start(noise)
        else:
            sigma = self._points[0].sigma
            kept = (1 - sigma) * clean if is_flow else clean
            self.latents = scheduler.resume(kept + sigma * noise, first)

    @property
    def is_done(self) -> bool:
        """Whether no evaluation is left."""
        return self.position >= len(self._points)

    @property
    def sigma(self) -> float:
        """Noise level of the next evaluation; 0 after the last."""
        return 0.0 if self.is_done else self._points[self.position].sigma

    @property
    def timestep(self) -> float:
        """What the network is told about the noise level."""
        return self._points[self.position].timestep

    def step(self, denoised: Tensor) -> Tensor:
        """Let the scheduler take the estimate; it keeps its history itself."""
        return self._scheduler.advance(denoised, self._generator)

    def commit(self, latents: Tensor) -> None:
        """Make what :meth:`step` gave the state."""
        self.latents = latents
        self.position += 1

    def blend(self, latents: Tensor) -> None:
        """Replace what the network sees next."""
        self.latents = latents
        if not self.is_done:
            self._scheduler.resume(latents, self._first + self.position)


def make_solver(
    plan: Plan, model: Model, *, noise: Tensor, clean: Tensor | None, generator: torch.Generator
) -> Any:
    """Return the solver of a plan at its first evaluation.

    Raises:
        InvalidRequest: If scheduler, sigma schedule and model do not go together.
    """
    config = model.spec.scheduler_config
    length = model.sequence_length(plan.size)
    prepared = prepare(plan, config, sequence_length=length)
    if isinstance(prepared, SolverTable):
        return NativeSolver(prepared, noise=noise, clean=clean, generator=generator)
    return ForeignSolver(
        prepared,
        frame_of(config) == "flow",
        noise=noise,
        clean=clean,
        generator=generator,
        first=_skipped_calls(plan, config),
    )


def prepare(
    plan: Plan, config: Mapping[str, Any], *, sequence_length: int = 0
) -> SolverTable | SchedulerSolver:
    """Make the table or scheduler of a plan, without a tensor of its latents.

    Args:
        plan: What to make, with steps.
        config: The model's scheduler configuration.
        sequence_length: Tokens of the picture, for schedules that shift by size.

    Raises:
        InvalidRequest: If scheduler, sigma schedule and model do not go together.
    """
    if plan.scheduler in NATIVE:
        table = plan_table(
            plan.scheduler,
            config,
            plan.num_inference_steps,
            plan.sigma_schedule,
            first=plan.skipped_steps,
            sequence_length=sequence_length,
        )
        _check_calls(plan, len(table.evaluations))
        return table
    scheduler = SchedulerSolver(
        plan.scheduler,
        config,
        plan.num_inference_steps,
        frame=frame_of(config),
        sigma_schedule=plan.sigma_schedule,
        mu=_shift(config, sequence_length, plan.num_inference_steps),
    )
    _check_calls(plan, len(scheduler.points) - _skipped_calls(plan, config))
    return scheduler


def _check_calls(plan: Plan, calls: int) -> None:
    """Hold the planner to what the mathematics really does."""
    if calls != len(plan.steps):
        raise WorkFailed(
            f"scheduler {plan.scheduler} makes {calls} network calls, the plan counted "
            f"{len(plan.steps)}"
        )


def _skipped_calls(plan: Plan, config: Mapping[str, Any]) -> int:
    """Return the network calls that a start image leaves out."""
    steps = evaluation_steps(plan.scheduler, plan.num_inference_steps, config)
    return sum(step <= plan.skipped_steps for step in steps)


def _shift(config: Mapping[str, Any], length: int, num_steps: int) -> float | None:
    """Return the shift of schedulers that shift by picture size."""
    if not config.get("use_dynamic_shifting") or not length:
        return None
    return dynamic_mu(config, length, num_steps)


def advance_together(
    solvers: Sequence[Any], estimates: Sequence[Tensor]
) -> list[Tensor | Exception]:
    """Compute the next state of every image; nothing is changed yet.

    Args:
        solvers: One per image.
        estimates: Each image's estimate of its clean latents. Each (1, ...).

    Returns:
        For each image what its ``commit`` takes, or why it cannot go on.
    """
    moved: list[Tensor | Exception] = [WorkFailed("not moved")] * len(solvers)
    native = [k for k, solver in enumerate(solvers) if isinstance(solver, NativeSolver)]
    if native:
        chosen = [solvers[k] for k in native]
        registers = _advance_native(chosen, [estimates[k] for k in native])
        for row, k in enumerate(native):
            moved[k] = registers[row : row + 1]
    for k, solver in enumerate(solvers):
        if not isinstance(solver, NativeSolver):
            try:
                moved[k] = solver.step(estimates[k])
            except Exception as error:  # part of the tick: this image fails, alone
                moved[k] = error
    return moved


def _advance_native(solvers: Sequence[NativeSolver], estimates: Sequence[Tensor]) -> Tensor:
    """Move images with tables together. Shape (B, R, C, h, w)."""
    raw = torch.cat(list(estimates))
    clipped = torch.cat([s.clip(e) for s, e in zip(solvers, estimates, strict=True)])
    drawn = [solver.noise() for solver in solvers]
    noise = None
    if any(n is not None for n in drawn):
        still = torch.zeros_like(estimates[0])
        noise = torch.cat([still if n is None else n for n in drawn])
    return advance(
        torch.cat([solver.registers for solver in solvers]),
        clipped,
        torch.stack([solver.coefficients for solver in solvers]),
        raw=raw,
        noise=noise,
    )
