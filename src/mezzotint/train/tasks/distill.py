"""Distillation: a student that reaches in a few steps what its teacher needs many for.

Latent consistency distillation (arXiv:2310.04378): the student learns to answer
the same clean sample all along the teacher's path. One guided DDIM step of the
teacher leads from a noisier to a cleaner place on the path; the student's answer
at the first must equal that of its own running mean at the second. The guidance
is folded into the student, which needs one network call per step.

Dimensions: B samples.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.runs import call_network
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.losses import Mixture, to_clean
from mezzotint.train.tasks.base import Batch
from mezzotint.train.tasks.export import export_ground
from mezzotint.train.tasks.ground import Ground, open_ground

__all__ = ["DistillTask", "boundary_scales", "teacher_grid"]

TIMESTEP_SCALING = 10.0  # of the boundary condition; the LCMScheduler's own
SIGMA_DATA = 0.5


def boundary_scales(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out, which make the student exact at time 0. Shapes (B,).

    Source: arXiv:2310.04378, section 4.1, with the scaling of diffusers' ``LCMScheduler``.
    """
    scaled = timesteps.float() * TIMESTEP_SCALING
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return skip, scaled / (scaled**2 + SIGMA_DATA**2).sqrt()


def teacher_grid(num_timesteps: int, teacher_steps: int) -> Tensor:
    """Return the timesteps of the teacher's path, rising; the last is the noisiest."""
    step = num_timesteps // teacher_steps
    return torch.arange(1, teacher_steps + 1) * step - 1


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *([1] * (like.ndim - 1))).to(like)


class DistillTask:
    """Trains a few-step student; see :class:`mezzotint.train.tasks.base.Task`.

    Raises:
        InvalidRequest: If the base is a flow model, which this method does not cover.
    """

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self._config = config
        ground = open_ground(config, data)
        if ground.noising.is_flow:
            raise InvalidRequest(
                f'kind "distill" needs a base with a noise schedule, {config.base} is a flow model',
                field="base",
            )
        if config.distill.teacher_steps > ground.noising.num_timesteps:
            raise InvalidRequest(
                f"distill.teacher_steps must be at most {ground.noising.num_timesteps} for "
                f"{config.base}, got {config.distill.teacher_steps}",
                field="distill.teacher_steps",
            )
        self.teacher = copy.deepcopy(ground.network)
        target = copy.deepcopy(ground.network).requires_grad_(False)
        self._grid = teacher_grid(ground.noising.num_timesteps, config.distill.teacher_steps)
        self.ground = self._student_ground(ground)
        self.modules = nn.ModuleDict({"network": ground.network, "target": target})
        self.groups: Mapping[str, Sequence[str]] = {"student": ("network",)}
        self.rates: Mapping[str, float] = {"student": 1.0}

    def _student_ground(self, ground: Ground) -> Ground:
        """Return the surroundings of the student: its scheduler and its defaults."""
        options, about = self._config.distill, ground.description
        known = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
                 "prediction_type", "rescale_betas_zero_snr")  # fmt: skip
        scheduler = {
            "_class_name": "LCMScheduler",
            **{key: about.scheduler[key] for key in known if about.scheduler.get(key) is not None},
            "original_inference_steps": options.teacher_steps,
            "timestep_scaling": TIMESTEP_SCALING,
            "clip_sample": False,
            "steps_offset": 1,
        }
        description = replace(
            about,
            scheduler=scheduler,
            default_steps=options.steps,
            default_guidance_scale=1.0,
            licence=self._config.licence,
        )
        return replace(ground, description=description)

    def frozen(self) -> Sequence[nn.Module]:
        """Return the teacher and the modules that only help."""
        return [self.teacher, *self.ground.helpers]

    def loss(
        self,
        group: str,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return how far the student's answers at two places of a path are apart."""
        options, ground = self._config.distill, self.ground
        rows, device = len(batch.samples), batch.samples.device
        clean = ground.clean(batch.samples, generator)
        place = torch.randint(0, len(self._grid), (rows,), generator=generator)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        low, high = options.guidance
        scale = low + (high - low) * torch.rand(rows, generator=generator)
        far = ground.noising.at(self._grid[place]).to(device)
        noisy = far.mix(clean, noise)
        steering = ground.steer(networks, batch, generator, 0.0)
        nearer, near = self._teacher_step(
            noisy, far, place=place, scale=scale, steering=steering, networks=networks
        )
        answer = self._student(networks["network"], noisy, far, steering)
        with torch.no_grad():
            wanted = self._student(self.modules["target"], nearer, near, steering)
        wanted = torch.where(_wide(place == 0, clean).bool(), nearer, wanted)
        width = options.huber
        error = ((answer.float() - wanted.float()) ** 2 + width**2).sqrt() - width
        return error.mean(), {}

    @torch.no_grad()
    def _teacher_step(
        self,
        noisy: Tensor,
        far: Mixture,
        *,
        place: Tensor,
        scale: Tensor,
        steering: Mapping[str, Tensor],
        networks: Mapping[str, Any],
    ) -> tuple[Tensor, Mixture]:
        """Take one guided DDIM step of the teacher towards the clean sample."""
        ground = self.ground
        target, device = ground.noising.target, noisy.device
        said = call_network(self.teacher, sample=noisy, timestep=far.time, **steering)
        clean = to_clean(target, said, noisy, far)
        if steering and bool((scale != 1).any()):
            nothing = ground.unsteered(networks, len(noisy), device)
            said = call_network(self.teacher, sample=noisy, timestep=far.time, **nothing)
            without = to_clean(target, said, noisy, far)
            clean = without + _wide(scale, clean) * (clean - without)
        near = ground.noising.at(self._grid[(place - 1).clamp_min(0)]).to(device)
        first = (place == 0).to(device)  # one step before the first is the clean sample
        near = Mixture(
            torch.where(first, 0.0, near.time),
            torch.where(first, 1.0, near.signal),
            torch.where(first, 0.0, near.spread),
        )
        noise = (noisy - _wide(far.signal, noisy) * clean) / _wide(far.spread, noisy)
        return near.mix(clean, noise), near

    def _student(
        self, network: Any, noisy: Tensor, mixture: Mixture, steering: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the clean sample that a network leads to, exact at time 0."""
        said = call_network(network, sample=noisy, timestep=mixture.time, **steering)
        clean = to_clean(self.ground.noising.target, said, noisy, mixture)
        skip, out = boundary_scales(mixture.time)
        return _wide(skip, noisy) * noisy + _wide(out, noisy) * clean

    def held_out_loss(
        self, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Return the loss on held-out samples."""
        return self.loss("student", networks, batch, generator)[0]

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Move the target network towards the student."""
        weight = 1 - self._config.distill.target_decay
        student = self.modules["network"].parameters()
        for mean, value in zip(self.modules["target"].parameters(), student, strict=True):
            mean.lerp_(value, weight)

    def write_model(
        self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
    ) -> None:
        """Write the run as a model."""
        export_ground(self.ground, folder, modules, training)

    def export(self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]) -> None:
        """Write the run folder's content."""
        self.write_model(folder, modules, training)
