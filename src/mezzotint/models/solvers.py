"""Solvers of diffusers: any scheduler class as a request-local, per-image solver.

The common solvers are tables of ours (``sampling.solvers``). Any other scheduler of
diffusers runs here as an object that belongs to one image: it is built for that
image, stepped for it alone and dropped with it, since such objects keep their
history inside themselves.

Above the network everybody speaks of ``denoised`` in our frame; a scheduler wants
its own model output and its own sample. This file converts:

    kind ``ve``     sample = clean + sigma * noise, as ours
    kind ``vp``     sample = latents / sqrt(1 + sigma**2)
    kind ``flow``   sample = (1 - sigma) * clean + sigma * noise, as ours

A scheduler that assumes another network (EDM preconditioning, consistency
distillation, its own cosine levels) is refused with the reason.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest, ShapeError, UnknownName
from mezzotint.models.exported import exported_class
from mezzotint.sampling.denoiser import prediction_from_denoised
from mezzotint.schedulers import DIFFUSERS, PNDM_LEAST_STEPS, UNFIT, diffusers_names

__all__ = ["SchedulerSolver", "SolverPoint"]

Kind = Literal["ve", "vp", "flow"]

_SPACINGS = {"linear": "linspace", "leading": "leading", "trailing": "trailing"}
_CURVES = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas",
           "beta": "use_beta_sigmas"}  # fmt: skip
_MIN_ALPHA_BAR = 2.0**-24  # a terminal SNR of exactly zero has no finite sigma


class SolverPoint(NamedTuple):
    """Where the network is called: noise level in our frame, and what it is told."""

    sigma: float
    timestep: float


@cache
def _scheduler_class(name: str) -> Any:
    """Return a scheduler class of diffusers by name.

    Raises:
        UnknownName: If diffusers has no such scheduler.
    """
    if name not in (*DIFFUSERS, *UNFIT):
        raise UnknownName("scheduler", name, DIFFUSERS, field="scheduler")
    return exported_class("diffusers", name, where="the scheduler")


class SchedulerSolver:
    """One image's scheduler, stepped by whoever calls the network.

    ::

        solver = SchedulerSolver("PNDMScheduler", spec.scheduler_config, 20)
        latents = solver.start(noise)
        for point in solver.points:
            denoised = denoiser(latents, sigma=point.sigma, timestep=point.timestep)
            latents = solver.advance(denoised, generator)

    Args:
        name: Class name in diffusers.
        config: The scheduler configuration that came with the model.
        num_inference_steps: Steps asked for; calls may be more.
        frame: ``"flow"`` for flow-matching models, ``"ve"`` for all others.
        sigma_schedule: Name of the request field, None for the scheduler's own.
        mu: Shift of schedulers that shift by picture size.

    Attributes:
        points: One per network call, in order.

    Raises:
        UnknownName: If diffusers has no such scheduler.
        InvalidRequest: If it does not fit the model, or the sigma schedule is not
            one of its own.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, Any],
        num_inference_steps: int,
        *,
        frame: Literal["ve", "flow"] = "ve",
        sigma_schedule: str | None = None,
        mu: float | None = None,
    ) -> None:
        cls = _scheduler_class(name)
        _check_fit(name, frame)
        self.name = name
        self._kind: Kind = _kind(name, frame)
        overrides = _overrides(cls, name, frame, config, sigma_schedule)
        self._scheduler = _build(cls, config, overrides)
        self._set_timesteps(num_inference_steps, mu)
        self._prediction = _prediction(self._scheduler, frame)
        self._step_arguments = set(inspect.signature(self._scheduler.step).parameters)
        self._position = 0
        self._sample: Tensor | None = None
        self.points = self._measure_points()

    def _set_timesteps(self, count: int, mu: float | None) -> None:
        options: dict[str, Any] = {}
        if mu is not None and "mu" in inspect.signature(self._scheduler.set_timesteps).parameters:
            options["mu"] = mu
        if self.name == "PNDMScheduler" and count < PNDM_LEAST_STEPS:
            self._scheduler.register_to_config(skip_prk_steps=True)
        try:
            self._scheduler.set_timesteps(count, **options)
        except (ValueError, TypeError, IndexError) as error:
            raise InvalidRequest(
                f"scheduler {self.name} cannot take {count} steps with this model: {error}",
                field="num_inference_steps",
                value=count,
            ) from None

    def _measure_points(self) -> tuple[SolverPoint, ...]:
        """Read the noise level of each network call."""
        return tuple(
            SolverPoint(self._sigma(k, float(t)), float(t))
            for k, t in enumerate(self._scheduler.timesteps.tolist())
        )

    def _sigma(self, position: int, timestep: float) -> float:
        """Return our sigma at a call."""
        scheduler = self._scheduler
        if DIFFUSERS[self.name].sample == "vp_by_alpha":
            alpha_bar = max(float(scheduler.alphas_cumprod[int(timestep)]), _MIN_ALPHA_BAR)
            return ((1 - alpha_bar) / alpha_bar) ** 0.5
        if self.name == "KDPM2DiscreteScheduler" and position % 2 == 1:
            return float(scheduler.sigmas_interpol[position])
        if self.name == "KDPM2AncestralDiscreteScheduler" and position % 2 == 1:
            return float(scheduler.sigmas_interpol[position - 1])
        return float(scheduler.sigmas[position])

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the first latents in our frame."""
        scale = float(self._scheduler.init_noise_sigma) if self._kind != "flow" else 1.0
        return scale / self._alpha(self.points[0].sigma)

    def _alpha(self, sigma: float) -> float:
        """Return sample / latents at a noise level."""
        return (sigma * sigma + 1) ** -0.5 if self._kind == "vp" else 1.0

    def start(self, noise: Tensor) -> Tensor:
        """Begin from pure noise.

        Args:
            noise: One image's standard normal noise. Shape (1, ...), float32.

        Returns:
            The first latents, in our frame.
        """
        return self.resume(noise * self.init_noise_sigma, 0)

    def resume(self, latents: Tensor, position: int) -> Tensor:
        """Begin at a later call, from latents at its noise level (image to image).

        Args:
            latents: In our frame. Shape (1, ...), float32.
            position: Index into :attr:`points`.

        Raises:
            ShapeError: If there is not one image, or no such call.
        """
        if latents.shape[0] != 1 or not 0 <= position < len(self.points):
            raise ShapeError(
                f"{self.name} steps one image at call 0 to {len(self.points) - 1}, got "
                f"{latents.shape[0]} at {position}"
            )
        if hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(position)
        self._position = position
        self._sample = latents.float() * self._alpha(self.points[position].sigma)
        return latents

    def advance(self, denoised: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Take the network's answer at the current call.

        Args:
            denoised: The clean estimate at this call. Shape (1, ...), float32.
            generator: The image's generator, for schedulers that draw noise.

        Returns:
            The latents of the next call in our frame; after the last one, the
            clean latents.

        Raises:
            ShapeError: If it was not started, is at its end, or shapes differ.
        """
        sample = self._sample
        if sample is None or self._position >= len(self.points):
            raise ShapeError(f"{self.name} was not started or has made all its steps")
        if denoised.shape != sample.shape:
            raise ShapeError(
                f"denoised must have shape {tuple(sample.shape)}, got {tuple(denoised.shape)}"
            )
        point = self.points[self._position]
        sigma = torch.tensor([point.sigma], dtype=torch.float64, device=sample.device)
        latents = sample / self._alpha(point.sigma)
        if point.sigma > 0:
            output = prediction_from_denoised(denoised, latents, sigma, self._prediction)
        else:  # DPM2's last midpoint: what the network says is multiplied by zero
            output = torch.zeros_like(sample)
        timestep = self._scheduler.timesteps[self._position]
        if self._kind == "ve":  # or the scheduler warns that nobody scaled its input
            self._scheduler.scale_model_input(sample, timestep)
        options = {"generator": generator} if "generator" in self._step_arguments else {}
        answer = self._scheduler.step(output, timestep, sample, return_dict=False, **options)
        moved = self._sample = answer[0].float()
        self._position += 1
        if self._position == len(self.points):
            return moved
        return moved / self._alpha(self.points[self._position].sigma)


