"""Lifecycle: what becomes of every open request and of each of its images.

It owns every open request and what requests share, and takes one message at a time from
its dispatcher, so it needs no lock. A picture that gates refuse becomes a new plan with a
derived seed: the only way back in the life of an image.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mezzotint.engine.backlog import Backlog, Held
from mezzotint.engine.cache import ResultCache
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import (
    Claim,
    EngineEvent,
    ImageCancelled,
    ImageDone,
    ImageFailed,
    ImageId,
    ImageStarted,
    ImageStepped,
)
from mezzotint.engine.step_engine import Submission
from mezzotint.errors import DeadlineExceeded, NotReady
from mezzotint.gates.policy import Retry
from mezzotint.images.previews import encode_preview
from mezzotint.observe import metrics
from mezzotint.planning.costs import CostTable
from mezzotint.planning.plan import ENLARGED, Plan
from mezzotint.sampling.latents import derive
from mezzotint.service.dispatch import device_messages
from mezzotint.service.dispatch.acceptance import Acceptance
from mezzotint.service.dispatch.coalescing import Coalescing, again, may_share
from mezzotint.service.dispatch.device_thread import DeviceThread
from mezzotint.service.dispatch.messages import (
    Animated,
    Cancel,
    DispatcherMessage,
    Enlarged,
    Loaded,
    PreviewJudged,
    Submit,
    Written,
)
from mezzotint.service.finishing.gating import preview_steps
from mezzotint.service.finishing.writer import Writer, is_small
from mezzotint.service.provision.loader import Loader
from mezzotint.service.requests import RequestState, no_sink
from mezzotint.types import Cancelled as CancelledEvent
from mezzotint.types import (
    Event,
    Failed,
    Finished,
    ImageFinished,
    ImageOutput,
    Queued,
    StageTimings,
    Started,
    Stepped,
)

__all__ = ["Lifecycle"]


class Lifecycle:
    """Takes requests from their submission to their ending; used by one thread at a time.

    Args:
        config: Limits.
        device: Where images are made.
        writer: Judges and encodes pictures.
        results: Kept pictures.
        costs: Measured seconds, learnt by the engine.
        budget_bytes: Bytes that tensors of requests may take together.
        loader: Makes models ready beside the device thread; without one they load in it.
        clock: Seconds, the engine's own.
        send: Brings a message back to :meth:`handle`, from any thread, at once if it can.
        leave: Brings a message back to :meth:`handle` in the dispatcher's thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        device: DeviceThread,
        writer: Writer,
        results: ResultCache,
        costs: CostTable,
        budget_bytes: int,
        loader: Loader | None,
        clock: Callable[[], float],
        send: Callable[[DispatcherMessage], None],
        leave: Callable[[DispatcherMessage], None],
    ) -> None:
        self._device = device
        self._writer = writer
        self._loader = loader
        self._clock = clock
        self._send = send
        self._leave = leave
        self._loading: dict[ImageId, Submission] = {}
        self._coalescing = Coalescing(results, among_clients=config.share_results)
        self._requests: dict[str, RequestState] = {}
        self._held = Backlog()
        self._plans: dict[ImageId, Plan] = {}
        self._earlier: dict[ImageId, ImageDone] = {}  # first passes whose second is open
        self._is_draining = False
        self._acceptance = Acceptance(
            config,
            costs=costs,
            coalescing=self._coalescing,
            budget_bytes=budget_bytes,
            clock=clock,
            requests=self._requests,
            held=self._held,
            load_s=loader.remaining_s if loader is not None else None,
        )

    @property
    def held(self) -> Backlog:
        """Images accepted and not ended; read from another thread."""
        return self._held

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What is held, and what is written just now; read from another thread."""
        return tuple(self._plans.values())

    @property
    def is_idle(self) -> bool:
        """Whether no request is open and no image is held."""
        return not self._requests and not len(self._held)

    def why_miss(self, plan: Plan, client: str) -> str:
        """Explain why a plan is not among the pictures kept for this client."""
        return self._coalescing.why_miss(plan, client)

    def begin(self, request_id: str) -> bool:
        """Tell a request in the device thread that an image begins, if it wants no event of it."""
        state = self._requests.get(request_id)
        if state is None or state.submission.began is None:
            return False
        state.submission.began()
        return True

    def drain(self) -> None:
        """Refuse what waits and what comes; what is being stepped is finished."""
        self._is_draining = True
        self._device.send(device_messages.Drain())
        self._give_up_loading(lambda _: True, NotReady("the engine is draining"))

    def handle(self, message: DispatcherMessage) -> None:
        """Take one message; a ``Close`` is the dispatcher's own."""
        match message:
            case Submit():
                self._take(message)
            case Cancel():
                message.answer.set_result(self._cancel(message.request))
            case Written():
                self._take_written(message)
            case PreviewJudged():
                if message.outcome is True:
                    self._device.send(device_messages.Cancel(message.image))
            case Enlarged():
                self._take_enlarged(message)
            case Animated():
                self._take_animated(message)
            case Loaded():
                self._take_loaded(message)
            case ImageStarted() | ImageStepped() | ImageDone() | ImageFailed() | ImageCancelled():
                self._hear(message)
            case _:  # Close
                pass

    def _take(self, message: Submit) -> None:
        """Accept a request or refuse it."""
        submission, now = message.submission, self._clock()
        deadline = submission.request.deadline_s
        state = RequestState(submission, until_s=math.inf if deadline is None else now + deadline)
        try:
            if self._is_draining:
                raise NotReady("the engine is draining and takes no more requests")
            eta_s = self._acceptance.admit(state)
        except Exception as error:  # the refusal belongs to whoever asked
            message.answer.set_exception(error)
            return
        self._requests[submission.id] = state
        self._tell(state, Queued(id=submission.id, position=len(self._held), eta_s=eta_s))
        message.answer.set_result(eta_s)
        for index in range(len(submission.planned.plans)):
            self._start(state, index)
        self._end_if_over(state)

    def _start(self, state: RequestState, index: int) -> None:
        """Answer an image from the cache, let it follow a flight, or make it."""
        submission, plan = state.submission, state.submission.planned.plans[index]
        image = ImageId(submission.id, index)
        if may_share(plan, submission):
            kept = self._coalescing.find(plan, index, submission.client)
            if kept is not None:
                state.hits += 1
                self._deliver(state, index, kept)
                return
            if self._coalescing.follow(plan, image, submission.client):
                return
        self._submit(state, image, plan)

    def _submit(self, state: RequestState, image: ImageId, plan: Plan) -> None:
        """Hand an image to the engine."""
        submission = state.submission
        seconds = self._acceptance.predict(plan, submission, image.index).seconds
        held = Held(client=submission.client, seconds=seconds, rank=state.rank)
        self._held.put(image, held)
        self._plans[image] = plan
        image_submission = self._submission(state, image, plan, submission.assets)
        metrics.set_to("mezzotint_queue_images", len(self._held))
        if self._loader is None or submission.is_ready:
            self._device.send(image_submission)
            return
        self._loading[image] = image_submission
        self._loader.start(plan, lambda error: self._leave(Loaded(image, error)))

    def _submission(
        self, state: RequestState, image: ImageId, plan: Plan, assets: Mapping[str, Any]
    ) -> Submission:
        """Return one pass of an image as the engine takes it."""
        submission = state.submission
        return Submission(
            id=image,
            plan=plan,
            claim=Claim(
                client=submission.client,
                priority=submission.request.priority,
                deadline_s=state.until_s,
                arrived_s=self._clock(),
                due_s=state.due_s,
                preview_every=submission.preview_every,
                preview_at=() if image in self._earlier else preview_steps(plan, submission.policy),
            ),
            footprint=submission.footprints[image.index],
            assets=assets,
        )

    def _take_loaded(self, message: Loaded) -> None:
        """Hand an image whose model is ready to the engine, or fail it alone."""
        image_submission = self._loading.pop(message.image, None)
        if image_submission is None:  # cancelled meanwhile
            return
        if message.error is None:
            self._device.send(image_submission)
            return
        self._settle(message.image, self._let_go(message.image), message.error)

    def _give_up_loading(
        self, is_meant: Callable[[ImageId], bool], error: Exception | None
    ) -> None:
        """End images that wait for their model; it goes on loading for others."""
        for image in [image for image in self._loading if is_meant(image)]:
            del self._loading[image]
            self._settle(image, self._let_go(image), error)

    def _cancel(self, request_id: str) -> bool:
        """Cancel a request: followers at once, what the engine holds at its next step."""
        state = self._requests.get(request_id)
        if state is None:
            return False
        state.is_cancelled = True
        self._device.send(device_messages.Cancel(request_id))
        self._give_up_loading(lambda image: image.request == request_id, None)
        held = {image.index for image in self._held.of(request_id)}
        self._coalescing.leave(request_id)
        for index in list(state.open):
            if index not in held:
                state.close_image(index, None)
        self._end_if_over(state)
        return True

    def _hear(self, event: EngineEvent) -> None:
        """Pass an engine event on to its request."""
        image = event.id
        state = self._requests.get(image.request)
        match event:
            case ImageStarted():
                if state is not None and not state.is_started:
                    state.is_started = True
                    self._tell(state, Started(id=image.request))
            case ImageStepped():
                self._hear_step(event, state)
            case ImageDone():
                self._hear_done(event, state)
            case ImageCancelled() if state is not None and not state.is_cancelled:
                # given up at a preview: what becomes of the image is decided as for a picture
                nothing = ImageDone(id=image, picture=None, timings=StageTimings(), warnings=())
                self._write(nothing, state)
            case ImageFailed() | ImageCancelled():
                plan = self._let_go(image)
                error = event.error if isinstance(event, ImageFailed) else None
                self._settle(image, plan, error)

    def _hear_done(self, done: ImageDone, state: RequestState | None) -> None:
        """Go on to the second pass, or write the picture."""
        plan = self._plans[done.id]
        earlier = self._earlier.pop(done.id, None)
        if earlier is not None:
            timings = earlier.timings + done.timings
            warnings = tuple(dict.fromkeys(earlier.warnings + done.warnings))
            done = replace(done, timings=timings, warnings=warnings)
        elif plan.second is not None and state is not None and not state.is_cancelled:
            self._earlier[done.id] = replace(done, picture=None)
            self._writer.enlarge(
                done.picture,
                plan,
                lambda outcome: self._send(Enlarged(done.id, outcome)),
            )
            return
        self._write(done, state)

    def _take_enlarged(self, message: Enlarged) -> None:
        """Hand the second pass of an image to the engine."""
        image, state = message.image, self._requests.get(message.image.request)
        second = self._plans[image].second
        is_bad = isinstance(message.outcome, Exception)
        if state is None or state.is_cancelled or second is None or is_bad:
            plan = self._let_go(image)
            self._settle(image, plan, message.outcome if is_bad else None)
            return
        assets = {**state.submission.assets, ENLARGED: message.outcome}
        self._device.send(self._submission(state, image, second, assets))

    def _hear_step(self, event: ImageStepped, state: RequestState | None) -> None:
        """Tell progress, and how much is left, to whoever waits for this image."""
        image = event.id
        plan = self._plans.get(image)
        if plan is None:
            return
        step = event.step + (plan.num_steps if image in self._earlier else 0)
        if image in self._held and state is not None:
            whole = self._acceptance.predict(plan, state.submission, image.index).seconds
            left = whole * max(1 - step / max(plan.all_steps, 1), 0.05)
            self._held.expect(image, left)
        metrics.count("mezzotint_steps_total", model=plan.model)
        if state is not None and event.preview is not None and image not in self._earlier:
            self._judge_preview(event, plan, state)
        preview = encode_preview(event.preview) if event.preview is not None else None
        for request_id, index in self._coalescing.audience(image):
            waiting = self._requests.get(request_id)
            if waiting is not None:
                if not waiting.is_started:
                    waiting.is_started = True
                    self._tell(waiting, Started(id=request_id))
                self._tell(
                    waiting,
                    Stepped(
                        id=request_id,
                        image=index,
                        step=step,
                        steps=max(plan.all_steps, event.steps),
                        preview=preview if waiting.wants_preview(event.step) else None,
                    ),
                )

    def _judge_preview(self, event: ImageStepped, plan: Plan, state: RequestState) -> None:
        """Let the writer judge a preview that gates asked for."""
        policy = state.submission.policy
        if event.step not in preview_steps(plan, policy):
            return
        self._writer.judge_preview(
            event, plan, policy, lambda outcome: self._send(PreviewJudged(event.id, outcome))
        )

    def _let_go(self, image: ImageId) -> Plan:
        """Take an image off the books."""
        self._held.drop(image)
        self._earlier.pop(image, None)
        metrics.set_to("mezzotint_queue_images", len(self._held))
        return self._plans.pop(image)

    def _write(self, done: ImageDone, state: RequestState | None) -> None:
        """Let the writer encode (and judge) a picture."""
        plan = self._plans[done.id]
        if state is None:
            self._let_go(done.id)
            self._settle(done.id, plan, None)
            return
        attempts = state.attempts.setdefault(done.id.index, [])
        if is_small(plan, state.submission):
            outcome = self._writer.write_here(done, plan, state.submission, attempts)
            self._take_written(Written(done.id, plan, outcome))
            return
        self._writer.write(
            done,
            plan,
            state.submission,
            attempts,
            lambda outcome: self._send(Written(done.id, plan, outcome)),
        )

    def _take_written(self, message: Written) -> None:
        """Deliver what the writer made, or try again with another seed."""
        plan = self._let_go(message.image)
        state = self._requests.get(message.image.request)
        if isinstance(message.outcome, Retry) and state is not None and not state.is_cancelled:
            image = message.image._replace(attempt=message.outcome.attempt)
            plans = state.submission.planned.plans
            seed = derive(plans[0].seed, image.index, image.attempt)
            self._submit(state, image, plans[image.index].with_seed(seed))
            return
        outcome = None if isinstance(message.outcome, Retry) else message.outcome
        self._settle(message.image, plan, outcome)

    def _settle(self, image: ImageId, plan: Plan, outcome: ImageOutput | Exception | None) -> None:
        """Close an image, and with it everybody who waited for the same picture."""
        if isinstance(outcome, ImageOutput):
            self._acceptance.learn(plan, outcome.timings)
        state = self._requests.get(image.request)
        client = state.submission.client if state is not None else ""
        followers = self._coalescing.land(image, plan, outcome, client)
        if state is not None:
            self._deliver(state, image.index, outcome)
            self._end_if_over(state)
        self._land(followers, plan, outcome)

    def _land(
        self,
        followers: list[tuple[str, int]],
        plan: Plan,
        outcome: ImageOutput | Exception | None,
    ) -> None:
        """Give followers the picture, or let the first of them make it if the leader left."""
        left_early = outcome is None or isinstance(outcome, DeadlineExceeded | NotReady)
        for request_id, index in followers:
            state = self._requests.get(request_id)
            if state is None:
                continue
            if left_early and not self._is_draining:
                self._start(state, index)
                continue
            if isinstance(outcome, ImageOutput):
                state.hits += 1
                outcome_here: ImageOutput | Exception = again(outcome, plan, index)
            else:
                outcome_here = outcome or NotReady("the engine is draining")
            self._deliver(state, index, outcome_here)
            self._end_if_over(state)

    def _deliver(
        self, state: RequestState, index: int, outcome: ImageOutput | Exception | None
    ) -> None:
        """Book an image's outcome and tell of a finished picture."""
        if not state.close_image(index, outcome):
            return
        is_frame = state.submission.request.output.animation is not None
        if isinstance(outcome, ImageOutput) and not state.is_cancelled and not is_frame:
            self._tell(state, ImageFinished(id=state.submission.id, image=outcome))

    def _end_if_over(self, state: RequestState) -> None:
        """Tell the one ending of a request whose images are all closed."""
        if (
            not state.is_over
            or self._requests.get(state.submission.id) is not state
            or state.is_animating
        ):
            return
        if state.wants_animation:
            state.is_animating = True
            frames = [state.outputs[k] for k in sorted(state.outputs)]
            self._writer.animate(
                state.submission,
                frames,
                lambda outcome: self._send(Animated(state.submission.id, outcome)),
            )
            return
        del self._requests[state.submission.id]
        ending = state.ending()
        is_measure = isinstance(ending, Finished) and not state.hits
        self._acceptance.end(state.submission.id, is_measure=is_measure)
        self._tell(state, ending)

    def _take_animated(self, message: Animated) -> None:
        """Deliver the file that the frames of a request became."""
        state = self._requests[message.request]
        state.is_animating = False
        state.animate(message.outcome)
        if isinstance(message.outcome, ImageOutput) and not state.is_cancelled:
            self._tell(state, ImageFinished(id=state.submission.id, image=message.outcome))
        self._end_if_over(state)

    def _tell(self, state: RequestState, event: Event) -> None:
        """Tell a request's sink; one that raises costs its request, nobody else's."""
        try:
            state.submission.sink(event)
        except Exception as error:  # a listener's fault ends its own request
            if not isinstance(event, Finished | Failed | CancelledEvent):
                state.submission = replace(state.submission, sink=no_sink)
                for index in list(state.open):
                    state.failures.setdefault(index, error)
                self._cancel(state.submission.id)
