"""Losses: what a network should have said about a noisy sample.

The variance-preserving schedules mix ``noisy = signal * clean + spread * noise``
with ``signal = sqrt(alpha_bar)`` and ``spread = sqrt(1 - alpha_bar)``; the
rectified flow mixes ``noisy = (1 - time) * clean + time * noise``. Both are one
:class:`Mixture` here, so targets and inversions are written once.

Dimensions: B samples, then any rank; T timesteps of the schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mezzotint.sampling.schedules import beta_values, frame_of, noise_schedule
from mezzotint.train.config.model import ObjectiveConfig

__all__ = [
    "Mixture",
    "Noising",
    "alpha_bar",
    "loss_weight",
    "pointwise_loss",
    "scheduler_config",
    "target_of",
    "to_clean",
]

_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
_TARGETS = {prediction: target for target, prediction in _PREDICTION.items()}
_BETAS = {
    "linear": ("linear", 1e-4, 0.02),
    "scaled_linear": ("scaled_linear", 0.00085, 0.012),
    "cosine": ("squaredcos_cap_v2", 1e-4, 0.02),
}
_TABLES = {"sigmoid": "sigmoid_alpha_bar", "sigmoid_beta": "sigmoid_beta"}  # unknown to DDIM


def scheduler_config(objective: ObjectiveConfig, *, limit: float | None = None) -> dict[str, Any]:
    """Describe the noise schedule as a diffusers scheduler configuration.

    It is written into the run folder, so that sampling uses exactly the noise
    levels that were trained, in Mezzotint and in diffusers alike.

    Args:
        objective: Schedule and target.
        limit: Largest value of the data as the network sees it, if it is known.
            A small error in epsilon is a huge one in the clean estimate where
            there is almost no signal (at the last step of ``cosine`` by a factor
            of 20 000), so estimates from epsilon are clipped to it.
    """
    steps = objective.num_train_timesteps
    if objective.schedule == "rectified_flow":
        return {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": steps,
            "shift": 1.0,
        }
    name, start, end = _BETAS.get(objective.schedule, ("linear", 1e-4, 0.02))
    config: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": steps,
        "beta_schedule": name,
        "beta_start": start,
        "beta_end": end,
        "prediction_type": _PREDICTION[objective.target],
        "rescale_betas_zero_snr": objective.zero_terminal_snr,
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # of no effect with trailing steps; StableDiffusionPipeline insists
        "clip_sample": objective.target == "epsilon" and limit is not None,
        "set_alpha_to_one": True,
    }
    if config["clip_sample"]:
        config["clip_sample_range"] = limit
    if objective.schedule in _TABLES:
        config["trained_betas"] = beta_values(_TABLES[objective.schedule], count=steps)
    return config


def alpha_bar(config: Mapping[str, Any]) -> Tensor:
    """Return the cumulative signal of each timestep of a scheduler configuration.

    The numbers are those that sampling reads out of the run folder.

    Returns:
        Shape (T,), float64, falling, in [0, 1); the last is 0 where the
        terminal signal-to-noise ratio is rescaled to zero.
    """
    return torch.tensor(noise_schedule(config).alphas_cumprod, dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class Mixture:
    """How much signal and noise each sample holds. All of shape (B,), float32.

    Args:
        time: What the network is told.
        signal: Factor of the clean sample.
        spread: Factor of the noise.
    """

    time: Tensor
    signal: Tensor
    spread: Tensor

    def to(self, device: torch.device) -> "Mixture":
        """Return the same mixture on another device."""
        return Mixture(self.time.to(device), self.signal.to(device), self.spread.to(device))

    def mix(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Return ``signal * clean + spread * noise``. Shape (B, ...)."""
        return _wide(self.signal, clean) * clean + _wide(self.spread, clean) * noise


