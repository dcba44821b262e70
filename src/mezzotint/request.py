"""The generation request: what a user asked for, validated, nothing resolved.

One frozen dataclass and its parts; those that describe a technique are written
in :mod:`mezzotint.techniques` and had from here. The same names serve Python,
the command line and native JSON; other dialects translate into them. ``None``
means "the model's own"; the planner resolves it. Checks here need no model:
types, ranges that hold for every model, fields that exclude each other. Checks
against a model (multiples, limits, abilities) belong to the planner.

JSON names equal field names except ``from``, a Python keyword, which is the
field ``from_``. Pictures are base64 text in JSON and :class:`ImageInput` here.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range, convert, read, write
from mezzotint.techniques import (
    Control,
    Embedding,
    EnsembleMember,
    GuidanceSchedule,
    Hires,
    ImagePrompt,
    Inpaint,
    Lora,
    Outpaint,
    Region,
    Variation,
    Walk,
)
from mezzotint.types import (
    MAX_ADAPTERS,
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MAX_TEXT,
    ImageInput,
    OutputFormat,
)

__all__ = [
    "Animation",
    "Control",
    "Embedding",
    "EnsembleMember",
    "GateSettings",
    "Gates",
    "GenerationRequest",
    "GuidanceSchedule",
    "Hires",
    "ImagePrompt",
    "Inpaint",
    "LatentInput",
    "Lora",
    "Outpaint",
    "Output",
    "Region",
    "Upscale",
    "Variation",
    "Walk",
]

MAX_PROMPT_IMAGES = 32
MAX_REGIONS = 64


def _check_count(field: str, count: int, most: int) -> None:
    """Refuse more of something than one request may hold."""
    if count > most:
        raise InvalidRequest(
            f"{field} must be at most {most}, got {count}",
            field=field,
            value=count,
            allowed=f"at most {most}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentInput(Checked):
    """Inputs of GANs and class-conditional models."""

    truncation: float = 1.0
    class_label: int | None = None

    def _validate(self) -> None:
        check_range("latent.truncation", self.truncation, 0, 10)
        check_range("latent.class_label", self.class_label, 0, 10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings(Checked):
    """How one gate judges.

    Args:
        threshold: Where the answer changes; the gate's own if None.
        on_error: What an error of the gate means.
        preview_at: Share of the steps, above 0 and below 1, at which a preview is judged
            too: an attempt that fails there is given up. None judges pictures only.
    """

    threshold: float | None = None
    on_error: Literal["open", "closed"] = "closed"
    preview_at: float | None = None

    def _validate(self) -> None:
        check_range("gates.threshold", self.threshold, -1e6, 1e6)
        check_range("gates.preview_at", self.preview_at, 0.01, 0.99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates(Checked):
    """The quality gates of a request, in order.

    In JSON the gates stand beside the common fields:
    ``{"nsfw": {"threshold": 0.7}, "max_attempts": 3}``.

    Args:
        gates: Name and settings, in order.
        max_attempts: Attempts at one image, at most.
        keep: The first that passes, or the best of all.
        budget_s: Seconds for the attempts at one image together; no further attempt
            begins that would exceed them. How many fit depends on the machine's load.
        budget_calls: Model calls for the attempts at one image together; the same
            everywhere.
    """

    gates: tuple[tuple[str, GateSettings], ...] = ()
    max_attempts: int = 1
    keep: Literal["first_pass", "best"] = "first_pass"
    budget_s: float | None = None
    budget_calls: int | None = None

    def _validate(self) -> None:
        check_range("gates.max_attempts", self.max_attempts, 1, 64)
        check_range("gates.budget_s", self.budget_s, 0, 7 * 86400, unit=" s")
        check_range("gates.budget_calls", self.budget_calls, 1, 10_000_000)

    @classmethod
    def from_plain(cls, data: Mapping[str, Any], path: str) -> "Gates":
        """Split the gates object into settings per gate and the common fields."""
        common: dict[str, Any] = {}
        gates: list[tuple[str, GateSettings]] = []
        for key, value in data.items():
            where = f"{path}.{key}"
            if key == "max_attempts":
                common[key] = convert(value, int, where)
            elif key == "keep":
                common[key] = convert(value, Literal["first_pass", "best"], where)
            elif key == "budget_s":
                common[key] = convert(value, float | None, where)
            elif key == "budget_calls":
                common[key] = convert(value, int | None, where)
            else:
                gates.append((str(key), convert(value, GateSettings, where)))
        return cls(gates=tuple(gates), **common)

    def to_plain(self) -> dict[str, Any]:
        """Return the gates in order, then the common fields."""
        gates: dict[str, Any] = {name: write(settings) for name, settings in self.gates}
        common: dict[str, Any] = {"max_attempts": self.max_attempts, "keep": self.keep}
        budgets = {"budget_s": self.budget_s, "budget_calls": self.budget_calls}
        return {**gates, **common, **{k: v for k, v in budgets.items() if v is not None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscale(Checked):
    """Enlargement after decoding.

    Args:
        factor: Of both sides.
        model: ``lanczos`` (also None), or ``real-esrgan`` where its weights are installed.
    """

    factor: float = 2.0
    model: str | None = None

    def _validate(self) -> None:
        check_range("upscale.factor", self.factor, 1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Animation(Checked):
    """The pictures of a walk as one moving file.

    Args:
        format: Kind of file; ``mp4`` needs the program ffmpeg.
        fps: Pictures a second.
        loop: Begin again, go there and back, or stop at the end. MP4 has no word for
            repeating: players decide.
    """

    format: Literal["webp", "gif", "apng", "mp4"] = "webp"
    fps: float = 8.0
    loop: Literal["forever", "pingpong", "once"] = "forever"

    def _validate(self) -> None:
        check_range("output.animation.fps", self.fps, 0.1, 120, unit=" 1/s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Checked):
    """Encoding of the pictures.

    Args:
        format: Of still pictures.
        quality: Of JPEG, WebP and MP4, 1 to 100.
        metadata: Whether the recipe goes into the file.
        animation: Make one moving file of a walk, in place of its pictures.
    """

    format: OutputFormat = "png"
    quality: int = 90
    metadata: bool = True
    animation: Animation | None = None

    def _validate(self) -> None:
        check_range("output.quality", self.quality, 1, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(Checked):
    """Everything a user can ask for.

    In Python ``guidance_scale`` may also be a function of progress (0 at the first step,
    1 at the last, see :class:`GuidanceSchedule`). It stays in this process: the recipe
    holds the scales it gave, and a request with one cannot be written as JSON.

    Raises:
        InvalidRequest: If a field is out of range or fields exclude each other.
    """

    model: str = "plate"
    prompt: str = ""
    negative_prompt: str = ""
    width: int | None = None
    height: int | None = None
    num_images: int = 1
    seed: int | None = None
    num_inference_steps: int | None = None
    scheduler: str | None = None
    sigma_schedule: str | None = None
    guidance_scale: float | GuidanceSchedule | Callable[[float], float] | None = None
    image: ImageInput | None = None
    strength: float = 0.8
    mask: ImageInput | None = None
    inpaint: Inpaint = Inpaint()
    outpaint: Outpaint | None = None
    variation: Variation | None = None
    tiling: bool = False
    hires: Hires | None = None
    controls: tuple[Control, ...] = ()
    loras: tuple[Lora, ...] = ()
    image_prompts: tuple[ImagePrompt, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    regions: tuple[Region, ...] = ()
    ensemble: tuple[EnsembleMember, ...] = ()
    walk: Walk | None = None
    latent: LatentInput = LatentInput()
    gates: Gates | None = None
    upscale: Upscale | None = None
    prompt_dialect: Literal["plain", "a1111", "comfyui", "compel"] = "plain"
    output: Output = Output()
    reproducibility: Literal["exact", "stable", "turbo"] = "exact"
    priority: int = 0
    deadline_s: float | None = None

    def _validate(self) -> None:
        check_range("width", self.width, 1, MAX_SIDE_PX, unit=" px")
        check_range("height", self.height, 1, MAX_SIDE_PX, unit=" px")
        check_range("num_images", self.num_images, 1, MAX_IMAGES)
        check_range("seed", self.seed, 0, MAX_SEED)
        check_range("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        if isinstance(self.guidance_scale, int | float):
            check_range("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        check_range("strength", self.strength, 0, 1)
        check_range("priority", self.priority, -100, 100)
        check_range("deadline_s", self.deadline_s, 0, 7 * 86400, unit=" s")
        for name in ("controls", "loras", "image_prompts", "embeddings", "ensemble"):
            _check_count(name, len(getattr(self, name)), MAX_ADAPTERS)
        _check_count("regions", len(self.regions), MAX_REGIONS)
        pictures = sum(len(prompt.images) for prompt in self.image_prompts)
        _check_count("image_prompts.images", pictures, MAX_PROMPT_IMAGES)
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > MAX_TEXT:
                raise InvalidRequest(
                    f"{name} must be at most {MAX_TEXT} characters, got {len(getattr(self, name))}",
                    field=name,
                    allowed=f"at most {MAX_TEXT} characters",
                )
        if not self.model:
            raise InvalidRequest("model must name a model, got an empty text", field="model")
        if self.mask is not None and self.image is None:
            raise InvalidRequest("mask needs image: inpainting repaints a picture", field="mask")
        if self.outpaint is not None and self.image is None:
            raise InvalidRequest("outpaint needs image: it goes on with one", field="outpaint")
        if self.hires is not None and self.image is not None:
            raise InvalidRequest(
                "hires cannot be used with image: set width and height for a larger picture",
                field="hires",
            )
        if self.hires is not None and self.has_function:
            raise InvalidRequest(
                "guidance_scale cannot be a function with hires: its two passes have steps of "
                "their own, which one list in the recipe cannot hold",
                field="guidance_scale",
            )
        if self.outpaint is not None and self.inpaint.area == "masked":
            raise InvalidRequest(
                "inpaint.area must be whole with outpaint: it works on the whole picture",
                field="inpaint.area",
                allowed="whole",
            )
        if self.output.animation is not None and self.walk is None:
            raise InvalidRequest(
                "output.animation needs walk: it shows the pictures of one",
                field="output.animation",
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GenerationRequest":
        """Read plain data (native JSON); the exact inverse of :meth:`to_dict`.

        Raises:
            UnknownName: If a field does not exist; names the nearest one.
            InvalidRequest: If a value has the wrong type or is out of range.
        """
        return read(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; only fields that differ from the default.

        Raises:
            InvalidRequest: If ``guidance_scale`` is a function, which JSON cannot hold.
        """
        if self.has_function:
            raise InvalidRequest(
                "guidance_scale is a Python function, which only this process can call; send "
                "GuidanceSchedule.from_function(function, num_steps) or a list of scales",
                field="guidance_scale",
                allowed="a number or a schedule",
            )
        return write(self)

    @property
    def has_function(self) -> bool:
        """Whether ``guidance_scale`` is a Python function."""
        return callable(self.guidance_scale)

    def canonical(self) -> str:
        """Return the one JSON text that equal requests share: fields in order, no spaces."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    @property
    def num_pictures(self) -> int:
        """Pictures that are drawn: those of a walk, or ``num_images``."""
        return self.walk.frames if self.walk else self.num_images

    @property
    def num_files(self) -> int:
        """Files that come back: one for an animation, else one per picture."""
        return 1 if self.output.animation else self.num_pictures

    @property
    def digest(self) -> str:
        """The sha256 of :meth:`canonical`, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()
