"""Plan: one image with everything resolved, before any tensor exists.

All defaults, clamps, seeds and refusals happen here, against the model's spec.
A plan can be printed, priced, cached and replayed. Two equal plans make the
same picture, and the digest of a plan covers every field by construction, so
nothing that changes a picture can be forgotten in a cache key.

Parts of the request that describe a technique stay in the plan as they are, their
defaults resolved; digests of the pictures and files that they name stand beside them.
"""

import dataclasses
import hashlib
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from mezzotint.plain import field_names
from mezzotint.request import (
    Control,
    Embedding,
    EnsembleMember,
    ImagePrompt,
    Inpaint,
    Lora,
    Outpaint,
    Output,
    Region,
    Upscale,
    Variation,
    Walk,
)
from mezzotint.types import MAX_SEED, ImageInput, Size

__all__ = [
    "ENLARGED",
    "OUTSIDE",
    "Adapters",
    "BatchKey",
    "Plan",
    "Planned",
    "Resolved",
    "Techniques",
    "WalkPosition",
    "image_seed",
]

SCHEMA = 2
"""Goes into every digest; raised when the same plan means another picture."""

OUTSIDE = "outside"
"""Stands for the mask of an outpainting: the pixels that were added."""

ENLARGED = "enlarged"
"""Stands for the picture that a second pass starts from: what the first one drew."""

_SEED = secrets.token_hex(16)
"""Stands for the seed while a plan is spelt: no prompt of anybody holds it."""

BatchKey = tuple[Any, ...]

