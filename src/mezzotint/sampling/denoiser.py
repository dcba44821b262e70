"""Denoisers: what a network says, in one convention.

Everything above this file speaks of ``denoised`` only: the estimate of the
clean latents given noisy ones. What a network really predicts (epsilon, v,
sample, flow) is converted here and nowhere else.

Conventions:
    Variance-exploding frame ``"ve"``: ``latents = clean + sigma * noise`` (Karras
    et al. 2022, arXiv:2206.00364). A variance-preserving state ``x`` with
    cumulative ``alpha_bar`` is the same state divided by ``sqrt(alpha_bar)``, at
    ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``.
    Flow frame ``"flow"``: ``latents = (1 - sigma) * clean + sigma * noise``,
    sigma in [0, 1]; the network's time is ``1000 * sigma``.

Dimensions: B images, then any rank.
"""

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.sampling.schedules import NoiseSchedule

__all__ = [
    "Denoiser",
    "EdmDenoiser",
    "FunctionDenoiser",
    "Network",
    "NetworkDenoiser",
    "denoised_from_prediction",
    "prediction_from_denoised",
    "prediction_scale",
]


class Denoiser(Protocol):
    """Anything that maps noisy latents and their noise level to clean ones."""

    def __call__(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Any = None,
        *,
        timestep: Tensor | None = None,
    ) -> Tensor:
        """Estimate the clean latents.

        Args:
            latents: Noisy latents in the model's frame. Shape (B, ...), float32.
            sigma: Noise level of each image. Shape (B,), > 0.
            conditioning: What the model's ``encode`` returned, batched to B rows.
            timestep: What the network is told about the noise level, where a
                solver table knows it (``Evaluation.timestep``). Shape (B,). None
                lets the denoiser look ``sigma`` up in its training schedule.

        Returns:
            The estimate of the clean latents. Same shape, float32.
        """
        ...


