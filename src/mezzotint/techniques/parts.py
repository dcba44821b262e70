"""Techniques: the parts of a request that ask for more than a prompt and a size.

How guidance changes, which adapters act, what is composed, and what becomes of a
picture that came along. Checks here need no model, as in :mod:`mezzotint.request`,
which gives these names to everybody else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from mezzotint.bounds import Count, Length, Pattern, Range
from mezzotint.errors import InvalidRequest
from mezzotint.plain import Checked, check_range
from mezzotint.preprocessing import Preprocess
from mezzotint.techniques.walking import Names
from mezzotint.types import (
    MAX_ADAPTERS,
    MAX_IMAGES,
    MAX_SIDE_PX,
    MAX_STEPS,
    GuidanceScale,
    ImageInput,
    PromptText,
    Seed,
    Share,
    Size,
    Steps,
)

__all__ = [
    "Control",
    "Embedding",
    "EnsembleMember",
    "GuidanceSchedule",
    "Hires",
    "ImagePrompt",
    "Inpaint",
    "Lora",
    "Outpaint",
    "Region",
    "Variation",
    "Walk",
]

Box = Annotated[tuple[Share, ...], Count(4, 4, "numbers (x0, y0, x1, y1)")]
"""``(x0, y0, x1, y1)`` as fractions of width and height."""
MaskBlur = Annotated[float, Range(0, 512, "px")]
MaskPadding = Annotated[int, Range(0, 4096, "px")]
HiresScale = Annotated[float, Range(1, 8)]
ControlScale = Annotated[float, Range(0, 10)]
ControlMode = Annotated[int, Range(0, 99)]
Margin = Annotated[int, Range(0, 8192, "px")]
_Side = Annotated[int, Range(1, MAX_SIDE_PX, "px")]  # held to no limit of its own at a server
_VISIBLE = r"[^\s\x1c-\x1f\x85\u180e\ufeff]"  # what Python and JavaScript call white space


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidanceSchedule(Checked):
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

    Scales follow ``uncond + scale * (cond - uncond)``; 1 is off. Progress is 0 at the
    first step, 1 at the last, and goes with the logarithm of the noise level in
    between, so a curve does not depend on the number of steps or their spacing.
    """

    schedule: Literal["constant", "linear", "cosine", "power", "interval", "list"] = "constant"
    where: ClassVar[str] = "guidance_scale"
    any_of: ClassVar[tuple[str, ...]] = ("schedule", "start")
    start: GuidanceScale = 1.0
    end: GuidanceScale | None = None
    power: Annotated[float, Range(1e-3, 100)] = 1.0
    values: tuple[GuidanceScale, ...] = ()
    from_: Share = 0.0
    until: Share = 1.0
    rescale: Share = 0.0

    @classmethod
    def from_function(
        cls, function: Callable[[float], float], num_steps: int, *, rescale: float = 0.0
    ) -> "GuidanceSchedule":
        """Write a Python function of progress down as a list, one scale for each step.

        Args:
            function: Scale at a share of the steps: 0 at the first, 1 at the last.
            num_steps: Steps that are run, >= 1.
            rescale: As of the class.

        Raises:
            InvalidRequest: If there is no step, or a scale is out of range.

        Example:
            >>> GuidanceSchedule.from_function(lambda done: 8 - 6 * done, 3).values
            (8.0, 5.0, 2.0)
        """
        check_range("num_inference_steps", num_steps, 1, MAX_STEPS)
        last = max(num_steps - 1, 1)
        values = tuple(float(function(step / last)) for step in range(num_steps))
        return cls(schedule="list", values=values, rescale=rescale)

    def _validate(self) -> None:
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
class Control(Checked):
    """One ControlNet and the picture that it follows.

    Args:
        model: Name of the ControlNet.
        image: The picture; it is brought to the size of what is drawn.
        scale: Strength, 0 is off.
        start: Share of the steps after which it begins to act.
        end: Share of the steps after which it stops, > ``start``.
        preprocess: How the picture is prepared: ``none``, ``canny:LOW:HIGH``,
            ``invert``, ``threshold:LEVEL``, ``blur:RADIUS`` or ``tile:FACTOR``;
            numbers may be left out.
        mode: What a union of ControlNets follows in it, by the number that its card gives
            edges, depth, ...; needed there, and nowhere else.
        guess: Whether it steers the prompt's half alone, and coarse features less (diffusers'
            guess mode), so that a prompt may be left out.
    """

    where: ClassVar[str] = "controls"
    model: Annotated[str, Names("control")]
    image: ImageInput
    scale: ControlScale = 1.0
    start: Share = 0.0
    end: Share = 1.0
    preprocess: Annotated[str, Preprocess()] | None = None
    mode: ControlMode | None = None
    guess: bool = False

    def _validate(self) -> None:
        if self.start >= self.end:
            raise InvalidRequest(
                f"controls.start must be less than controls.end, got {self.start:g} and "
                f"{self.end:g}",
                field="controls.start",
                value=self.start,
                allowed=f"less than {self.end:g}",
            )

    def is_active(self, step: int, num_steps: int) -> bool:
        """Tell whether it acts at a step (from 1), by diffusers' rule for its range."""
        is_within = (step - 1) / num_steps >= self.start and step / num_steps <= self.end
        return is_within and self.scale != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePrompt(Checked):
    """Pictures that speak beside the text, through an IP-Adapter.

    Args:
        model: Name of the IP-Adapter.
        images: One picture or more; each adds its own tokens.
        scale: Strength, 0 is off.
    """

    where: ClassVar[str] = "image_prompts"
    model: Annotated[str, Names("image_prompt")]
    images: Annotated[tuple[ImageInput, ...], Count(1, MAX_ADAPTERS, "pictures")]
    scale: Annotated[float, Range(-10, 10)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding(Checked):
    """A textual inversion: a word whose meaning was learnt.

    Args:
        name: Name of the file.
        token: The word that stands for it in prompts; None is the file's own, or
            its name where the file names none.
    """

    where: ClassVar[str] = "embeddings"
    name: Annotated[str, Names("embedding")]
    token: Annotated[str, Length(1, 100), Pattern(_VISIBLE, "a visible word")] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora(Checked):
    """One LoRA for this request alone.

    Args:
        name: Name of the LoRA.
        scale: Strength, 0 is off.
    """

    where: ClassVar[str] = "loras"
    name: Annotated[str, Names("lora")]
    scale: Annotated[float, Range(-10, 10)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Region(Checked):
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

    where: ClassVar[str] = "regions"
    prompt: PromptText
    negative_prompt: PromptText = ""
    mask: ImageInput | None = None
    box: Box | None = None
    weight: Annotated[float, Range(1e-6, 1000)] = 1.0
    feather: Share = 0.05
    start: Share = 0.0
    end: Share = 1.0

    def _validate(self) -> None:
        if (self.mask is None) == (self.box is None):
            raise InvalidRequest(
                "a region needs either mask or box, and not both", field="regions.box"
            )
        _check_box("regions.box", self.box)


def _check_box(field: str, box: tuple[float, ...] | None) -> None:
    """Refuse a box with nothing inside."""
    if box is not None and not (box[0] < box[2] and box[1] < box[3]):
        raise InvalidRequest(
            f"{field} must be [x0, y0, x1, y1] as fractions of the picture "
            f"with x0 < x1 and y0 < y1, got {list(box)}",
            field=field,
            value=list(box),
            allowed="four numbers 0 to 1",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleMember(Checked):
    """One denoiser of an ensemble.

    Args:
        model: Name of the model.
        weight: Relative weight among the members, >= 0.
        weights: One weight per step that is run, in place of ``weight``.
        mask: Where it is asked: a picture whose brightness is the weight; or
        box: ``(x0, y0, x1, y1)`` as fractions of width and height. There it takes the
            place of the members that have neither.
        feather: Width of the soft edge as a fraction of the shorter side.
    """

    where: ClassVar[str] = "ensemble"
    model: Annotated[str, Names("model")]
    weight: Annotated[float, Range(0, 1000)] = 1.0
    weights: tuple[Annotated[float, Range(0, 1000)], ...] = ()
    mask: ImageInput | None = None
    box: Box | None = None
    feather: Share = 0.05

    def _validate(self) -> None:
        if self.mask is not None and self.box is not None:
            raise InvalidRequest(
                "an ensemble member takes mask or box, not both", field="ensemble.box"
            )
        _check_box("ensemble.box", self.box)

    @property
    def is_local(self) -> bool:
        """Whether it is asked about a part of the picture only."""
        return self.mask is not None or self.box is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk(Checked):
    """An interpolation from the request to another prompt or seed.

    Args:
        to: Prompt to end at.
        frames: Pictures, both ends included.
        mode: What moves.
        to_seed: Seed to end at; the next one if None.
        space: Where seeds are joined: ``z``, along the sphere that noise lies on, or
            ``w``, straight, for GANs with a mapping network.
    """

    where: ClassVar[str] = "walk"
    to: PromptText | None = None
    frames: Annotated[int, Range(2, MAX_IMAGES, limit="images")] = 8
    mode: Literal["prompt", "seed", "both"] = "prompt"
    to_seed: Seed | None = None
    space: Literal["z", "w"] = "z"

    def _validate(self) -> None:
        if self.mode in ("prompt", "both") and self.to is None:
            raise InvalidRequest(
                f'walk.to (the prompt to end at) is needed for mode "{self.mode}"', field="walk.to"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inpaint(Checked):
    """How the masked part of a picture is repainted.

    Args:
        invert: Repaint where the mask is black in place of where it is white.
        blur: Radius of a blur of the mask, pixels of the picture.
        fill: What the part starts from: the picture itself, its ``surroundings``
            drawn inwards, ``noise``, or ``nothing`` (zeros).
        area: Work on the ``whole`` picture, or on the ``masked`` part alone at the
            size of the request, put back into the picture afterwards.
        padding: Pixels around the mask that ``masked`` takes along.
        paste: Give the picture's own pixels back outside the mask.
    """

    where: ClassVar[str] = "inpaint"
    invert: bool = False
    blur: MaskBlur = 0.0
    fill: Literal["original", "surroundings", "noise", "nothing"] = "original"
    area: Literal["whole", "masked"] = "whole"
    padding: MaskPadding = 32
    paste: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpaint(Checked):
    """Pixels to add to ``image`` on each side, painted to go on with it.

    Args:
        left: Pixels to add on the left.
        top: Pixels to add above.
        right: Pixels to add on the right.
        bottom: Pixels to add below.
    """

    where: ClassVar[str] = "outpaint"
    left: Margin = 0
    top: Margin = 0
    right: Margin = 0
    bottom: Margin = 0

    def _validate(self) -> None:
        if not (self.left or self.top or self.right or self.bottom):
            raise InvalidRequest(
                "outpaint must add pixels on a side, got 0 on all four", field="outpaint"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation(Checked):
    """Noise a part of the way to another seed's, and noise of another size.

    Args:
        seed: The other seed, image k takes seed + k; derived from the request's if None.
        strength: Part of the way, 0 to 1, along the great circle.
        noise_width: Draw the noise as for a picture of this width, and lay it in the
            middle, so that other sizes show the same scene. None is the picture's own.
        noise_height: As ``noise_width``; both or neither.
    """

    where: ClassVar[str] = "variation"
    seed: Seed | None = None
    strength: Share = 0.0
    noise_width: _Side | None = None
    noise_height: _Side | None = None

    def _validate(self) -> None:
        if (self.noise_width is None) != (self.noise_height is None):
            raise InvalidRequest(
                "variation.noise_width and noise_height belong together, got one",
                field="variation.noise_width",
            )

    @property
    def noise_size(self) -> Size | None:
        """Size that the noise is drawn for, or None for the picture's own."""
        if self.noise_width is None or self.noise_height is None:
            return None
        return Size(self.noise_width, self.noise_height)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hires(Checked):
    """A second pass: enlarge what the first drew, and run the end of the schedule on it.

    Args:
        scale: Of both sides, where ``width`` and ``height`` are None.
        width: Pixels of the second pass.
        height: Pixels of the second pass.
        strength: Share of the steps that the second pass runs.
        num_inference_steps: Steps of its whole schedule; those of the first if None.
        upscaler: ``latent`` enlarges the latents; ``lanczos`` and ``real-esrgan`` the
            decoded picture, which is encoded again.
        prompt: Of the second pass; the request's if None.
        negative_prompt: Of the second pass; the request's if None.
    """

    where: ClassVar[str] = "hires"
    scale: HiresScale = 2.0
    width: _Side | None = None
    height: _Side | None = None
    strength: Share = 0.6
    num_inference_steps: Steps | None = None
    upscaler: Literal["latent", "lanczos", "real-esrgan"] = "latent"
    prompt: PromptText | None = None
    negative_prompt: PromptText | None = None
