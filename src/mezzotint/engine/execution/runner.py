"""Runner: the executor. Owns every tensor, one slot per image.

Each step gathers the rows of all images of a batch, pads them to a certified
call size, calls the network once, lets each image make one estimate of its own
rows, and moves all images one evaluation down. Nothing is changed until the
whole step has succeeded, so a step that raises can be repeated image by image.

Dimensions: B images, R rows, C latent channels, h and w latent rows and columns.
"""

import contextlib
import time
import weakref
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.execution.certify import REFERENCE, Certificates, Rows
from mezzotint.engine.execution.filling import Filler, ModelSource, device_of
from mezzotint.engine.execution.lessons import Lessons
from mezzotint.engine.execution.operators import Ensemble, Operator
from mezzotint.engine.execution.reuse import estimate, remember, rows_of
from mezzotint.engine.execution.slots import Slot
from mezzotint.engine.execution.solving import (
    ForeignSolver,
    NativeSolver,
    advance_together,
)
from mezzotint.engine.execution.timing import Timer
from mezzotint.engine.learning import Learner
from mezzotint.engine.state import ImageId, StepBatch
from mezzotint.engine.step_engine import Decoded, Encoded, Worked
from mezzotint.errors import OutOfMemory, WorkFailed
from mezzotint.models.adapters.controlnet import CONTROL_SCALES
from mezzotint.models.backends.step_cache import StepCacheNetwork
from mezzotint.models.base import Conditioning, Model
from mezzotint.models.stepped_call import SteppedCall
from mezzotint.observe import metrics
from mezzotint.observe.spans import span
from mezzotint.planning.costs import CostTable
from mezzotint.planning.plan import Plan

__all__ = ["Runner"]

_GAN_ROWS = (1, 2, 4, 8, 16, 32, 64)
_DECODER_ROWS = (1, 2, 4, 8)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class _Line(NamedTuple):
    """One row of a network call: what it sees, how it is steered, and by which denoiser."""

    latents: Tensor
    sigma: float
    timestep: float
    conditioning: Conditioning
    member: int