def _check_fit(name: str, frame: str) -> None:
    """Refuse a scheduler that assumes another kind of network."""
    allowed = diffusers_names("flow" if frame == "flow" else "ve")
    if name in allowed:
        return
    kind = "a flow-matching" if frame == "flow" else "a diffusion"
    reason = UNFIT.get(name) or f"it does not step {kind} model"
    raise InvalidRequest(
        f"scheduler {name} does not fit this model: {reason}",
        field="scheduler",
        value=name,
        allowed=", ".join(allowed),
    )


def _kind(name: str, frame: str) -> Kind:
    if frame == "flow":
        return "flow"
    return "ve" if DIFFUSERS[name].sample == "ve" else "vp"


def _prediction(scheduler: Any, frame: str) -> str:
    """Return what the scheduler takes as a model output."""
    if frame == "flow":
        return "flow_prediction"
    return str(scheduler.config.get("prediction_type", "epsilon"))


def _overrides(
    cls: Any, name: str, frame: str, config: Mapping[str, Any], sigma_schedule: str | None
) -> dict[str, Any]:
    """Translate the sigma schedule and the frame into the scheduler's own words."""
    known = set(inspect.signature(cls.__init__).parameters)
    words: dict[str, Any] = {}
    if frame == "flow" and DIFFUSERS[name].sample == "vp_by_sigma":
        words = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        if config.get("shift") is not None:  # what flow-matching schedulers call it
            words["flow_shift"] = float(config["shift"])
    if sigma_schedule is not None:
        if sigma_schedule in _CURVES and _CURVES[sigma_schedule] in known:
            words |= {flag: flag == _CURVES[sigma_schedule] for flag in _CURVES.values()}
        elif sigma_schedule in _SPACINGS and "timestep_spacing" in known:
            words |= dict.fromkeys(_CURVES.values(), False)
            words["timestep_spacing"] = _SPACINGS[sigma_schedule]
        else:
            own = [k for k, flag in _CURVES.items() if flag in known]
            own += list(_SPACINGS) if "timestep_spacing" in known else []
            raise InvalidRequest(
                f"scheduler {name} has no sigma schedule {sigma_schedule!r}; "
                f"it has: {', '.join(own) or 'none but its own'}",
                field="sigma_schedule",
                value=sigma_schedule,
                allowed=", ".join(own),
            )
    return {key: value for key, value in words.items() if key in known}


def _build(cls: Any, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
    """Build a fresh scheduler from a configuration that another class may have written."""
    known = set(inspect.signature(cls.__init__).parameters) - {"self"}
    defaulted: Sequence[str] = config.get("_use_default_values", ())
    kept = {k: v for k, v in config.items() if k in known and k not in defaulted}
    if kept.get("trained_betas") is not None:
        kept["trained_betas"] = list(kept["trained_betas"])
    if cls.__name__ == "DEISMultistepScheduler":
        # DPM++'s words for the same fields, which DEIS translates with a warning.
        kept.pop("algorithm_type", None)
        kept.pop("solver_type", None)
    if cls.__name__ == "SASolverScheduler" and str(kept.get("algorithm_type")).startswith("dpm"):
        kept.pop("algorithm_type")  # a word of DPM++, which SA-Solver does not know
    if kept.get("use_flow_sigmas") and "use_flow_sigmas" not in overrides:
        kept.pop("use_flow_sigmas")
    return cls(**{**kept, **overrides})
