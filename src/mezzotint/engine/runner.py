"""Runner: the hands. Owns every tensor, one slot per image.

Each step gathers the rows of all images of a batch, pads them to a certified
call size, calls the network once, lets each image make one estimate of its own
rows, and moves all images one evaluation down. Nothing is changed until the
whole step has succeeded, so a step that raises can be repeated image by image.

Dimensions: B images, R rows, C latent channels, h and w latent rows and columns.
"""

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mezzotint.engine.cache import ByteCache
from mezzotint.engine.certify import REFERENCE, Certificates, Rows, random_rows
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.engine import Decoded, Encoded, Worked
from mezzotint.engine.operators import ClassifierFree, Ensemble, Operator, Region, Regions
from mezzotint.engine.plan import Plan, PlannedLora, PlannedRegion
from mezzotint.engine.slots import Inpainting, Slot
from mezzotint.engine.solving import (
    ForeignSolver,
    NativeSolver,
    advance_together,
    make_solver,
)
from mezzotint.engine.state import ImageId, StepBatch
from mezzotint.errors import OutOfMemory, WorkFailed
from mezzotint.models.base import Conditioning, Model, Prompt
from mezzotint.models.networks import TorchNetwork
from mezzotint.observe import metrics
from mezzotint.observe.spans import span
from mezzotint.sampling.compose import box_mask, soften, to_latent
from mezzotint.sampling.ensemble import check_members
from mezzotint.sampling.latents import make_generator, slerp, slerp_embeddings
from mezzotint.sampling.schedules import frame_of

__all__ = ["ModelSource", "Runner"]

_GAN_ROWS = (1, 2, 4, 8, 16, 32, 64)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class ModelSource(Protocol):
    """Who has models; the model store does."""

    def use(
        self, name: str, loras: tuple[PlannedLora, ...] = ()
    ) -> contextlib.AbstractContextManager[Model]:
        """Give a model, with LoRAs if asked, that stays in memory for the length of the block."""
        ...