class Runner:
    """Carries out what the step engine decided.

    Args:
        config: Limits.
        models: Where models come from.
        certificates: Which call sizes may be used.
        filler: Makes the tensors of an image; one of its own if None.
        clock: Seconds.
        costs: Where seconds of calls go that are timed while nobody waits.
        learner: Has call sizes tried while nobody waits; None tries few, for who waits.
        budget_bytes: Bytes that rows may take when sizes are tried; 0 is no bound.
    """

    def __init__(
        self,
        config: EngineConfig,
        models: ModelSource,
        *,
        certificates: Certificates,
        filler: Filler | None = None,
        clock: Callable[[], float] = time.perf_counter,
        costs: CostTable | None = None,
        learner: Learner | None = None,
        budget_bytes: int = 0,
    ) -> None:
        self._config = config
        self._models = models
        self._certificates = certificates
        self._clock = clock
        self._slots: dict[ImageId, Slot] = {}
        self._keys: dict[Hashable, ImageId] = {}
        self._stacked: tuple[tuple[Conditioning, ...], Conditioning] = ((), Conditioning())
        self._held: dict[ImageId, tuple[int, int]] = {}  # bytes of latents and conditioning
        self._held_bytes = [0, 0]
        # Models whose layers have the repairs that certificates of these keys rest on.
        self._prepared: weakref.WeakKeyDictionary[Model, set[Hashable]] = (
            weakref.WeakKeyDictionary()
        )
        self._decoded: weakref.WeakKeyDictionary[Model, set[int]] = weakref.WeakKeyDictionary()
        self._filler = filler or Filler(models, config.prompt_cache_bytes)
        self._lessons = Lessons(
            config, certificates, _caller, costs=costs, learner=learner, budget_bytes=budget_bytes
        )

    def encode(
        self, image: ImageId, plan: Plan, assets: Mapping[str, Any], *, client: str = ""
    ) -> Encoded:
        """Make an image's tensors; see :class:`~mezzotint.engine.step_engine.Executor`."""
        with span("encode", image=image.index), torch.no_grad(), self._translated():
            pin = contextlib.ExitStack()
            try:
                model = pin.enter_context(
                    self._models.use(plan.model, plan.techniques.adapters, turbo=plan.is_turbo)
                )
                owner = "" if self._config.share_results else client
                slot = self._filler.fill(plan, model, pin, assets, owner=owner)
            except BaseException:  # whatever it was, the model is let go of; it goes on
                pin.close()
                raise
            self._slots[image] = slot
            self._tell_held(image, slot)
        # A fast copy that has learnt more draws other pictures than the one before it.
        arithmetic = slot.model.notes if plan.is_turbo else ()
        key = ((*plan.batch_key, *arithmetic), _shapes(slot))
        self._keys[key] = image
        notes = (*slot.conditioning.notes, *_backend_notes(slot.model))
        return Encoded(key=key, warnings=tuple(dict.fromkeys(notes)))

    def step(self, batch: StepBatch) -> Worked:
        """Take one evaluation for every image of a batch."""
        slots = [self._slots[image] for image in batch.ids]
        if slots[0].run is not None:
            return self._resume(slots[0].run)
        with (
            span("denoise", rows=batch.bucket, images=len(slots)),
            torch.no_grad(),
            self._translated(),
        ):
            lines, counts = _gather(slots)
            answers, deep, seconds = self._ask(batch, slots[0], lines)
            parts = torch.split(answers, counts)
            features = torch.split(deep, counts) if deep is not None else (None,) * len(slots)
            levels = [_solver(slot).sigma for slot in slots]
            estimates = [
                estimate(slot, _operator(slot), _step_of(slot), part)
                for slot, part in zip(slots, parts, strict=True)
            ]
            moved = advance_together([_solver(slot) for slot in slots], estimates)
            faults = _find_faults(batch.ids, slots, moved)
            for k, (image, slot) in enumerate(zip(batch.ids, slots, strict=True)):
                if image not in faults:
                    _commit(slot, estimates[k], moved[k])
                    remember(slot, levels[k], parts[k], features[k])
        metrics.count("mezzotint_network_calls_total", model=slots[0].plan.model)
        metrics.measure("mezzotint_batch_rows", sum(counts), model=slots[0].plan.model)
        return Worked(faults=faults, seconds=seconds)

    def _resume(self, run: SteppedCall[Tensor]) -> Worked:
        """Let a pipeline that takes its own steps take one; it is always alone."""
        began = self._clock()
        with span("denoise", rows=1, images=1), self._translated():
            run.resume()
        return Worked(seconds=self._clock() - began)

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
            answers = [slot.latents[0] for slot in slots]
            drawn = [k for k, slot in enumerate(slots) if not slot.plan.ends_in_latents]
            if slots[0].run is not None:
                answers[0] = slots[0].run.finish()[0]
            elif drawn:
                self._rest_denoiser(slots[0].model, batch.ids)
                pictures = slots[0].model.decode(
                    torch.cat([slots[k].latents for k in drawn]),
                    Conditioning.stack([slots[k].conditioning for k in drawn]),
                    report=lambda row, text: notes.setdefault(drawn[row], []).append(text),
                )
                for k, picture in zip(drawn, pictures, strict=True):
                    answers[k] = picture
            arrays = [answer.float().cpu().numpy() for answer in answers]
            seconds = self._clock() - began
        model, rows = slots[0].model, len(drawn)
        is_measure = bool(drawn) and self._has_decoded(model, rows)
        if drawn and self._lessons.tell_drawn(
            model, rows=rows, seconds=seconds if is_measure else None, limit_s=batch.limit_s
        ):
            is_measure = False
        return Worked(
            decoded={
                image: Decoded(picture=arrays[k], warnings=tuple(notes.get(k, ())))
                for k, image in enumerate(batch.ids)
            },
            seconds=seconds if is_measure else None,
        )

    def _rest_denoiser(self, model: Model, drawn: Sequence[ImageId]) -> None:
        """Let a denoiser that nobody else waits for leave the memory to the decoder."""
        if all(slot.model is not model for i, slot in self._slots.items() if i not in drawn):
            rest = getattr(model.networks.get("denoiser"), "rest", None)
            if rest is not None:
                rest()

    def _has_decoded(self, model: Model, rows: int) -> bool:
        """Tell whether so many rows were decoded before: the first call compiles and certifies."""
        known = self._decoded.setdefault(model, set())
        is_known = rows in known
        known.add(rows)
        return is_known

    def preview(self, image: ImageId) -> Any:
        """Return a rough picture of the last estimate (float, (3, h, w)), or None."""
        slot = self._slots[image]
        if slot.denoised is None:
            return None
        with torch.no_grad():
            picture = slot.model.preview(slot.denoised)
            return None if picture is None else picture.numpy()

    def release(self, image: ImageId) -> None:
        """Free an image's tensors and let go of its model."""
        slot = self._slots.pop(image, None)
        if slot is not None:
            self._tell_held(image, None)
            self._stacked = ((), Conditioning())
            slot.pin.close()

    def _tell_held(self, image: ImageId, slot: Slot | None) -> None:
        """Publish how many images hold tensors, and how many bytes; one came, or went (None)."""
        metrics.set_to("mezzotint_running_images", len(self._slots))
        before = self._held.pop(image, (0, 0))
        held = (slot.latents.nbytes, slot.conditioning.num_bytes) if slot is not None else (0, 0)
        if slot is not None:
            self._held[image] = held
        for k, kind in enumerate(("latents", "conditioning")):
            self._held_bytes[k] += held[k] - before[k]
            metrics.set_to("mezzotint_memory_bytes", self._held_bytes[k], kind=kind, model="")

    def buckets(self, kind: str, key: Hashable) -> tuple[int, ...]:
        """Return the call sizes that may be used."""
        if kind == "decode":
            slot = self._slots.get(self._keys.get(key, ImageId("")))
            if slot is None or not slot.model.spec.stepwise:
                return (1,)
            if slot.operator is None:
                return _GAN_ROWS
            return (1,) if slot.plan.reproducibility == "exact" else _DECODER_ROWS
        slot = self._slots.get(self._keys.get(key, ImageId("")))
        if slot is not None and slot.run is not None:
            return (1,)
        if not self._must_certify(key):
            return self._config.buckets
        return self._certificates.allowed(key, _label(key), self._config.buckets)

    def _must_certify(self, key: Hashable) -> bool:
        """Whether rows have to come out bit for bit the same at every size."""
        return self._config.certify and _batch_key(key)[0][2] == "exact"

    def _ask(
        self, batch: StepBatch, slot: Slot, lines: Sequence[_Line]
    ) -> tuple[Tensor, Tensor | None, float | None]:
        """Ask every denoiser for its rows; see :meth:`_call`."""
        if len(slot.members) == 1:
            return self._call(slot.members[0], batch, self._stack(lines), slot.plan)
        answers: dict[int, Tensor] = {}
        for member, model in enumerate(slot.members):
            places = [k for k, line in enumerate(lines) if line.member == member]
            if not places:
                continue
            own = self._stack([lines[k] for k in places])
            own = replace(own, timestep=None)  # each looks up its own schedule
            asked = replace(
                batch,
                key=(batch.key, member),
                bucket=self._config.bucket(len(places)),
                wanted=batch.wanted * len(places) // len(lines),
            )
            part, _, _ = self._call(model, asked, own, slot.plan)
            answers.update(zip(places, torch.split(part, 1), strict=True))
        return torch.cat([answers[k] for k in range(len(lines))]), None, None

    def _stack(self, lines: Sequence[_Line]) -> Rows:
        """Put rows for one denoiser under each other.

        The same images mostly step together again: what they are conditioned on is
        stacked once and kept for the next step.
        """
        device = lines[0].latents.device
        asked = tuple(line.conditioning for line in lines)
        known, stacked = self._stacked
        if len(known) != len(asked) or any(a is not b for a, b in zip(known, asked, strict=True)):
            stacked = Conditioning.stack(asked)
            self._stacked = (asked, stacked)
        return Rows(
            torch.cat([line.latents for line in lines]),
            torch.tensor([line.sigma for line in lines], dtype=torch.float64, device=device),
            torch.tensor([line.timestep for line in lines], dtype=torch.float32, device=device),
            stacked,
        )

    def _call(
        self, model: Model, batch: StepBatch, rows: Rows, plan: Plan
    ) -> tuple[Tensor, Tensor | None, float | None]:
        """Call a network with all rows: in a call size that is certified, or just so many.

        Returns:
            The estimates, deep features for the next evaluation or None, and the
            seconds of the calls or None if they measure nothing.
        """
        denoise = _caller(model)
        key, size, is_exact = batch.key, batch.bucket, self._must_certify(batch.key)
        if is_exact:
            self._repair(model, key)
            size = self._largest_good(key, size)
        network = model.networks.get("denoiser")
        timer = Timer(device_of(model), self._clock)
        parts: list[Tensor] = []
        features: list[Tensor] = []
        for k in range(0, len(rows), size):
            part = rows
            if size < len(rows):
                part = rows.pick(list(range(k, min(k + size, len(rows)))))
            parts.append(denoise(_pad(part, size) if is_exact else part))
            deep = network.take_deep() if isinstance(network, StepCacheNetwork) else None
            features += [] if deep is None else [deep]
        answers = torch.cat(parts)[: len(rows)] if len(parts) > 1 else parts[0][: len(rows)]
        seconds = timer.stop() if _all_act(rows) else None
        deep = torch.cat(features) if features else None
        if is_exact and self._lessons.tell(
            key, _label(key), plan=plan, model=model, rows=rows, seconds=seconds,
            wanted=max(batch.wanted, len(rows)), limit_s=batch.limit_s,
        ):  # fmt: skip
            seconds = None
        return answers, deep, seconds

    def _largest_good(self, key: Hashable, bucket: int) -> int:
        """Return the largest certified call size up to a bucket; the reference at least."""
        label = _label(key)
        sizes = [b for b in self._config.buckets if b <= bucket]
        good = [b for b in sizes if self._certificates.passed(key, label, b)]
        return max(good, default=REFERENCE)

    def _repair(self, model: Model, key: Hashable) -> None:
        """Repeat the repairs of layers that certificates of an earlier process rest on."""
        if key not in self._prepared.setdefault(model, set()):
            self._prepared[model].add(key)
            self._certificates.prepare(key, _label(key), model)

    @contextlib.contextmanager
    def _translated(self) -> Generator[None]:
        """Turn the many ways of running out of memory into one."""
        try:
            yield
        except MemoryError as error:
            raise OutOfMemory(f"the machine ran out of memory: {error}") from error
        except RuntimeError as error:
            if any(mark in str(error).lower() for mark in _OUT_OF_MEMORY):
                raise OutOfMemory(f"the device ran out of memory: {error}") from error
            raise