class Noising:
    """Draws noise levels the way a schedule and the objective ask.

    Args:
        scheduler: The noise schedule as a diffusers scheduler configuration.
        objective: Times of the rectified flow; weights and shape of the loss.
    """

    def __init__(self, scheduler: Mapping[str, Any], objective: ObjectiveConfig) -> None:
        self.objective = objective
        self.is_flow = frame_of(scheduler) == "flow"
        self.alpha_bar = None if self.is_flow else alpha_bar(scheduler)
        self.num_timesteps = int(scheduler.get("num_train_timesteps", 1000))
        predicted = str(scheduler.get("prediction_type", "epsilon"))
        self.target = "flow" if self.is_flow else _TARGETS[predicted]

    @classmethod
    def of(cls, objective: ObjectiveConfig) -> "Noising":
        """Return the noise that an objective describes."""
        return cls(scheduler_config(objective), objective)

    def error(self, predicted: Tensor, clean: Tensor, noise: Tensor, mixture: Mixture) -> Tensor:
        """Return the weighted error of each sample's prediction. Shape (B,)."""
        target = target_of(self.target, clean, noise, mixture)
        error = pointwise_loss(self.objective.loss, predicted, target)
        return error * loss_weight(self.target, self.objective.min_snr_gamma, mixture)

    def draw(self, count: int, generator: torch.Generator) -> Mixture:
        """Draw the noise levels of a training batch.

        Schedules draw whole timesteps uniformly; the rectified flow draws
        logit-normal times (arXiv:2403.03206, equation 19).
        """
        objective = self.objective
        if not self.is_flow:
            times = torch.randint(0, self.num_timesteps, (count,), generator=generator)
            return self.at(times)
        if objective.logit_std > 0:
            normal = torch.randn(count, generator=generator)
            times = torch.sigmoid(objective.logit_mean + objective.logit_std * normal)
        else:
            times = torch.rand(count, generator=generator)
        shift = objective.flow_shift
        times = shift * times / (1 + (shift - 1) * times)
        return Mixture(times * self.num_timesteps, 1 - times, times)

    def spaced(self, count: int) -> Mixture:
        """Return evenly spaced noise levels, for held-out losses without luck."""
        fractions = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        if self.is_flow:
            times = fractions.float()
            return Mixture(times * self.num_timesteps, 1 - times, times)
        return self.at((fractions * self.num_timesteps).long())

    def at(self, timesteps: Tensor) -> Mixture:
        """Return the mixture at timesteps of a schedule.

        Args:
            timesteps: Whole numbers. Shape (B,), int64.
        """
        assert self.alpha_bar is not None  # noqa: S101  (only schedules have timesteps)
        level = self.alpha_bar[timesteps.cpu()]
        return Mixture(timesteps.float(), level.sqrt().float(), (1 - level).sqrt().float())


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """Give (B,) values the rank of ``like``, for broadcasting."""
    return values.reshape(-1, *([1] * (like.ndim - 1))).to(like.dtype)


def target_of(target: str, clean: Tensor, noise: Tensor, mixture: Mixture) -> Tensor:
    """Return what the network should predict. Shape (B, ...).

    ``v = signal * noise - spread * clean`` (arXiv:2202.00512); the flow's
    velocity is ``noise - clean`` (arXiv:2209.03003).
    """
    if target == "epsilon":
        return noise
    if target == "sample":
        return clean
    if target == "flow":
        return noise - clean
    return _wide(mixture.signal, clean) * noise - _wide(mixture.spread, clean) * clean


def to_clean(target: str, prediction: Tensor, noisy: Tensor, mixture: Mixture) -> Tensor:
    """Return the clean sample that a prediction stands for. Shape (B, ...)."""
    signal, spread = _wide(mixture.signal, noisy), _wide(mixture.spread, noisy)
    if target == "epsilon":
        return (noisy - spread * prediction) / signal.clamp_min(1e-8)
    if target == "sample":
        return prediction
    if target == "flow":
        return noisy - spread * prediction
    return signal * noisy - spread * prediction


def loss_weight(target: str, gamma: float, mixture: Mixture) -> Tensor:
    """Return the weight of each sample's error. Shape (B,), float32.

    With ``gamma`` the error of the clean sample weighs ``min(SNR, gamma)``
    whatever the network predicts (arXiv:2303.09556, section 3.4): divided by
    SNR for epsilon and by SNR + 1 for v.
    """
    if not gamma:
        return torch.ones_like(mixture.signal)
    ratio = mixture.signal**2 / (mixture.spread**2).clamp_min(1e-12)
    capped = ratio.clamp_max(gamma)
    if target == "epsilon":
        return capped / ratio.clamp_min(1e-12)
    if target == "v":
        return capped / (ratio + 1)
    return capped


def pointwise_loss(kind: str, prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean error of each sample. Shape (B,), float32."""
    difference = prediction.float() - target.float()
    if kind == "l1":
        error = difference.abs()
    elif kind == "huber":  # quadratic within 0.1, as wide as a tenth of a unit deviation
        error = (difference**2 + 0.01).sqrt() - 0.1
    else:
        error = difference**2
    return error.flatten(1).mean(1)