class Runner:
    """Carries out what the mind decided.

    Args:
        config: Limits.
        models: Where models come from.
        certificates: Which call sizes may be used.
        clock: Seconds.
    """

    def __init__(
        self,
        config: EngineConfig,
        models: ModelSource,
        *,
        certificates: Certificates,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._config = config
        self._models = models
        self._certificates = certificates
        self._clock = clock
        self._slots: dict[ImageId, Slot] = {}
        self._keys: dict[Hashable, ImageId] = {}
        self._prompts: ByteCache[tuple[str, Prompt], Conditioning] = ByteCache(
            config.prompt_cache_bytes, lambda c: c.num_bytes + 1024
        )

    @property
    def num_slots(self) -> int:
        """Images that hold tensors."""
        return len(self._slots)

    def encode(self, image: ImageId, plan: Plan, assets: Mapping[str, Any]) -> Encoded:
        """Make an image's tensors; see :class:`~mezzotint.engine.engine.Hands`."""
        with span("encode", image=image.index), torch.no_grad(), self._translated():
            pin = contextlib.ExitStack()
            try:
                model = pin.enter_context(self._models.use(plan.model, plan.techniques.loras))
                slot = self._fill(plan, model, pin, assets)
            except BaseException:
                pin.close()
                raise
            self._slots[image] = slot
            metrics.set_to("mezzotint_running_images", len(self._slots))
        key = (plan.batch_key, _shapes(slot))
        self._keys[key] = image
        notes = (*slot.conditioning.notes, *_backend_notes(slot.model))
        return Encoded(key=key, warnings=tuple(dict.fromkeys(notes)))

    def step(self, batch: StepBatch) -> Worked:
        """Take one evaluation for every image of a batch."""
        slots = [self._slots[image] for image in batch.ids]
        with (
            span("denoise", rows=batch.bucket, images=len(slots)),
            torch.no_grad(),
            self._translated(),
        ):
            rows, members, counts = _gather(slots)
            answers, seconds = self._ask(batch, slots[0], rows, members)
            estimates = [
                _operator(slot).combine(
                    _step_of(slot), part, _solver(slot).latents, _solver(slot).sigma
                )
                for slot, part in zip(slots, answers.split(counts), strict=True)
            ]
            moved = advance_together([_solver(slot) for slot in slots], estimates)
            faults = _find_faults(batch.ids, slots, moved)
            for image, slot, estimate, move in zip(batch.ids, slots, estimates, moved, strict=True):
                if image not in faults:
                    _commit(slot, estimate, move)
        metrics.count("mezzotint_network_calls_total", model=slots[0].plan.model)
        metrics.measure("mezzotint_batch_rows", sum(counts), model=slots[0].plan.model)
        return Worked(faults=faults, seconds=seconds)

    def decode(self, batch: StepBatch) -> Worked:
        """Turn finished latents into pictures: one by one, or a GAN's all at once."""
        slots = [self._slots[image] for image in batch.ids]
        notes: dict[int, list[str]] = {}
        with (
            span("decode", images=len(slots)),
            torch.no_grad(),
            self._translated(),
        ):
            began = self._clock()
            pictures = slots[0].model.decode(
                torch.cat([slot.latents for slot in slots]),
                Conditioning.stack([slot.conditioning for slot in slots]),
                report=lambda row, text: notes.setdefault(row, []).append(text),
            )
            arrays = pictures.float().cpu().numpy()
            seconds = self._clock() - began
        return Worked(
            decoded={
                image: Decoded(picture=arrays[k], warnings=tuple(notes.get(k, ())))
                for k, image in enumerate(batch.ids)
            },
            seconds=seconds,
        )

    def preview(self, image: ImageId) -> Any:
        """Return a rough picture of the last estimate (float, (3, h, w)), or None."""
        slot = self._slots[image]
        if slot.denoised is None:
            return None
        with torch.no_grad():
            latents = slot.denoised[0].float().cpu()
            matrix = slot.model.preview_matrix()
            if matrix is None:
                return latents.numpy() if latents.ndim == 3 and latents.shape[0] == 3 else None
            colours = torch.einsum("chw,cr->rhw", latents, matrix[:-1]) + matrix[-1][:, None, None]
            return colours.numpy()

    def release(self, image: ImageId) -> None:
        """Free an image's tensors and let go of its model."""
        slot = self._slots.pop(image, None)
        if slot is not None:
            metrics.set_to("mezzotint_running_images", len(self._slots))
            slot.pin.close()

    def buckets(self, kind: str, key: Hashable) -> tuple[int, ...]:
        """Return the call sizes that may be used."""
        if kind == "decode":
            slot = self._slots.get(self._keys.get(key, ImageId("")))
            is_gan = slot is not None and slot.operator is None
            return _GAN_ROWS if is_gan and slot is not None and slot.model.spec.stepwise else (1,)
        if not self._must_certify(key):
            return self._config.buckets
        return self._certificates.allowed(key, _label(key), self._config.buckets)

    def _must_certify(self, key: Hashable) -> bool:
        """Whether rows have to come out bit for bit the same at every size."""
        return self._config.certify and _batch_key(key)[0][2] == "exact"

    def _fill(
        self, plan: Plan, model: Model, pin: contextlib.ExitStack, assets: Mapping[str, Any]
    ) -> Slot:
        """Encode the prompts, draw the noise, prepare the solver."""
        generator = make_generator(plan.seed)
        device = _device_of(model)
        if not plan.rows:
            (positive,) = self._encode_prompts(plan, model, device)[:1]
            noise = _draw(plan, model, generator).to(device)
            return Slot(plan=plan, model=model, pin=pin, conditioning=positive, latents=noise)
        clean = _encode_picture(plan, model, assets, generator, device)
        noise = _draw(plan, model, generator).to(device)
        members = self._members(plan, model, pin)
        operators = [self._operator(plan, member, assets, noise) for member in members]
        shares = tuple(zip(*(m.weights for m in plan.techniques.ensemble), strict=True))
        operator = Ensemble(tuple(operators), shares) if shares else operators[0]
        return Slot(
            plan=plan,
            model=model,
            pin=pin,
            conditioning=operator.rows(1)[0].conditioning,
            latents=noise,
            members=members,
            operator=operator,
            solver=make_solver(
                plan,
                model,
                noise=noise,
                clean=None if _repaints_all(plan) else clean,
                generator=generator,
            ),
            inpainting=_keep_outside(plan, model, assets, clean, noise),
        )

    def _members(self, plan: Plan, model: Model, pin: contextlib.ExitStack) -> tuple[Model, ...]:
        """Return whose denoisers are asked, pinned: the model's own or an ensemble's."""
        planned = plan.techniques.ensemble
        if not planned:
            return (model,)
        members = tuple(pin.enter_context(self._models.use(member.model)) for member in planned)
        spaces = [
            (m.spec.name, m.latent_shape(plan.size), frame_of(m.spec.scheduler_config))
            for m in (model, *members)
        ]
        check_members(spaces)
        return members

    def _operator(
        self, plan: Plan, model: Model, assets: Mapping[str, Any], noise: Tensor
    ) -> ClassifierFree | Regions:
        """Encode all prompts for one denoiser."""
        positive, negative, *rest = self._encode_prompts(plan, model, noise.device)
        base = ClassifierFree(
            positive=positive,
            negative=negative if any(scale != 1 for scale in plan.guidance) else None,
            scales=plan.guidance,
            rescale=plan.techniques.guidance_rescale,
            prediction_type=model.spec.prediction_type,
        )
        planned = plan.techniques.regions
        if not planned:
            return base
        texts = _region_negatives(planned)
        regions = tuple(
            Region(
                positive=rest[k],
                negative=texts.index(r.negative_prompt) if r.negative_prompt else None,
                mask=_region_mask(r, plan, assets, noise),
                weight=r.weight,
                start=r.start,
                end=r.end,
            )
            for k, r in enumerate(planned)
        )
        return Regions(base=base, regions=regions, negatives=tuple(rest[len(planned) :]))

    def _encode_prompts(self, plan: Plan, model: Model, device: torch.device) -> list[Conditioning]:
        """Encode an image's prompts to one shape.

        Returns:
            The prompt's conditioning, the negative prompt's, the regions', and the
            regions' own negative ones.
        """
        t = plan.techniques
        base = Prompt(
            size=plan.size,
            class_label=t.class_label,
            distilled_guidance=t.distilled_guidance,
            truncation=t.truncation,
            dialect=plan.prompt_dialect,
            lora_scales=tuple(lora.scale for lora in t.loras),
        )
        if not model.spec.stepwise:
            base = replace(
                base,
                negative_text=plan.negative_prompt,
                num_inference_steps=plan.num_inference_steps,
            )
        unguided = replace(
            base, negative=True, class_label=None, distilled_guidance=None, truncation=1.0
        )
        guided = any(scale != 1 for scale in plan.guidance)
        prompts = [replace(base, text=plan.prompt)]
        if guided or t.regions:
            prompts.append(replace(unguided, text=plan.negative_prompt))
        prompts += [replace(base, text=region.prompt) for region in t.regions]
        prompts += [replace(unguided, text=text) for text in _region_negatives(t.regions)]
        walk = t.walk
        is_walking = walk is not None and walk.to is not None and walk.mode != "seed"
        if walk is not None and walk.to is not None and is_walking:
            prompts.append(replace(base, text=walk.to))
        encoded = [self._encode(model, p).to(device) for p in model.align(prompts)]
        if walk is not None and is_walking:
            end = encoded.pop()
            encoded[0] = _between(encoded[0], end, walk.frame / (walk.frames - 1))
        return encoded if len(encoded) > 1 else [*encoded, encoded[0]]

    def _encode(self, model: Model, prompt: Prompt) -> Conditioning:
        """Encode one prompt, or find it in the cache."""
        key = (model.spec.digest, prompt)
        found = self._prompts.get(key)
        metrics.count(
            "mezzotint_cache_lookups_total", cache="prompts", answer="hit" if found else "miss"
        )
        if found is None:
            (found,) = model.encode([prompt])
            if model.spec.digest:
                self._prompts.put(key, found)
        return found

    def _ask(
        self, batch: StepBatch, slot: Slot, rows: Rows, members: Sequence[int]
    ) -> tuple[Tensor, float | None]:
        """Ask every denoiser for its rows; see :meth:`_call`."""
        if len(slot.members) == 1:
            return self._call(slot.members[0], batch.key, batch.bucket, rows)
        answers: dict[int, Tensor] = {}
        for member, model in enumerate(slot.members):
            places = [k for k, m in enumerate(members) if m == member]
            if not places:
                continue
            key = (batch.key, member)
            own = replace(rows.pick(places), timestep=None)  # each looks up its own schedule
            bucket = self._config.bucket(len(places))
            part, _ = self._call(model, key, bucket, own)
            answers.update(zip(places, part.split(1), strict=True))
        return torch.cat([answers[k] for k in range(len(members))]), None

    def _call(
        self, model: Model, key: Hashable, bucket: int, rows: Rows
    ) -> tuple[Tensor, float | None]:
        """Call a network with all rows, in a call size that is certified.

        Returns:
            The estimates, and the seconds of the call or None if they measure nothing.
        """
        denoise = _caller(model)
        size, is_first = bucket, False
        if self._must_certify(key):
            is_first = self._certify(model, key, bucket, rows, denoise)
            size = self._largest_good(key, bucket)
        began = self._clock()
        parts = [
            denoise(_pad(rows.pick(list(range(k, min(k + size, len(rows))))), size))
            for k in range(0, len(rows), size)
        ]
        answers = torch.cat(parts)[: len(rows)] if len(parts) > 1 else parts[0][: len(rows)]
        if answers.is_cuda:
            torch.cuda.synchronize(answers.device)
        seconds = self._clock() - began
        return answers, None if is_first or size != bucket else seconds

    def _largest_good(self, key: Hashable, bucket: int) -> int:
        """Return the largest certified call size up to a bucket; the reference at least."""
        label = _label(key)
        sizes = [b for b in self._config.buckets if b <= bucket]
        good = [b for b in sizes if self._certificates.passed(key, label, b)]
        return max(good, default=REFERENCE)

    def _certify(
        self,
        model: Model,
        key: Hashable,
        bucket: int,
        rows: Rows,
        denoise: Callable[[Rows], Tensor],
    ) -> bool:
        """Try a call size that has not been tried; tell whether it was tried here."""
        label = _label(key)
        if self._certificates.is_tried(key, label, bucket):
            return False
        with span("certify", rows=bucket):
            self._certificates.prepare(key, label, model)
            self._certificates.try_bucket(
                key,
                label,
                bucket,
                model=model,
                call=denoise,
                rows=random_rows(rows, bucket),
            )
        return True

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the many ways of running out of memory into one."""
        try:
            yield
        except MemoryError as error:
            raise OutOfMemory(f"the machine ran out of memory: {error}") from error
        except RuntimeError as error:
            if any(mark in str(error).lower() for mark in _OUT_OF_MEMORY):
                raise OutOfMemory(f"the device ran out of memory: {error}") from error
            raise


def _operator(slot: Slot) -> Operator:
    assert slot.operator is not None  # noqa: S101 - only images with steps are stepped
    return slot.operator


def _solver(slot: Slot) -> NativeSolver | ForeignSolver:
    assert slot.solver is not None  # noqa: S101 - only images with steps are stepped
    return slot.solver


def _draw(plan: Plan, model: Model, generator: torch.Generator) -> Tensor:
    """Draw the starting noise; on a seed walk, between the noises of both ends."""
    noise = model.draw_latents(plan.size, generator)
    walk = plan.techniques.walk
    if walk is None or walk.mode == "prompt" or walk.to_seed is None:
        return noise
    end = model.draw_latents(plan.size, make_generator(walk.to_seed))
    return slerp(noise, end, walk.frame / (walk.frames - 1))


def _between(start: Conditioning, end: Conditioning, t: float) -> Conditioning:
    """Return the conditioning a part ``t`` of the way between two prompts, token by token."""
    if t in (0.0, 1.0):
        return end if t else start
    mixed = {
        name: slerp_embeddings(start[name], end[name], t)
        if start[name].is_floating_point() and not torch.equal(start[name], end[name])
        else start[name]
        for name in start
    }
    notes = tuple(dict.fromkeys((*start.notes, *end.notes)))
    return Conditioning(mixed, rows=start.rows, notes=notes)


def _step_of(slot: Slot) -> int:
    """Return the step, from 1, of a slot's next evaluation."""
    return slot.plan.steps[_solver(slot).position]


def _gather(slots: Sequence[Slot]) -> tuple[Rows, list[int], list[int]]:
    """Put the rows of all images under each other.

    Returns:
        The rows, the denoiser of each, and how many each image has.
    """
    latents: list[Tensor] = []
    sigmas: list[float] = []
    timesteps: list[float] = []
    conditionings: list[Conditioning] = []
    members: list[int] = []
    counts: list[int] = []
    for slot in slots:
        rows = _operator(slot).rows(_step_of(slot))
        solver = _solver(slot)
        counts.append(len(rows))
        conditionings += [row.conditioning for row in rows]
        members += [row.member for row in rows]
        latents += [solver.latents] * len(rows)
        sigmas += [solver.sigma] * len(rows)
        timesteps += [solver.timestep] * len(rows)
    device = latents[0].device
    stacked = Rows(
        torch.cat(latents),
        torch.tensor(sigmas, dtype=torch.float64, device=device),
        torch.tensor(timesteps, dtype=torch.float32, device=device),
        Conditioning.stack(conditionings),
    )
    return stacked, members, counts


def _shapes(slot: Slot) -> tuple[Any, ...]:
    """Return the shapes of a row's conditioning, for every denoiser that is asked."""
    if isinstance(slot.operator, Ensemble):
        rows = [member.rows(1)[0] for member in slot.operator.members]
        return tuple(shape for row in rows for shape in row.conditioning.shape_key)
    return slot.conditioning.shape_key


def _region_negatives(regions: Sequence[PlannedRegion]) -> list[str]:
    """Return the regions' own negative prompts, each once, in order."""
    return list(dict.fromkeys(r.negative_prompt for r in regions if r.negative_prompt))


def _region_mask(
    region: PlannedRegion, plan: Plan, assets: Mapping[str, Any], noise: Tensor
) -> Tensor:
    """Return where a region acts, softened in pixels. Shape (1, h, w)."""
    if region.box is not None:
        mask = box_mask(region.box, plan.size.height, plan.size.width)
    else:
        mask = torch.from_numpy(assets[region.mask or ""])
    rows, columns = noise.shape[-2:]
    return to_latent(soften(mask, region.feather), rows, columns).to(noise.device)


def _backend_notes(model: Model) -> list[str]:
    """Return what a backend could not take over."""
    return [n for network in model.networks.values() for n in getattr(network, "notes", ())]


def _pad(rows: Rows, size: int) -> Rows:
    """Fill a call up with copies of its first row."""
    missing = size - len(rows)
    return rows.pick([*range(len(rows)), *([0] * missing)]) if missing > 0 else rows


def _caller(model: Model) -> Callable[[Rows], Tensor]:
    """Return the network call of a model."""
    denoiser = model.denoiser
    assert denoiser is not None  # noqa: S101 - a GAN is never stepped

    def call(rows: Rows) -> Tensor:
        return denoiser(rows.latents, rows.sigma, rows.conditioning, timestep=rows.timestep)

    return call


def _find_faults(
    ids: Sequence[ImageId], slots: Sequence[Slot], moved: Sequence[Tensor | Exception]
) -> dict[ImageId, Exception]:
    """Find images whose state is not finite any more, or whose scheduler raised."""
    faults: dict[ImageId, Exception] = {}
    good = [k for k, move in enumerate(moved) if not isinstance(move, Exception)]
    for k, move in enumerate(moved):
        if isinstance(move, Exception):
            faults[ids[k]] = move
    flags = [torch.isfinite(move).all() for move in moved if isinstance(move, Tensor)]
    finite = torch.stack(flags).tolist() if flags else []
    for k, is_finite in zip(good, finite, strict=True):
        if not is_finite:
            step, name = _step_of(slots[k]), slots[k].plan.model
            faults[ids[k]] = WorkFailed(
                f"the model {name} answered values that are not finite at step {step}"
            )
    return faults


def _commit(slot: Slot, estimate: Tensor, move: Tensor | Exception) -> None:
    """Make a step that succeeded the state of its image."""
    assert isinstance(move, Tensor)  # noqa: S101 - faults were sorted out before
    solver = _solver(slot)
    solver.commit(move)
    slot.denoised = estimate
    if slot.inpainting is not None:
        solver.blend(slot.inpainting.apply(solver.latents, solver.sigma))
    if solver.is_done:
        slot.latents = solver.latents


def _batch_key(key: Hashable) -> tuple[Any, Any]:
    """Return what :meth:`Runner.encode` made; an ensemble's member stands behind it."""
    assert isinstance(key, tuple)  # noqa: S101 - made in encode()
    return key[0] if isinstance(key[1], int) else key


def _label(key: Hashable) -> str:
    """Name a batch key for people: model, size, tokens."""
    plan_key, shapes = _batch_key(key)
    shown = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)
    return f"{str(plan_key[0])[:12]} {plan_key[1]} ({shown})"