def _all_act(rows: Rows) -> bool:
    """Whether every ControlNet of a call acts on every row, so that its time is typical."""
    scales = rows.conditioning.get(CONTROL_SCALES)
    return scales is None or bool((scales != 0).all())


def _operator(slot: Slot) -> Operator:
    assert slot.operator is not None  # noqa: S101 - only images with steps are stepped
    return slot.operator


def _solver(slot: Slot) -> NativeSolver | ForeignSolver:
    assert slot.solver is not None  # noqa: S101 - only images with steps are stepped
    return slot.solver


def _step_of(slot: Slot) -> int:
    """Return the step, from 1, of a slot's next evaluation."""
    return slot.plan.steps[_solver(slot).position]


def _gather(slots: Sequence[Slot]) -> tuple[list[_Line], list[int]]:
    """Return the rows of all images, and how many each image has."""
    lines: list[_Line] = []
    counts: list[int] = []
    for slot in slots:
        rows = rows_of(slot, _operator(slot), _step_of(slot))
        counts.append(len(rows))
        solver = _solver(slot)
        lines += [_Line(solver.latents, solver.sigma, solver.timestep, *row) for row in rows]
    return lines, counts


def _shapes(slot: Slot) -> tuple[Any, ...]:
    """Return the shapes of a row's conditioning, for every denoiser that is asked."""
    if isinstance(slot.operator, Ensemble):
        rows = [member.rows(1)[0] for member in slot.operator.members]
        return tuple(shape for row in rows for shape in row.conditioning.shape_key)
    return slot.conditioning.shape_key


def _backend_notes(model: Model) -> list[str]:
    """Return what a backend could not take over."""
    notes = [n for network in model.networks.values() for n in getattr(network, "notes", ())]
    return [*model.notes, *notes]


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
    finite = [bool(flag) for flag in torch.stack(flags).cpu().numpy()] if flags else []
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
    made = cast("tuple[Any, Any]", key)
    return made[0] if isinstance(made[1], int) else made


def _label(key: Hashable) -> str:
    """Name a batch key for people: model, size, tokens."""
    plan_key, shapes = _batch_key(key)
    shown = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes)
    return f"{str(plan_key[0])[:12]} {plan_key[1]} ({shown})"
