"""The generation request: what a user asked for, validated, nothing resolved.

One frozen dataclass and its parts; those that describe a technique are written
in :mod:`mezzotint.techniques.parts` and had from here. The same names serve Python,
the command line and native JSON; other dialects translate into them. ``None``
means "the model's own"; the planner resolves it. Checks here need no model:
types, ranges that hold for every model, fields that exclude each other. Checks
against a model (multiples, limits, abilities) belong to the planner.

JSON names equal field names except ``from``, a Python keyword, which is the
field ``from_``. Pictures are base64 text in JSON and :class:`ImageInput` here.
"""

import hashlib
import json
import marshal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

from mezzotint.bounds import Count, Length, Range
from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, convert, exchange, field_hints, read, write
from mezzotint.techniques.parts import (
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
from mezzotint.techniques.walking import Names, Pass
from mezzotint.types import (
    MAX_ADAPTERS,
    MAX_REFERENCES,
    MAX_SEED,
    GuidanceScale,
    ImageInput,
    NumImages,
    OutputFormat,
    PromptText,
    Seed,
    Share,
    Side,
    Steps,
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
ModelName = Annotated[str, Length(1, empty="must name a model, got an empty text"), Names("model")]
UpscaleFactor = Annotated[float, Range(1, 8)]


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentInput(Checked):
    """Inputs of GANs and class-conditional models.

    Args:
        truncation: Factor on the latent of a GAN; less than 1 is nearer to the mean picture.
        class_label: Number of the class; drawn from the seed if None.
    """

    where: ClassVar[str] = "latent"
    truncation: Annotated[float, Range(0, 10)] = 1.0
    class_label: Annotated[int, Range(0, 10_000_000)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings(Checked):
    """How one gate judges.

    Args:
        threshold: Where the answer changes; the gate's own if None.
        on_error: What an error of the gate means.
        preview_at: Share of the steps at which a preview is judged too: an attempt that
            fails there is given up. None judges pictures only.
    """

    where: ClassVar[str] = "gates"
    threshold: Annotated[float, Range(-1e6, 1e6)] | None = None
    on_error: Literal["open", "closed"] = "closed"
    preview_at: Annotated[float, Range(0.01, 0.99)] | None = None


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

    where: ClassVar[str] = "gates"
    gates: tuple[tuple[str, GateSettings], ...] = ()
    max_attempts: Annotated[int, Range(1, 64)] = 1
    keep: Literal["first_pass", "best"] = "first_pass"
    budget_s: Annotated[float, Range(0, 7 * 86400, "s")] | None = None
    budget_calls: Annotated[int, Range(1, 10_000_000)] | None = None

    @classmethod
    def from_plain(cls, data: Mapping[str, Any], path: str) -> "Gates":
        """Split the gates object into settings per gate and the common fields."""
        hints = field_hints(cls)
        common: dict[str, Any] = {}
        gates: list[tuple[str, GateSettings]] = []
        for key, value in data.items():
            where = f"{path}.{key}"
            if key in hints and key != "gates":
                common[key] = convert(value, hints[key], where)
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

    where: ClassVar[str] = "upscale"
    factor: UpscaleFactor = 2.0
    model: Annotated[str, Names("upscaler")] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Animation(Checked):
    """The pictures of a walk as one moving file.

    Args:
        format: Kind of file; ``mp4`` needs the program ffmpeg.
        fps: Pictures a second.
        loop: Begin again, go there and back, or stop at the end. MP4 has no word for
            repeating: players decide.
    """

    where: ClassVar[str] = "output.animation"
    format: Literal["webp", "gif", "apng", "mp4"] = "webp"
    fps: Annotated[float, Range(0.1, 120, "1/s")] = 8.0
    loop: Literal["forever", "pingpong", "once"] = "forever"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output(Checked):
    """Encoding of the pictures.

    Args:
        format: Of still pictures.
        quality: Of JPEG, WebP and MP4.
        metadata: Whether the recipe goes into the file.
        sign: Whether the file is signed with the key of whoever draws it
            (``images.signing_key``); needs ``metadata``.
        animation: Make one moving file of a walk, in place of its pictures.
    """

    where: ClassVar[str] = "output"
    format: OutputFormat = "png"
    quality: Annotated[int, Range(1, 100)] = 90
    metadata: bool = True
    sign: bool = False
    animation: Animation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest(Checked):
    """Everything a user can ask for.

    Args:
        model: Name in the store, ``name@version``, or a path.
        prompt: What to draw.
        negative_prompt: What to steer away from.
        width: Pixels; the model's own if None.
        height: Pixels; the model's own if None.
        num_images: Pictures; picture k has the seed ``seed + k``.
        seed: Of the first picture's noise; drawn and reported if None.
        num_inference_steps: Solver steps; the model's own if None.
        scheduler: Noise scheduler by name or diffusers class; the model's own if None.
        sigma_schedule: Spacing of the noise levels; the scheduler's own if None.
        guidance_scale: How strictly the prompt is followed, 1 is off; a number or a
            curve; the model's own if None.
        image: Picture to begin from.
        strength: Share of the steps that are run on ``image``.
        mask: Picture that is white where ``image`` is repainted.
        image_references: Pictures that an edit model changes or draws from, in order.
        inpaint: How the masked part is repainted.
        outpaint: Pixels to add around ``image``.
        variation: Noise a part of the way to another seed's.
        tiling: Whether opposite edges of the picture meet.
        hires: A second, larger pass.
        controls: ControlNets and their pictures.
        loras: LoRAs for this request alone.
        image_prompts: Pictures that speak beside the text.
        embeddings: Words whose meaning was learnt.
        regions: Prompts for parts of the picture.
        ensemble: Several denoisers as one.
        walk: An interpolation to another prompt or seed.
        latent: Inputs of GANs and class-conditional models.
        gates: Quality gates, in order.
        upscale: Enlargement after decoding.
        prompt_dialect: How weights in the text are read.
        output: Encoding of the pictures.
        reproducibility: What may differ between two runs.
        priority: Greater goes first.
        deadline_s: Seconds after which nobody waits any more; no deadline if None.

    In Python ``guidance_scale`` may also be a function of progress (0 at the first step,
    1 at the last, see :class:`GuidanceSchedule`). It stays in this process: the recipe
    holds the scales it gave, and a request with one cannot be written as JSON.

    Raises:
        InvalidRequest: If a field is out of range or fields exclude each other.
    """

    model: ModelName = "plate"
    prompt: PromptText = ""
    negative_prompt: PromptText = ""
    width: Side | None = None
    height: Side | None = None
    num_images: NumImages = 1
    seed: Seed | None = None
    num_inference_steps: Steps | None = None
    scheduler: str | None = None
    sigma_schedule: str | None = None
    guidance_scale: GuidanceScale | GuidanceSchedule | Callable[[float], float] | None = None
    image: ImageInput | None = None
    strength: Share = 0.8
    mask: ImageInput | None = None
    image_references: Annotated[tuple[ImageInput, ...], Count(0, MAX_REFERENCES)] = ()
    inpaint: Inpaint = Inpaint()
    outpaint: Outpaint | None = None
    variation: Variation | None = None
    tiling: bool = False
    hires: Hires | None = None
    controls: Annotated[tuple[Control, ...], Count(0, MAX_ADAPTERS)] = ()
    loras: Annotated[tuple[Lora, ...], Count(0, MAX_ADAPTERS)] = ()
    image_prompts: Annotated[tuple[ImagePrompt, ...], Count(0, MAX_ADAPTERS)] = ()
    embeddings: Annotated[tuple[Embedding, ...], Count(0, MAX_ADAPTERS)] = ()
    regions: Annotated[tuple[Region, ...], Count(0, 64)] = ()
    ensemble: Annotated[tuple[EnsembleMember, ...], Count(0, MAX_ADAPTERS)] = ()
    walk: Walk | None = None
    latent: LatentInput = LatentInput()
    gates: Gates | None = None
    upscale: Upscale | None = None
    prompt_dialect: Literal["plain", "a1111", "comfyui", "compel"] = "plain"
    output: Output = Output()
    reproducibility: Literal["exact", "stable", "turbo"] = "exact"
    priority: Annotated[int, Range(-100, 100)] = 0
    deadline_s: Annotated[float, Range(0, 7 * 86400, "s")] | None = None

    def _validate(self) -> None:
        pictures = sum(len(prompt.images) for prompt in self.image_prompts)
        if pictures > MAX_PROMPT_IMAGES:
            raise InvalidRequest(
                f"image_prompts must hold at most {MAX_PROMPT_IMAGES} pictures together, "
                f"got {pictures}",
                field="image_prompts.images",
                value=pictures,
                allowed=f"at most {MAX_PROMPT_IMAGES}",
            )
        if self.mask is not None and self.image is None:
            raise InvalidRequest("mask needs image: inpainting repaints a picture", field="mask")
        if self.outpaint is not None and self.image is None:
            raise InvalidRequest("outpaint needs image: it goes on with one", field="outpaint")
        if self.image_references and self.image is not None:
            raise InvalidRequest(
                "image_references cannot be used with image: a model either edits pictures or "
                "begins from one",
                field="image_references",
            )
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
        key = _key_without_seed(data)
        known = _WORDLESS.get(key) if key else None
        if known is not None:
            return exchange(known, seed=data["seed"])
        request = read(cls, data)
        if key:
            if len(_WORDLESS) >= _MOST_WORDLESS:
                _WORDLESS.clear()
            _WORDLESS[key] = request
        return request

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

    def passes(self) -> tuple[Pass, ...]:
        """Return the passes over one picture, in order; what the model decides is None."""
        first = Pass(self.num_inference_steps, self.width, self.height)
        hires = self.hires
        if hires is None:
            return (first,)
        second = Pass(
            hires.num_inference_steps,
            hires.width or (self.width and self.width * hires.scale),
            hires.height or (self.height and self.height * hires.scale),
            steps_field="hires.num_inference_steps",
            size_field="hires.width" if hires.width else "hires.scale",
        )
        return (first, second)

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


_WORDLESS: dict[bytes, GenerationRequest] = {}
"""Requests without words that were read, by their plain data without the seed: behind a
server a GAN is asked for the same again and again with another seed."""
_FIELDS = frozenset(
    ("model", "seed", "width", "height", "num_images", "latent", "output", "reproducibility")
)
"""Those that hold no words: how fast they are read must not tell what others wrote."""
_MOST_WORDLESS = 256
_LONGEST_KEY = 1024


def _key_without_seed(data: Any) -> bytes:
    """Return plain data without its seed as bytes, b"" where it is read each time.

    Marshal takes nothing but plain data, and tells 1, 1.0 and True from each other.
    """
    if type(data) is not dict or not data.keys() <= _FIELDS:
        return b""
    plain = cast(dict[str, Any], data)
    seed = plain.get("seed")
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        return b""
    try:
        key = marshal.dumps({k: v for k, v in plain.items() if k != "seed"}, 2)
    except ValueError:
        return b""
    return key if len(key) <= _LONGEST_KEY else b""
