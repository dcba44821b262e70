"""Sampling from a run: the engine's arithmetic without the engine.

A picture is drawn alone, with a generator of its own, from the same tables,
noise and guidance as the engine draws it, and encoded with the same recipe. What
goes beyond prompt, class, steps and guidance is the engine's business.

Dimensions: B samples.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mezzotint
from mezzotint.errors import InvalidRequest, WorkFailed
from mezzotint.images.codec import encode, to_pixels
from mezzotint.images.metadata import (
    build_recipe,
    canonical_json,
    library_versions,
    make_infotext,
)
from mezzotint.models.base import Conditioning, Model, Prompt
from mezzotint.models.families.runs import RunModel
from mezzotint.models.spec import ModelSpec
from mezzotint.request import GenerationRequest, GuidanceSchedule, LatentInput
from mezzotint.sampling.loop import denoise
from mezzotint.sampling.solvers import SCHEDULERS, SolverTable, plan_table
from mezzotint.types import MAX_SEED, GenerationResult, ImageOutput, Size

__all__ = ["draw_values", "sample_model", "walk"]

_UNUSED = (
    "image", "mask", "image_references", "controls", "loras", "regions", "ensemble", "walk",
    "gates", "upscale",
)  # fmt: skip
_ROWS = 2048  # samples of one call in draw_values

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(latents (B, ...), sigma (B,), timestep (B,)) -> denoised (B, ...)``."""


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A request with the model's own values filled in."""

    request: GenerationRequest
    size: Size
    steps: int
    scheduler: str
    sigma_schedule: str | None
    guidance: float
    warnings: tuple[str, ...]