def _device_of(model: Model) -> torch.device:
    """Return where a model's networks compute."""
    for network in model.networks.values():
        if isinstance(network, TorchNetwork):
            return network.device
    return torch.device("cpu")


def _encode_picture(
    plan: Plan,
    model: Model,
    assets: Mapping[str, Any],
    generator: torch.Generator,
    device: torch.device,
) -> Tensor | None:
    """Return the clean latents of the start image. Shape (1, ...), or None without one."""
    digest = plan.techniques.image
    if digest is None:
        return None
    picture = torch.from_numpy(assets[digest])[None].to(device)
    return model.encode_image(picture, [generator]).float()


def _repaints_all(plan: Plan) -> bool:
    """Whether the repainted part starts from pure noise, as diffusers' inpainting does."""
    return plan.techniques.mask is not None and plan.techniques.strength == 1


def _keep_outside(
    plan: Plan, model: Model, assets: Mapping[str, Any], clean: Tensor | None, noise: Tensor
) -> Inpainting | None:
    """Return what stays outside the mask, or None without one."""
    digest = plan.techniques.mask
    if digest is None or clean is None:
        return None
    pixels = torch.from_numpy(assets[digest])[None, None].to(noise.device)
    mask = torch.nn.functional.interpolate(pixels, size=noise.shape[-2:], mode="area")
    return Inpainting(
        mask=mask, clean=clean, noise=noise, is_flow=model.spec.prediction_type == "flow"
    )
