"""Requests: one accepted request, from its plans to its one ending.

Plain data and rules without threads. A request is open while any of its images
is; when the last one closes it has exactly one ending: Finished if there is a
picture (what failed is a warning), Failed if there is none or its own deadline
passed, Cancelled if somebody asked for it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mezzotint.errors import DeadlineExceeded, NotReady, WorkFailed
from mezzotint.plain import exchange
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import Plan, Planned
from mezzotint.planning.second_pass import second_part
from mezzotint.request import (
    Gates,
    GenerationRequest,
    GuidanceSchedule,
    Inpaint,
    LatentInput,
)
from mezzotint.types import (
    Cancelled,
    Event,
    Failed,
    Finished,
    GenerationResult,
    ImageOutput,
    StageTimings,
    Verdict,
)

__all__ = ["Attempted", "Judge", "RequestState", "RequestSubmission", "no_sink", "standalone"]

_DEFAULT_STRENGTH = 0.8


class Judge(Protocol):
    """Who scores pictures; the gates room has one."""

    def policy(self, gates: Gates) -> Any:
        """Resolve the gates of a request; raises for unknown or missing ones."""
        ...

    def judge(self, pixels: Any, policy: Any) -> tuple[Verdict, ...]:
        """Measure one picture (uint8, (H, W, 3)) with every gate of the policy."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSubmission:
    """A planned request on its way into the dispatcher.

    Args:
        id: The request's id.
        request: What was asked.
        planned: One plan per image, and warnings.
        footprints: Bytes of each image.
        sink: Told every event; must not block.
        assets: Decoded pictures of the request by digest.
        client: Who asks.
        use_cache: Whether kept pictures may answer.
        preview_every: Steps between previews, 0 for none.
        policy: The gates' policy, or None.
        is_ready: Whether the model is loaded and compiled for what is asked.
        began: Called by the device thread before an image of it begins, where nobody wants
            the event ``Started``; must not block.
    """

    id: str
    request: GenerationRequest
    planned: Planned
    footprints: tuple[Footprint, ...]
    sink: Callable[[Event], None]
    assets: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    client: str = ""
    use_cache: bool = True
    preview_every: int = 0
    policy: Any = None
    is_ready: bool = False
    began: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """One attempt at an image that gates judged."""

    plan: Plan
    verdicts: tuple[Verdict, ...]
    pixels: Any
    timings: StageTimings
    warnings: tuple[str, ...]