Network = Callable[[Tensor, Tensor, Any], Tensor]
"""A network call: (scaled latents (B, ...), timestep (B,), conditioning) -> prediction."""


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Shape one number per image so that it multiplies whole images, in float32."""
    return values.float().reshape(-1, *([1] * (like.ndim - 1)))


def _check_rows(latents: Tensor, sigma: Tensor) -> None:
    """Raise ShapeError unless there is one noise level per image."""
    if sigma.ndim != 1 or sigma.shape[0] != latents.shape[0]:
        raise ShapeError(
            f"sigma needs one noise level per image, shape ({latents.shape[0]},), "
            f"got {tuple(sigma.shape)}",
            field="sigma",
        )


def _skip_and_out(sigma: Tensor, prediction_type: str) -> tuple[Tensor, Tensor]:
    """Return (skip, out), float64, with ``denoised = skip * latents - out * prediction``."""
    level = sigma.double()
    match prediction_type:
        case "epsilon" | "flow" | "flow_prediction":
            return torch.ones_like(level), level
        case "v_prediction":
            return 1 / (level**2 + 1), level / (level**2 + 1).sqrt()
        case "sample":
            return torch.zeros_like(level), -torch.ones_like(level)
        case _:
            raise InvalidRequest(
                "prediction_type must be epsilon, v_prediction, sample or flow_prediction, "
                f"got {prediction_type!r}",
                field="prediction_type",
                value=prediction_type,
            )


def prediction_scale(sigma: Tensor, prediction_type: str) -> Tensor:
    """Return how far the estimate of the clean latents moves per unit of prediction.

    Args:
        sigma: Noise level of each image. Shape (B,).
        prediction_type: As of :func:`denoised_from_prediction`.

    Returns:
        Shape (B,), float64; never 0 where ``sigma`` is not.
    """
    return _skip_and_out(sigma, prediction_type)[1]


def denoised_from_prediction(
    prediction: Tensor, latents: Tensor, sigma: Tensor, prediction_type: str
) -> Tensor:
    """Convert what the network said into the estimate of the clean latents.

    Args:
        prediction: The network's output. Shape (B, ...).
        latents: Noisy latents in the model's frame. Same shape, float32.
        sigma: Noise level of each image. Shape (B,).
        prediction_type: ``"epsilon"``, ``"v_prediction"``, ``"sample"`` or
            ``"flow_prediction"``.

    Returns:
        The clean estimate. Same shape, float32.

    Raises:
        InvalidRequest: If the prediction type is unknown.

    Source: Salimans and Ho 2022 (arXiv:2202.00512), appendix D, in the
    variance-exploding frame; for flow, Lipman et al. 2022 (arXiv:2210.02747).
    """
    skip, out = _skip_and_out(sigma, prediction_type)
    if prediction_type == "sample":
        return prediction.float()
    return _rows(skip, latents) * latents - _rows(out, latents) * prediction.float()


def prediction_from_denoised(
    denoised: Tensor, latents: Tensor, sigma: Tensor, prediction_type: str
) -> Tensor:
    """Convert a clean estimate back into what the network would have said.

    The inverse of :func:`denoised_from_prediction`.

    Args:
        denoised: The clean estimate. Shape (B, ...), float32.
        latents: Noisy latents in the model's frame. Same shape.
        sigma: Noise level of each image. Shape (B,), > 0.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample`` or ``flow``.

    Returns:
        The prediction. Shape (B, ...), float32.
    """
    skip, out = _skip_and_out(sigma, prediction_type)
    if prediction_type == "sample":
        return denoised
    return (_rows(skip, latents) * latents - denoised) / _rows(out, latents)


class NetworkDenoiser:
    """A diffusion or flow network as a denoiser.

    Args:
        network: Called with scaled latents, timestep and conditioning.
        schedule: The training noise schedule; gives the frame and the timesteps.
        prediction_type: What the network predicts.
        dtype: Type of the latents at the network's door; float32 if None.

    The input is scaled to unit variance in the ``"ve"`` frame and passed as it
    is in the ``"flow"`` frame. A network that also predicts a variance (twice
    the channels) has that half dropped.
    """

    def __init__(
        self,
        network: Network,
        schedule: NoiseSchedule,
        prediction_type: str,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        _skip_and_out(torch.ones(1), prediction_type)
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.dtype = dtype

    def __call__(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Any = None,
        *,
        timestep: Tensor | None = None,
    ) -> Tensor:
        """Estimate the clean latents; see :class:`Denoiser`."""
        _check_rows(latents, sigma)
        if timestep is None:
            levels = [
                self.schedule.timestep_of(level) for level in sigma.double().cpu().numpy().tolist()
            ]
            timestep = torch.tensor(levels, dtype=torch.float32, device=latents.device)
        inputs = latents
        if self.schedule.frame == "ve":
            inputs = latents * _rows((sigma.double() ** 2 + 1).rsqrt(), latents)
        prediction = self.network(inputs.to(self.dtype or torch.float32), timestep, conditioning)
        if latents.ndim > 1 and prediction.shape[1] == 2 * latents.shape[1]:
            prediction = prediction[:, : latents.shape[1]]
        return denoised_from_prediction(prediction, latents, sigma, self.prediction_type)


class EdmDenoiser:
    """A network with the preconditioning of Karras et al. 2022, table 1.

    Args:
        network: Called with ``c_in * latents``, ``c_noise = log(sigma) / 4`` and
            conditioning.
        sigma_data: Standard deviation of the training data, > 0.
    """

    def __init__(self, network: Network, *, sigma_data: float = 0.5) -> None:
        self.network = network
        self.sigma_data = sigma_data

    def __call__(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Any = None,
        *,
        timestep: Tensor | None = None,
    ) -> Tensor:
        """Estimate the clean latents; see :class:`Denoiser`. ``timestep`` is not used."""
        _check_rows(latents, sigma)
        level, data = sigma.double(), self.sigma_data
        total = level**2 + data**2
        output = self.network(
            latents * _rows(total.rsqrt(), latents), (level.log() / 4).float(), conditioning
        )
        skip, out = data**2 / total, level * data * total.rsqrt()
        return _rows(skip, latents) * latents + _rows(out, latents) * output.float()


class FunctionDenoiser:
    """A plain function ``(latents, sigma) -> denoised`` as a denoiser.

    The answer is checked: same shape, converted to float32.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def __call__(
        self,
        latents: Tensor,
        sigma: Tensor,
        conditioning: Any = None,
        *,
        timestep: Tensor | None = None,
    ) -> Tensor:
        """Estimate the clean latents; conditioning and timestep are not passed on."""
        denoised = cast("object", self.function(latents, sigma))  # a caller's own function
        if not isinstance(denoised, Tensor) or denoised.shape != latents.shape:
            came = (
                tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
            )
            raise ShapeError(
                f"denoiser must answer latents of shape {tuple(latents.shape)}, got {came}",
                field="denoiser",
            )
        return denoised.float()