def walk(
    estimate: Estimate, table: SolverTable, noise: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """Follow a solver's table from noise to clean latents.

    Args:
        estimate: Says what is clean in noisy latents.
        table: The solver's coefficients.
        noise: Standard normal noise. Shape (B, ...), float32.
        generators: One for each row, for solvers that draw noise.

    Returns:
        Clean latents. Shape (B, ...), float32.

    Raises:
        WorkFailed: If they are not finite.
    """
    rows, device = len(noise), noise.device
    places = iter(table.evaluations)

    def at(latents: Tensor, sigma: Tensor, _step: int) -> Tensor:
        timestep = torch.full((rows,), next(places).timestep, device=device)
        return estimate(latents, sigma.to(device), timestep)

    clean = denoise(at, noise * table.init_noise_sigma, table, generators=generators)
    if not torch.isfinite(clean).all():
        raise WorkFailed("the model answered values that are not finite")
    return clean


def sample_model(model: Model, request: GenerationRequest) -> GenerationResult:
    """Draw the pictures of a request.

    Raises:
        InvalidRequest: If a field does not fit the model, or is one that only
            the engine honours.
    """
    asked = _resolve(request, model.spec)
    base = request.seed if request.seed is not None else secrets.randbits(32)
    outputs = tuple(
        _draw_one(model, asked, (base + index) % (MAX_SEED + 1), index)
        for index in range(request.num_images)
    )
    return GenerationResult(
        id=f"sample-{base}",
        images=outputs,
        plan={"model": model.spec.name},
        warnings=asked.warnings,
    )


def _resolve(request: GenerationRequest, spec: ModelSpec) -> _Resolved:
    """Fill in the model's own values and refuse what does not fit."""
    for name in _UNUSED:
        if getattr(request, name):
            raise InvalidRequest(
                f"{name} needs the engine; serve the run folder, or draw with mezzotint generate "
                "--model RUN_DIR",
                field=name,
            )
    if isinstance(request.guidance_scale, GuidanceSchedule):
        raise InvalidRequest(
            "guidance_scale must be a number while sampling from a run", field="guidance_scale"
        )
    own = spec.default_size
    size = Size(request.width or own.width, request.height or own.height)
    multiple = spec.size_multiple
    fits = all(
        spec.min_size_px <= side <= spec.max_size_px and side % multiple == 0 for side in size
    )
    if size != own and (spec.fixed_size or not fits):
        limits = f"{spec.min_size_px} to {spec.max_size_px}"
        allowed = str(own) if spec.fixed_size else f"multiples of {multiple} px, {limits}"
        raise InvalidRequest(
            f"width and height must be {allowed} for {spec.name}, got {size}", field="width"
        )
    label = request.latent.class_label
    if (spec.num_classes > 0) != (label is not None) and spec.has_steps:
        allowed = f"0 to {spec.num_classes - 1}" if spec.num_classes else "no class label"
        raise InvalidRequest(
            f"latent.class_label must be {allowed} for {spec.name}, got {label}",
            field="latent.class_label",
        )
    if spec.takes_prompt and not request.prompt.strip():
        raise InvalidRequest(f"prompt is needed for {spec.name}, got an empty text", field="prompt")
    scheduler = request.scheduler or spec.default_scheduler
    own_levels = request.scheduler in (None, spec.default_scheduler)
    guidance = request.guidance_scale
    if guidance is None:
        guidance = spec.default_guidance_scale
    if not (spec.has_steps and spec.takes_guidance):
        guidance = 1.0
    if spec.has_steps:
        SCHEDULERS[scheduler]
    if callable(guidance):
        raise InvalidRequest(
            "guidance_scale must be a number for a run folder, got a function",
            field="guidance_scale",
        )
    return _Resolved(
        request=request,
        size=size,
        steps=request.num_inference_steps or spec.default_steps,
        scheduler=scheduler,
        sigma_schedule=request.sigma_schedule
        or (spec.default_sigma_schedule if own_levels else None),
        guidance=float(guidance),
        warnings=_warn(request, spec),
    )


def _warn(request: GenerationRequest, spec: ModelSpec) -> tuple[str, ...]:
    """Say which fields mean nothing to the model."""
    found: list[str] = []
    if request.prompt.strip() and not spec.takes_prompt:
        found.append(f"prompt has no effect on {spec.name}: it takes no text")
    if request.negative_prompt and not spec.takes_negative_prompt:
        found.append(f"negative_prompt has no effect on {spec.name}")
    return tuple(found)


@torch.no_grad()
def _draw_one(model: Model, asked: _Resolved, seed: int, index: int) -> ImageOutput:
    """Draw, decode and encode one picture."""
    spec, request = model.spec, asked.request
    generator = torch.Generator().manual_seed(seed)
    positive, negative = _encode(model, asked)
    noise = torch.randn((1, *model.latent_shape(asked.size)), generator=generator)
    latents = noise
    if spec.has_steps:
        table = plan_table(
            asked.scheduler, spec.scheduler_config, asked.steps, asked.sigma_schedule
        )
        latents = walk(
            _guided(model, positive, negative, asked.guidance), table, noise, [generator]
        )
    notes: list[str] = []
    picture = model.decode(latents, positive, report=lambda _row, text: notes.append(text))
    pixels = to_pixels(picture[0].float().cpu().numpy())
    recipe = _recipe(model, asked, seed)
    output = request.output
    data = encode(
        pixels,
        output.format,
        quality=output.quality,
        parameters=make_infotext(
            recipe, has_steps=spec.has_steps, version=f"mezzotint {mezzotint.__version__}"
        )
        if output.metadata
        else "",
        recipe=canonical_json(recipe) if output.metadata else "",
    )
    return ImageOutput(
        index=index,
        seed=seed,
        data=data,
        format=output.format,
        width=pixels.shape[1],
        height=pixels.shape[0],
        recipe=recipe,
        warnings=tuple(dict.fromkeys((*positive.notes, *notes))),
        pixels=pixels,
    )


def _encode(model: Model, asked: _Resolved) -> tuple[Conditioning, Conditioning | None]:
    """Encode the prompt and, where guidance is on, its negative half."""
    request = asked.request
    positive = Prompt(
        text=request.prompt if model.spec.takes_prompt else "",
        size=asked.size,
        class_label=request.latent.class_label,
        truncation=request.latent.truncation,
        dialect=request.prompt_dialect,
    )
    if asked.guidance == 1:
        return model.encode(model.align([positive]))[0], None
    negative = Prompt(
        text=request.negative_prompt if model.spec.takes_negative_prompt else "",
        size=asked.size,
        negative=True,
        dialect=request.prompt_dialect,
    )
    first, second = (model.encode([prompt])[0] for prompt in model.align([positive, negative]))
    return first, second


def _guided(
    model: Model, positive: Conditioning, negative: Conditioning | None, scale: float
) -> Estimate:
    """Return the estimate of one picture; a network call has two rows at least."""
    denoiser = model.denoiser
    assert denoiser is not None  # noqa: S101  (only models with steps come here)
    rows = Conditioning.stack([positive, negative or positive])

    def estimate(latents: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        answers = denoiser(
            latents.repeat(2, *([1] * (latents.ndim - 1))),
            sigma.repeat(2),
            rows,
            timestep=timestep.repeat(2),
        )
        if negative is None:
            return answers[:1]
        return answers[1:] + scale * (answers[:1] - answers[1:])

    return estimate


def _recipe(model: Model, asked: _Resolved, seed: int) -> dict[str, Any]:
    """Return the recipe of one picture, as the engine writes it."""
    request, spec = asked.request, model.spec
    alone = replace(
        request,
        model=spec.name,
        prompt=request.prompt if spec.takes_prompt else "",
        negative_prompt=request.negative_prompt if asked.guidance != 1 else "",
        width=asked.size.width,
        height=asked.size.height,
        num_images=1,
        seed=seed,
        num_inference_steps=asked.steps if spec.has_steps else None,
        scheduler=asked.scheduler if spec.has_steps else None,
        sigma_schedule=asked.sigma_schedule if spec.has_steps else None,
        guidance_scale=asked.guidance if spec.has_steps else None,
        latent=LatentInput(
            truncation=1.0 if spec.has_steps else request.latent.truncation,
            class_label=request.latent.class_label,
        ),
        priority=0,
        deadline_s=None,
    )
    resolved = {"model": spec.name, "width": asked.size.width, "height": asked.size.height}
    environment = {**_environment(model), "model_digest": spec.digest}
    return build_recipe(alone.to_dict(), resolved=resolved, environment=environment)


def _environment(model: Model) -> dict[str, Any]:
    """Return what arithmetic depends on, in the words of the engine's recipes."""
    devices = {str(getattr(network, "device", "cpu")) for network in model.networks.values()}
    device = devices.pop() if len(devices) == 1 else "cpu"
    found: dict[str, Any] = {
        "mezzotint": mezzotint.__version__,
        **library_versions(),
        "device": device,
        "dtype": "float32",
        "backend": "torch",
    }
    if device == "cpu":
        found["cpu"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = torch.get_num_threads()
    else:
        found["device"] = f"{device.partition(':')[0]} {torch.cuda.get_device_name(device)}"
    return found


@torch.no_grad()
def draw_values(
    model: RunModel,
    count: int,
    *,
    seed: int = 0,
    num_inference_steps: int | None = None,
    scheduler: str | None = None,
    guidance_scale: float | None = None,
    labels: Sequence[int] | None = None,
    circle: bool = False,
) -> np.ndarray:
    """Draw many samples of an array run at once, in the units of its data.

    Args:
        model: The run.
        count: How many.
        seed: Sample k uses ``seed + k``.
        num_inference_steps: Solver steps; None is the model's own.
        scheduler: Solver; None is the model's own.
        guidance_scale: Guidance towards the labels; None is the model's own.
        labels: Class of each sample, for class-conditional runs.
        circle: Take the noise from a circle instead, ``cos a * z(seed) + sin a *
            z(seed + 1)`` with ``a = 2 pi k / count``: each is as normal as any other,
            neighbours are alike, and the last leads back to the first.

    Returns:
        Shape (count, *shape), float32.

    Raises:
        InvalidRequest: If the labels are not one per sample.
    """
    spec, about = model.spec, model.description
    if (about.num_classes > 0) != (labels is not None) or (labels and len(labels) != count):
        raise InvalidRequest(
            f"labels must be {count} classes" if about.num_classes else "this run has no classes",
            field="labels",
        )
    scale = spec.default_guidance_scale if guidance_scale is None else guidance_scale
    table = plan_table(
        scheduler or spec.default_scheduler,
        spec.scheduler_config,
        num_inference_steps or spec.default_steps,
    )
    device = model.device
    parts: list[Tensor] = []
    for start in range(0, count, _ROWS):
        rows = range(start, min(start + _ROWS, count))
        generators = [torch.Generator().manual_seed((seed + k) % (MAX_SEED + 1)) for k in rows]
        if circle:
            ends = [torch.Generator().manual_seed((seed + k) % (MAX_SEED + 1)) for k in (0, 1)]
            first, second = (torch.randn((1, *about.shape), generator=g) for g in ends)
            turn = torch.tensor([2 * math.pi * k / count for k in rows])
            turn = turn.reshape(-1, *([1] * len(about.shape)))
            noise = turn.cos() * first + turn.sin() * second
        else:
            noise = torch.cat([torch.randn((1, *about.shape), generator=g) for g in generators])
        chosen = torch.tensor([labels[k] for k in rows]) if labels is not None else None
        estimate = _many(model, chosen, scale, device)
        parts.append(walk(estimate, table, noise.to(device), generators).cpu())
    return model.values(torch.cat(parts)).numpy()


def _many(model: RunModel, labels: Tensor | None, scale: float, device: torch.device) -> Estimate:
    """Return the estimate of many samples at once."""
    empty, denoiser = model.description.num_classes, model.denoiser
    assert denoiser is not None  # noqa: S101  (a run has one)
    if labels is None:
        return lambda x, sigma, timestep: denoiser(x, sigma, None, timestep=timestep)
    wanted = Conditioning({"class_labels": labels.to(device)})
    nothing = Conditioning({"class_labels": torch.full_like(labels, empty).to(device)})

    def estimate(latents: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        said = denoiser(latents, sigma, wanted, timestep=timestep)
        if scale == 1:
            return said
        other = denoiser(latents, sigma, nothing, timestep=timestep)
        return other + scale * (said - other)

    return estimate