class RequestState:
    """A request that was accepted: what is open, what is done, what failed.

    Args:
        submission: What is to be done.
        until_s: Clock time by which it must be done, or infinity.
        due_s: Clock time that decides whose turn it is among one client's requests.
    """

    def __init__(
        self, submission: RequestSubmission, *, until_s: float = math.inf, due_s: float = 0.0
    ) -> None:
        self.submission = submission
        self.until_s = until_s
        self.due_s = due_s
        self.expected_s = 0.0  # clock time by which its client was told that it will be done
        self.open = set(range(len(submission.planned.plans)))
        self.outputs: dict[int, ImageOutput] = {}
        self.failures: dict[int, Exception] = {}
        self.attempts: dict[int, list[Attempted]] = {}
        self.is_started = False
        self.is_cancelled = False
        self.is_animating = False
        self.is_animated = False
        self.hits = 0

    @property
    def rank(self) -> tuple[int, float, float]:
        """Its place in the reading order of its client, smallest first."""
        return (-self.submission.request.priority, self.until_s, self.due_s)

    @property
    def is_over(self) -> bool:
        """Whether no image is open any more."""
        return not self.open

    @property
    def wants_animation(self) -> bool:
        """Whether the frames still have to become one file."""
        wanted = self.submission.request.output.animation is not None and not self.is_animated
        return wanted and bool(self.outputs) and not self.failures and not self.is_cancelled

    def wants_preview(self, step: int) -> bool:
        """Whether its client wants a preview of this step, from 1."""
        every = self.submission.preview_every
        return bool(every) and step % every == 0

    def animate(self, outcome: ImageOutput | Exception) -> None:
        """Put the animation in the place of its frames."""
        self.is_animated = True
        self.outputs = {0: outcome} if isinstance(outcome, ImageOutput) else {}
        if isinstance(outcome, Exception):
            self.failures[0] = outcome

    def close_image(self, index: int, outcome: ImageOutput | Exception | None) -> bool:
        """Book the outcome of an image; False if it had one already."""
        if index not in self.open:
            return False
        self.open.discard(index)
        if isinstance(outcome, ImageOutput):
            self.outputs[index] = outcome
        elif outcome is not None:
            self.failures[index] = outcome
        return True

    def ending(self, cost: Mapping[str, Any] | None = None) -> Finished | Failed | Cancelled:
        """Return the one ending, once every image is closed."""
        submission = self.submission
        if self.is_cancelled:
            return Cancelled(id=submission.id)
        fatal = next(
            (e for e in self.failures.values() if isinstance(e, DeadlineExceeded | NotReady)), None
        )
        if fatal is not None or not self.outputs:
            error = fatal or next(
                iter(self.failures.values()), WorkFailed("the request came to nothing")
            )
            return Failed(id=submission.id, error=error)
        if submission.request.output.animation is not None and self.failures:
            return Failed(id=submission.id, error=next(iter(self.failures.values())))
        lost = tuple(f"image {k} failed: {e}" for k, e in sorted(self.failures.items()))
        plan = {**submission.planned.plans[0].describe(), **({"cost": dict(cost)} if cost else {})}
        result = GenerationResult(
            id=submission.id,
            images=tuple(self.outputs[k] for k in sorted(self.outputs)),
            plan=plan,
            cache="hit" if self.hits == len(submission.planned.plans) else "miss",
            warnings=submission.planned.warnings + lost,
        )
        return Finished(id=submission.id, result=result)


def no_sink(_event: Event) -> None:
    """Stand for nobody who listens to a request."""


def standalone(request: GenerationRequest, plan: Plan) -> GenerationRequest:
    """Return the request that makes one image again by itself, everything resolved.

    Requests in other words that came to the same plan come to the same request, so
    the bytes of a picture, its recipe included, depend on its plan alone.
    """
    techniques = plan.techniques
    return exchange(
        request,
        model=plan.model,
        prompt=plan.prompt,
        negative_prompt=plan.negative_prompt,
        width=plan.size.width,
        height=plan.size.height,
        num_images=1,
        seed=plan.seed,
        num_inference_steps=plan.num_inference_steps or None,
        scheduler=plan.scheduler or None,
        sigma_schedule=plan.sigma_schedule,
        guidance_scale=_guidance_of_passes(request, plan),
        variation=techniques.variation,
        inpaint=techniques.inpaint or Inpaint(),
        **second_part(request, plan),
        upscale=techniques.upscale and techniques.upscale.part,
        walk=techniques.walk and techniques.walk.walk,
        strength=request.strength if techniques.image else _DEFAULT_STRENGTH,
        controls=tuple(control.part for control in techniques.controls),
        loras=tuple(lora.part for lora in techniques.loras),
        embeddings=tuple(embedding.part for embedding in techniques.embeddings),
        latent=LatentInput(truncation=techniques.truncation, class_label=techniques.class_label),
        gates=None,
        output=plan.output,
        priority=0,
        deadline_s=None,
    )


def _guidance_of_passes(request: GenerationRequest, plan: Plan) -> float | GuidanceSchedule | None:
    """Return the guidance as a request field; a curve over two passes stays as it came."""
    if plan.second is not None and isinstance(request.guidance_scale, GuidanceSchedule):
        return request.guidance_scale
    return _guidance(plan)


def _guidance(plan: Plan) -> float | GuidanceSchedule | None:
    """Return the guidance of a plan as a request field."""
    techniques = plan.techniques
    if techniques.distilled_guidance is not None:
        return techniques.distilled_guidance
    if not plan.guidance:
        return None
    rescale = techniques.guidance_rescale
    if len(set(plan.guidance)) > 1:
        return GuidanceSchedule(schedule="list", values=plan.guidance, rescale=rescale)
    scale = plan.guidance[0]
    return GuidanceSchedule(start=scale, rescale=rescale) if rescale else scale
