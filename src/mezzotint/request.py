"""The generation request: what a user asked for, validated, nothing resolved.

One frozen dataclass and its parts. The same names serve Python, the command
line and native JSON; other dialects translate into them. ``None`` means "the
model's own"; the planner resolves it. Checks here need no model: types, ranges
that hold for every model, fields that exclude each other. Checks against a
model (multiples, limits, abilities) belong to the planner.

JSON names equal field names except ``from``, a Python keyword, which is the
field ``from_``. Pictures are base64 text in JSON and :class:`ImageInput` here.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.types import MAX_SEED, ImageInput, OutputFormat

__all__ = [
    "Control",
    "EnsembleMember",
    "GateSettings",
    "Gates",
    "GenerationRequest",
    "GuidanceSchedule",
    "LatentInput",
    "Lora",
    "Output",
    "Region",
    "Upscale",
    "Walk",
]

MAX_STEPS = 1000
MAX_IMAGES = 1024
MAX_SIDE_PX = 16384
MAX_TEXT = 32_000
MAX_GUIDANCE = 1000.0


def _check(
    name: str, value: float | None, low: float, high: float, *, unit: str = ""
) -> None:
    """Refuse a number outside [low, high], NaN and infinity included."""
    if value is None:
        return
    if not (math.isfinite(value) and low <= value <= high):
        allowed = f"{low:g} to {high:g}{unit}"
        raise InvalidRequest(
            f"{name} must be {allowed}, got {value}", field=name, value=value, allowed=allowed
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceSchedule:
    """A guidance scale that changes along the noise levels.

    Args:
        schedule: Shape of the curve.
        start: Scale at the first (noisiest) step.
        end: Scale at the last step; ``start`` if None.
        power: Exponent of ``"power"``, > 0.
        values: One scale per step, for ``"list"``.
        from_: Progress in [0, 1] at which ``"interval"`` switches on.
        until: Progress in [0, 1] at which ``"interval"`` switches off.
        rescale: Strength phi in [0, 1] of the standard-deviation rescale
            (arXiv:2305.08891, section 3.4); 0 is off.

    Scales follow ``uncond + scale * (cond - uncond)``; 1 is off.
    """

    schedule: Literal["constant", "linear", "cosine", "power", "interval", "list"] = "constant"
    start: float = 1.0
    end: float | None = None
    power: float = 1.0
    values: tuple[float, ...] = ()
    from_: float = 0.0
    until: float = 1.0
    rescale: float = 0.0

    def __post_init__(self) -> None:
        _check("guidance_scale.start", self.start, 0, MAX_GUIDANCE)
        _check("guidance_scale.end", self.end, 0, MAX_GUIDANCE)
        _check("guidance_scale.power", self.power, 1e-3, 100)
        _check("guidance_scale.from", self.from_, 0, 1)
        _check("guidance_scale.until", self.until, 0, 1)
        _check("guidance_scale.rescale", self.rescale, 0, 1)
        for position, value in enumerate(self.values):
            _check(f"guidance_scale.values[{position}]", value, 0, MAX_GUIDANCE)
        if (self.schedule == "list") != bool(self.values):
            raise InvalidRequest(
                'guidance_scale.values belongs to schedule "list" and is needed there, '
                f"got schedule {self.schedule!r} with {len(self.values)} values",
                field="guidance_scale.values",
            )
        if self.from_ > self.until:
            raise InvalidRequest(
                f"guidance_scale.from must not exceed until, got {self.from_} > {self.until}",
                field="guidance_scale.from",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """One ControlNet: its name, its picture, its strength, its part of the run."""

    model: str
    image: ImageInput
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    preprocess: str | None = None

    def __post_init__(self) -> None:
        _check("controls.scale", self.scale, 0, 10)
        _check("controls.start", self.start, 0, 1)
        _check("controls.end", self.end, 0, 1)
        if self.start > self.end:
            raise InvalidRequest(
                f"controls.start must not exceed controls.end, got {self.start} > {self.end}",
                field="controls.start",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """One LoRA for this request alone."""

    name: str
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check("loras.scale", self.scale, -10, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A prompt for part of the picture.

    Args:
        prompt: Text of the region.
        negative_prompt: Text to steer away from, in the region.
        mask: A picture whose brightness is the weight; or
        box: ``(x0, y0, x1, y1)`` as fractions of width and height.
        weight: Relative weight where regions overlap, > 0.
        feather: Width of the soft edge as a fraction of the shorter side.
        start: Progress at which the region begins to act.
        end: Progress at which it stops.
    """

    prompt: str
    negative_prompt: str = ""
    mask: ImageInput | None = None
    box: tuple[float, ...] | None = None
    weight: float = 1.0
    feather: float = 0.05
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check("regions.weight", self.weight, 1e-6, 1000)
        _check("regions.feather", self.feather, 0, 1)
        _check("regions.start", self.start, 0, 1)
        _check("regions.end", self.end, 0, 1)
        if (self.mask is None) == (self.box is None):
            raise InvalidRequest(
                "a region needs either mask or box, and not both", field="regions.box"
            )
        if self.box is not None:
            ok = len(self.box) == 4 and all(math.isfinite(v) and 0 <= v <= 1 for v in self.box)
            if not ok or not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
                raise InvalidRequest(
                    "regions.box must be [x0, y0, x1, y1] as fractions of the picture "
                    f"with x0 < x1 and y0 < y1, got {list(self.box)}",
                    field="regions.box",
                    value=list(self.box),
                    allowed="four numbers 0 to 1",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleMember:
    """One denoiser of an ensemble; ``weights`` has one weight per step."""

    model: str
    weight: float = 1.0
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check("ensemble.weight", self.weight, 0, 1000)
        for position, value in enumerate(self.weights):
            _check(f"ensemble.weights[{position}]", value, 0, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """A spherical interpolation from the request to another prompt or seed."""

    to: str | None = None
    frames: int = 8
    mode: Literal["prompt", "seed", "both"] = "prompt"
    to_seed: int | None = None

    def __post_init__(self) -> None:
        _check("walk.frames", self.frames, 2, MAX_IMAGES)
        _check("walk.to_seed", self.to_seed, 0, MAX_SEED)
        if self.mode in ("prompt", "both") and self.to is None:
            raise InvalidRequest(
                f'walk.to (the prompt to end at) is needed for mode "{self.mode}"', field="walk.to"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentInput:
    """Inputs of GANs and class-conditional models."""

    truncation: float = 1.0
    class_label: int | None = None

    def __post_init__(self) -> None:
        _check("latent.truncation", self.truncation, 0, 10)
        _check("latent.class_label", self.class_label, 0, 10_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """How one gate judges: its threshold, and what an error of the gate means."""

    threshold: float | None = None
    on_error: Literal["open", "closed"] = "closed"

    def __post_init__(self) -> None:
        _check("gates.threshold", self.threshold, -1e6, 1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The quality gates of a request, in order.

    In JSON the gates stand beside ``max_attempts`` and ``keep``:
    ``{"nsfw": {"threshold": 0.7}, "max_attempts": 3}``.
    """

    gates: tuple[tuple[str, GateSettings], ...] = ()
    max_attempts: int = 1
    keep: Literal["first_pass", "best"] = "first_pass"

    def __post_init__(self) -> None:
        _check("gates.max_attempts", self.max_attempts, 1, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscale:
    """Enlargement after decoding; ``model`` None is Lanczos."""

    factor: float = 2.0
    model: str | None = None

    def __post_init__(self) -> None:
        _check("upscale.factor", self.factor, 1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Encoding of the pictures; ``quality`` is for JPEG and WebP, 1 to 100."""

    format: OutputFormat = "png"
    quality: int = 90
    metadata: bool = True

    def __post_init__(self) -> None:
        _check("output.quality", self.quality, 1, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Everything a user can ask for; INTERFACE section 4 gives each meaning.

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
    guidance_scale: float | GuidanceSchedule | None = None
    image: ImageInput | None = None
    strength: float = 0.8
    mask: ImageInput | None = None
    controls: tuple[Control, ...] = ()
    loras: tuple[Lora, ...] = ()
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

    def __post_init__(self) -> None:
        _check("width", self.width, 1, MAX_SIDE_PX, unit=" px")
        _check("height", self.height, 1, MAX_SIDE_PX, unit=" px")
        _check("num_images", self.num_images, 1, MAX_IMAGES)
        _check("seed", self.seed, 0, MAX_SEED)
        _check("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS)
        if not isinstance(self.guidance_scale, GuidanceSchedule):
            _check("guidance_scale", self.guidance_scale, 0, MAX_GUIDANCE)
        _check("strength", self.strength, 0, 1)
        _check("priority", self.priority, -100, 100)
        _check("deadline_s", self.deadline_s, 0, 7 * 86400, unit=" s")
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > MAX_TEXT:
                raise InvalidRequest(
                    f"{name} must be at most {MAX_TEXT} characters, "
                    f"got {len(getattr(self, name))}",
                    field=name,
                    allowed=f"at most {MAX_TEXT} characters",
                )
        if not self.model:
            raise InvalidRequest("model must name a model, got an empty text", field="model")
        if self.mask is not None and self.image is None:
            raise InvalidRequest("mask needs image: inpainting repaints a picture", field="mask")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "GenerationRequest":
        """Read plain data (native JSON); the exact inverse of :meth:`to_dict`.

        Raises:
            UnknownName: If a field does not exist; names the nearest one.
            InvalidRequest: If a value has the wrong type or is out of range.
        """
        return _read(cls, data, "")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that JSON can hold; only fields that differ from the default."""
        return _write(self)

    def canonical(self) -> str:
        """Return the one JSON text that equal requests share: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def digest(self) -> str:
        """The sha256 of :meth:`canonical`, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()


def _json_name(name: str) -> str:
    return name.rstrip("_")


def _read(cls: Any, data: Any, path: str) -> Any:
    """Build the dataclass ``cls`` from a mapping, naming what is wrong by its path."""
    if not isinstance(data, Mapping):
        raise _wrong_type(path or "the request", data, "an object")
    entries = typing.cast(Mapping[Any, Any], data)
    if cls is Gates:
        return _read_gates(entries, path)
    hints = typing.get_type_hints(cls)
    fields = {_json_name(f.name): f.name for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in entries.items():
        if key not in fields:
            where = f"{path}.{key}" if path else str(key)
            raise UnknownName("field", str(where), fields, field=str(where))
        name = fields[key]
        values[name] = _convert(value, hints[name], f"{path}.{key}" if path else key)
    needed = [
        _json_name(f.name)
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
        and f.name not in values
    ]
    if needed:
        raise InvalidRequest(f"{path}.{needed[0]} is needed", field=f"{path}.{needed[0]}")
    try:
        return cls(**values)
    except InvalidRequest as error:
        if path and error.field and not error.field.startswith(path):
            error.field = f"{path}.{error.field.rpartition('.')[2]}"
        raise


def _read_gates(data: Mapping[str, Any], path: str) -> Gates:
    """Split the gates object into settings per gate and the two common fields."""
    common: dict[str, Any] = {}
    gates: list[tuple[str, GateSettings]] = []
    for key, value in data.items():
        if key == "max_attempts":
            common[key] = _convert(value, int, f"{path}.{key}")
        elif key == "keep":
            common[key] = _convert(value, Literal["first_pass", "best"], f"{path}.{key}")
        else:
            gates.append((str(key), _read(GateSettings, value, f"{path}.{key}")))
    return Gates(gates=tuple(gates), **common)


def _convert(value: Any, hint: Any, path: str) -> Any:
    """Convert a JSON value to the type of a field, or say what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if isinstance(value, Mapping):
            options = [a for a in options if dataclasses.is_dataclass(a)] or options
        else:
            options = [a for a in options if not _is_object(a)] or options
        return _convert(value, options[0], path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            listed = ", ".join(repr(a) for a in arguments)
            raise InvalidRequest(
                f"{path} must be one of {listed}, got {value!r}",
                field=path,
                value=value,
                allowed=listed,
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, value, "a list")
        items = typing.cast("list[Any]", value)
        return tuple(_convert(v, arguments[0], f"{path}[{k}]") for k, v in enumerate(items))
    if hint is ImageInput:
        if isinstance(value, ImageInput):
            return value
        if not isinstance(value, str):
            raise _wrong_type(path, value, "a picture as base64 text")
        return ImageInput.from_base64(value, field=path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _read(hint, value, path)  # type: ignore[arg-type]
    return _convert_scalar(value, hint, path)


def _is_object(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and hint is not ImageInput


def _convert_scalar(value: Any, hint: Any, path: str) -> Any:
    """Convert numbers, texts and booleans without guessing."""
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong_type(path, value, "true or false")
        return value
    if hint is int:
        if isinstance(value, str) and path.endswith("seed"):  # beyond 2**53, JSON needs text
            if not value.strip().isdecimal():
                raise _wrong_type(path, value, f"a whole number 0 to {MAX_SEED}")
            return int(value) if len(value.strip()) <= 20 else MAX_SEED + 1
        if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(path, value, "a whole number")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(path, value, "a number")
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if not isinstance(value, str):
        raise _wrong_type(path, value, "a text")
    return value


def _wrong_type(path: str, value: object, expected: str) -> InvalidRequest:
    got = "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
    return InvalidRequest(
        f"{path} must be {expected}, got {got}", field=path, value=str(value)[:80], allowed=expected
    )


def _write(value: Any) -> Any:
    """Turn dataclasses into plain data, leaving out what equals its default."""
    if isinstance(value, ImageInput):
        return value.to_base64()
    if isinstance(value, Gates):
        gates: dict[str, Any] = {name: _write(settings) for name, settings in value.gates}
        gates["max_attempts"], gates["keep"] = value.max_attempts, value.keep
        return gates
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result: dict[str, Any] = {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if f.default is dataclasses.MISSING or item != f.default:
                result[_json_name(f.name)] = _write(item)
        return result
    if isinstance(value, tuple):
        return [_write(v) for v in typing.cast("tuple[Any, ...]", value)]
    return value
