"""Writer: the one thread that rounds, judges, enlarges and encodes what was drawn.

It takes one thing after the other, in the order of asking, beside the device. Each
piece of work answers with what it came to: a value, or the exception that it raised.
A picture that takes less to encode than a thread takes to wake is written at once,
by whoever asks.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from mezzotint.engine.state import ImageDone, ImageStepped
from mezzotint.gates.policy import GatePolicy, Retry
from mezzotint.observe.spans import span
from mezzotint.planning.plan import Plan
from mezzotint.service.finishing.gating import Gating
from mezzotint.service.finishing.pictures import Finisher, pastes
from mezzotint.service.requests import Attempted, Judge, RequestSubmission
from mezzotint.types import ImageOutput

__all__ = ["Writer", "is_small"]

_SMALL_PX = 96 * 96

Tell = Callable[[Any], None]


def is_small(plan: Plan, submission: RequestSubmission) -> bool:
    """Whether writing a picture is a matter of fractions of a millisecond."""
    techniques, size = plan.techniques, (plan.second or plan).size
    is_plain = submission.policy is None and techniques.upscale is None and not pastes(plan)
    return is_plain and size.width * size.height <= _SMALL_PX


class Writer:
    """Works for one dispatcher; ``tell`` of every method is called in the writer's thread.

    Args:
        finisher: Turns decoded pictures into finished ones.
        judge: Scores pictures, or None if there are no gates.
    """

    def __init__(self, finisher: Finisher, judge: Judge | None) -> None:
        self._finisher = finisher
        self._gating = Gating(judge)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mezzotint-writer")

    def write(
        self,
        done: ImageDone,
        plan: Plan,
        submission: RequestSubmission,
        attempts: list[Attempted],
        tell: Tell,
    ) -> None:
        """Judge and encode a picture: an ImageOutput, or a Retry where gates want another.

        Args:
            done: What the engine drew; no picture where it was given up.
            plan: What was made.
            submission: For whom.
            attempts: Those at the same image before; this one is added.
            tell: Gets the outcome.
        """
        self._start(tell, self._finish, done, plan, submission, attempts)

    def write_here(
        self, done: ImageDone, plan: Plan, submission: RequestSubmission, attempts: list[Attempted]
    ) -> ImageOutput | Exception:
        """Encode a picture that no gate judges in the caller's thread; see :meth:`write`."""
        try:
            output = self._finish(done, plan, submission, attempts)
            assert isinstance(output, ImageOutput)  # noqa: S101 - without gates nothing is refused
        except Exception as error:  # this picture fails, alone
            return error
        return output

    def enlarge(self, picture: Any, plan: Plan, tell: Tell) -> None:
        """Make the start picture of a plan's second pass out of what its first drew."""
        self._start(tell, self._finisher.between, picture, plan)

    def judge_preview(
        self, event: ImageStepped, plan: Plan, policy: GatePolicy, tell: Tell
    ) -> None:
        """Judge a preview: True if the attempt is to be given up."""
        self._start(
            tell, self._gating.judge_preview, event.id, event.preview, event.step, plan, policy
        )

    def animate(
        self, submission: RequestSubmission, frames: Sequence[ImageOutput], tell: Tell
    ) -> None:
        """Make one moving file of the pictures of a request."""
        self._start(tell, self._finisher.animate, submission, frames)

    def close(self) -> None:
        """Finish what was asked for and end the thread."""
        self._thread.shutdown(wait=True)

    def _start(self, tell: Tell, work: Callable[..., Any], *arguments: Any) -> None:
        future = self._thread.submit(work, *arguments)
        future.add_done_callback(lambda done: tell(_outcome(done)))

    def _finish(
        self, done: ImageDone, plan: Plan, submission: RequestSubmission, attempts: list[Attempted]
    ) -> ImageOutput | Retry:
        """Round, judge and encode one picture."""
        with span("write", width=plan.size.width, height=plan.size.height):
            pixels = None if done.picture is None else self._finisher.pixels(done.picture)
            attempt = Attempted(
                plan=plan, verdicts=(), pixels=pixels, timings=done.timings, warnings=done.warnings
            )
            kept = self._gating.judge_attempt(done.id, attempt, submission.policy, attempts)
            if isinstance(kept, Retry):
                return kept
            output = self._finisher.finish(
                kept.pixels,
                request=submission.request,
                plan=kept.plan,
                index=done.id.index,
                timings=kept.timings,
                warnings=kept.warnings,
            )
            return replace(output, attempts=kept.attempts)


def _outcome(future: "Future[Any]") -> Any:
    """Return what a piece of writing came to."""
    error = future.exception()
    if isinstance(error, Exception):
        return error
    return future.result()