Part_co = TypeVar("Part_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(Generic[Part_co]):
    """A part of a request with the digests of what it names and shows.

    Args:
        part: The request's own, its defaults resolved.
        digest: Content of the model, adapter or upscaler that it names; "" if it names none.
        pictures: Digests of its pictures, in the order of its fields.
    """

    part: Part_co
    digest: str = ""
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What is put on a model for some requests, by name and content.

    Scales and ranges are left out: images that differ in them share calls.

    Args:
        embeddings: (name, digest, token) of textual inversions.
        image_prompts: (name, digest) of IP-Adapters.
        loras: (name, digest) of LoRAs.
        controls: (name, digest) of ControlNets.
    """

    embeddings: tuple[tuple[str, str, str], ...] = ()
    image_prompts: tuple[tuple[str, str], ...] = ()
    loras: tuple[tuple[str, str], ...] = ()
    controls: tuple[tuple[str, str], ...] = ()

    @property
    def networks(self) -> tuple[str, ...]:
        """Digests of those that add calls or layers to a network."""
        return tuple(digest for _, digest in (*self.image_prompts, *self.loras, *self.controls))

    def __bool__(self) -> bool:
        return bool(self.embeddings or self.image_prompts or self.loras or self.controls)


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkPosition:
    """Where on a walk the image stands; ``frame`` 0 is the start, ``frames - 1`` the end."""

    frame: int
    walk: Walk

    @property
    def share(self) -> float:
        """Part of the way that lies behind it, 0 to 1."""
        return self.frame / (self.walk.frames - 1)


@dataclass(frozen=True, kw_only=True)
class Techniques:
    """What goes beyond prompt, seed and steps.

    Args:
        image: Digest of the picture to start from.
        strength: Share of the steps that are run on ``image``; 1 without one.
        mask: Digest of the mask of the part to repaint.
        image_references: Digests of the pictures that an edit model is handed, in order.
        controls: ControlNets.
        loras: LoRAs of this image alone.
        image_prompts: IP-Adapters and their pictures.
        embeddings: Textual inversions.
        regions: Regional prompts.
        ensemble: Denoisers that answer together, with one weight for each step; at each
            the weights add up to 1.
        walk: Position on a walk.
        guidance_rescale: Strength phi of the standard-deviation rescale.
        distilled_guidance: Guidance that the network takes as an input.
        truncation: Truncation psi of a GAN.
        class_label: Class of a class-conditional model.
        upscale: The enlargement after decoding.
        inpaint: How the mask is read and what comes of it; None without a mask.
        outpaint: Pixels added on each side.
        variation: Another seed's share of the noise, the seed resolved.
        tiling: Whether the picture's edges meet: circular padding in every convolution.
        upscaler: Of a second pass: what enlarged the first for it, a name and its digest.
        first_steps: Of a second pass: the steps of the first, from which edits of a
            prompt count on.
    """

    image: str | None = None
    strength: float = 1.0
    mask: str | None = None
    image_references: tuple[str, ...] = ()
    controls: tuple[Resolved[Control], ...] = ()
    loras: tuple[Resolved[Lora], ...] = ()
    image_prompts: tuple[Resolved[ImagePrompt], ...] = ()
    embeddings: tuple[Resolved[Embedding], ...] = ()
    regions: tuple[Resolved[Region], ...] = ()
    ensemble: tuple[Resolved[EnsembleMember], ...] = ()
    walk: WalkPosition | None = None
    guidance_rescale: float = 0.0
    distilled_guidance: float | None = None
    truncation: float = 1.0
    class_label: int | None = None
    upscale: Resolved[Upscale] | None = None
    inpaint: Inpaint | None = None
    outpaint: Outpaint | None = None
    variation: Variation | None = None
    tiling: bool = False
    upscaler: tuple[str, str] = ("", "")
    first_steps: int = 0

    @cached_property
    def worn_loras(self) -> tuple[Resolved[Lora], ...]:
        """The LoRAs that change something: one of scale 0 is not there for any network."""
        return tuple(lora for lora in self.loras if lora.part.scale)

    @cached_property
    def adapters(self) -> Adapters:
        """What has to be put on the model."""
        return Adapters(
            embeddings=tuple((e.part.name, e.digest, e.part.token or "") for e in self.embeddings),
            image_prompts=tuple((p.part.model, p.digest) for p in self.image_prompts),
            loras=tuple((lora.part.name, lora.digest) for lora in self.worn_loras),
            controls=tuple((control.part.model, control.digest) for control in self.controls),
        )

    def active_regions(self, step: int, num_steps: int) -> list[Region]:
        """Return the regions that act at a step, from 1."""
        progress = (step - 1) / max(num_steps - 1, 1)
        return [r.part for r in self.regions if r.part.start <= progress <= r.part.end]

    def prompt_rows(self, step: int, num_steps: int) -> int:
        """Return the rows with a prompt at a step, from 1: base and regions, per denoiser."""
        members = sum(member.part.weights[step - 1] != 0 for member in self.ensemble)
        return (1 + len(self.active_regions(step, num_steps))) * max(members, 1)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One image, everything resolved.

    Args:
        model: Name of the model.
        model_digest: Content of the model.
        environment: Device, dtype and versions that arithmetic depends on.
        prompt: Text; "" where the model takes none.
        negative_prompt: Text of the unconditional rows; "" where there are none.
        prompt_dialect: How weights in the text are read.
        size: Pixels.
        seed: Seed of this image.
        num_inference_steps: Steps of the whole schedule (0 for a GAN).
        scheduler: Name of the scheduler.
        sigma_schedule: Name of the sigma schedule, or None for the scheduler's own.
        steps: For each network evaluation the step it belongs to, from 1, counted
            from the first step that is run.
        rows: For each network evaluation how many rows the image sends.
        guidance: Guidance scale of each step that is run.
        techniques: What goes beyond these.
        output: Encoding of this picture.
        reproducibility: ``exact``, ``stable`` or ``turbo``.
        reused: For each evaluation whether it reuses what the one before found; () for
            none does.
        shortcuts: What ``turbo`` gives up, one phrase each.
        second: The pass over the enlarged picture, or None.
    """

    model: str
    model_digest: str
    environment: str
    prompt: str
    negative_prompt: str
    prompt_dialect: str
    size: Size
    seed: int
    num_inference_steps: int
    scheduler: str
    sigma_schedule: str | None
    steps: tuple[int, ...]
    rows: tuple[int, ...]
    guidance: tuple[float, ...]
    techniques: Techniques
    output: Output
    reproducibility: str
    reused: tuple[bool, ...] = ()
    shortcuts: tuple[str, ...] = ()
    second: "Plan | None" = None

    @cached_property
    def cost_name(self) -> str:
        """Under what times of such plans are kept: model, adapters, size."""
        return self.cost_name_of(self.model_digest)

    def cost_name_of(self, digest: str) -> str:
        """Return under what times are kept of another model that takes part."""
        t = self.techniques
        worn = "".join(f"+{adapter[:8]}" for adapter in t.adapters.networks)
        tiled = " tiled" if t.tiling else ""  # another way through the network
        return f"{digest[:16]}{worn} {self.size} {self.reproducibility}{tiled}"

    @cached_property
    def batch_key(self) -> BatchKey:
        """What changes the forward pass; the conditioning's shape joins it after encoding."""
        t = self.techniques
        return (
            self.model_digest,
            self.size,
            self.reproducibility,
            self.shortcuts,
            t.adapters.loras,
            t.adapters.controls,
            tuple(member.digest for member in t.ensemble),
            t.tiling,
            t.adapters.image_prompts,
        )

    @property
    def models(self) -> frozenset[str]:
        """Digests of the models that draw it."""
        return frozenset({self.model_digest, *(m.digest for m in self.techniques.ensemble)})

    @property
    def is_alone(self) -> bool:
        """Whether a pipeline that runs whole takes its steps: one picture at a time."""
        return bool(self.rows) and not self.scheduler

    @property
    def is_turbo(self) -> bool:
        """Whether the fast copy of the model draws it."""
        return bool(self.shortcuts)

    @property
    def model_calls(self) -> int:
        """Rows that networks compute for this image: exact, known before it runs."""
        own = sum(self.rows) + self._own_control_calls
        return (own or 1) + (self.second.model_calls if self.second else 0)

    @property
    def ends_in_latents(self) -> bool:
        """Whether a second pass takes this one's latents, so that nothing is decoded."""
        return self.second is not None and self.second.techniques.upscaler[0] == "latent"

    @property
    def all_steps(self) -> int:
        """Steps that are run in all passes."""
        return self.num_steps + (self.second.num_steps if self.second else 0)

    def with_seed(self, seed: int) -> "Plan":
        """Return the same plan with another seed, in all its passes.

        What was found out about this plan and does not depend on its seed holds for the other.
        """
        other = object.__new__(Plan)
        vars(other).update(vars(self), seed=seed)
        if self.second is not None:
            vars(other).update(second=self.second.with_seed(seed))
            for name in ("spelling", "description"):
                vars(other).pop(name, None)
        for name in ("canonical", "digest"):
            vars(other).pop(name, None)
        return other

    @property
    def control_calls(self) -> int:
        """Rows that ControlNets compute in all passes, part of :attr:`model_calls`."""
        return self._own_control_calls + (self.second.control_calls if self.second else 0)

    @property
    def _own_control_calls(self) -> int:
        """Rows that ControlNets compute in this pass."""
        return sum(self.control_rows(k) for k in range(len(self.rows)))

    def control_rows(self, evaluation: int) -> int:
        """Return the rows that ControlNets compute at a network evaluation, from 0."""
        if not self.techniques.controls:
            return 0
        step, rows = self.steps[evaluation], self.rows[evaluation]
        guessed = min(rows, self.techniques.prompt_rows(step, self.num_steps))
        active = [
            c.part for c in self.techniques.controls if c.part.is_active(step, self.num_steps)
        ]
        return sum(guessed if part.guess else rows for part in active)

    @property
    def num_steps(self) -> int:
        """Steps that are run; fewer than ``num_inference_steps`` on a start image."""
        return len(self.guidance)

    @property
    def skipped_steps(self) -> int:
        """Steps at the noisy end of the schedule that a start image leaves out."""
        return self.num_inference_steps - self.num_steps

    @cached_property
    def spelling(self) -> tuple[str, ...]:
        """The parts of :attr:`canonical` between which the seed stands."""
        plain = {"schema": SCHEMA, **to_plain(self), "seed": _SEED}
        text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
        return tuple(text.split(f'"{_SEED}"'))

    @cached_property
    def canonical(self) -> str:
        """The one JSON text of this plan; every field is in it by construction."""
        return str(self.seed).join(self.spelling)

    @cached_property
    def digest(self) -> str:
        """The sha256 of :attr:`canonical`, 64 hex digits: the key of the result cache."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data for people, logs and answers."""
        return {**_copied(self.description), "seed": self.seed}

    @cached_property
    def description(self) -> dict[str, Any]:
        """What :meth:`describe` returns, apart from the seed in its place; not to be changed."""
        plain = to_plain(self)
        plain["model_calls"] = self.model_calls
        if self.techniques.controls:
            plain["control_calls"] = self.control_calls
        scales = set(self.guidance)
        plain["guidance_scale"] = scales.pop() if len(scales) == 1 else list(self.guidance)
        plain["width"], plain["height"] = self.size
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What planning a request gave: one plan per image, and what was changed."""

    plans: tuple[Plan, ...]
    warnings: tuple[str, ...] = ()


def to_plain(value: Any) -> Any:
    """Turn nested dataclasses and tuples into plain data, every field included.

    Fields that came later are left out while they are empty: a plan without them keeps
    the digest that it had.
    """
    kind = cast("type[Any]", type(value))
    if kind in _LEAVES:
        return value
    if kind in _SPELLINGS:
        return to_plain(_SPELLINGS[kind](value))
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if dataclasses.is_dataclass(kind):
        plain = {name: to_plain(getattr(value, name)) for name in field_names(kind)}
        return {k: v for k, v in plain.items() if v or k not in _LATER}
    return value


def _copied(value: Any) -> Any:
    """Return plain data again, nothing of which is shared."""
    if type(value) is dict:
        return {name: _copied(item) for name, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return [_copied(item) for item in value] if type(value) is list else value  # pyright: ignore


def _spell_resolved(resolved: Resolved[Any]) -> Any:
    """Spell a part by its fields: pictures by their digests, its own digest in second place."""
    part, pictures = resolved.part, list(resolved.pictures)
    if isinstance(part, Upscale):
        return (part.factor, part.model or "lanczos", resolved.digest)
    fields: dict[str, Any] = {}
    for name in field_names(cast("type[Any]", type(part))):
        value = getattr(part, name)
        if isinstance(value, ImageInput):
            value = pictures.pop(0)
        elif name == "images":
            value = resolved.pictures
        if (type(part), name) != (EnsembleMember, "weight"):  # its weights are one a step
            fields[name] = value
        if resolved.digest and len(fields) == 1:
            fields["digest"] = resolved.digest
    return fields


def _spell_walk(position: WalkPosition) -> dict[str, Any]:
    walk = position.walk
    return {"frame": position.frame} | {
        name: getattr(walk, name) for name in ("frames", "mode", "to", "to_seed", "space")
    }


def _spell_variation(variation: Variation) -> dict[str, Any]:
    size = variation.noise_size
    return {"seed": variation.seed, "strength": variation.strength, "noise_size": size}


_SPELLINGS: dict[type, Callable[[Any], Any]] = {
    Resolved: _spell_resolved,
    WalkPosition: _spell_walk,
    Variation: _spell_variation,
    Outpaint: lambda out: (out.left, out.top, out.right, out.bottom),
    Output: lambda output: (output.format, output.quality, output.metadata, output.sign),
}
"""How parts stand in the text of a plan where not by their fields: digests depend on it."""


_LATER = frozenset(("image_references",))
_LEAVES = frozenset((str, int, float, bool, type(None)))


def image_seed(seed: int, index: int) -> int:
    """Return the seed of image ``index``: seeds count up and wrap at 2**64."""
    return (seed + index) % (MAX_SEED + 1)
