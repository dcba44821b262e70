"""Desk: takes orders, hands images to the engine, gives pictures back.

It owns every open order and what orders share, and takes one message after the other,
in a thread of its own; an event loop, which nothing interrupts and which must not wait,
has its order taken there and then. Device work happens in the
device thread, encoding and judging in the writer (small pictures are encoded here).
The bend in the road is here too: a picture that gates refuse becomes a new plan with a
derived seed.
"""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from mezzotint.engine.admission import Held, Load, Turns, admit, load_before
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
from mezzotint.engine.step_engine import StepEngine, Submission
from mezzotint.errors import DeadlineExceeded, InvalidRequest, NotReady
from mezzotint.gates.policy import Retry
from mezzotint.images.previews import encode_preview
from mezzotint.observe import metrics
from mezzotint.planning.costs import CostTable, Prediction, cost_key, finish_key
from mezzotint.planning.plan import ENLARGED, Plan
from mezzotint.sampling.latents import derive
from mezzotint.service.dispatch.coalescing import Sharing, again, may_share
from mezzotint.service.dispatch.device_thread import Cancel, CancelImage, DeviceThread, Drain, Stop
from mezzotint.service.dispatch.eta import Promises
from mezzotint.service.dispatch.mailbox import Inbox
from mezzotint.service.dispatch.messages import (
    Accept,
    Animated,
    CancelOrder,
    Close,
    Enlarged,
    Glanced,
    Loaded,
    Written,
)
from mezzotint.service.finishing.gating import glance_steps
from mezzotint.service.finishing.pictures import Finisher
from mezzotint.service.finishing.writer import Writer, is_small
from mezzotint.service.orders import Judge, Order, Run
from mezzotint.service.provision.loader import Loader
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

__all__ = ["Desk"]


class Desk:
    """Takes orders from any thread.

    Args:
        config: Limits.
        build: Makes the engine inside the device thread.
        finisher: Turns decoded pictures into finished ones.
        results: Kept pictures.
        costs: Measured seconds, learnt by the engine.
        budget_bytes: Bytes that tensors of requests may take together.
        judge: Scores pictures, or None if there are no gates.
        loader: Makes models ready beside the device thread; without one they load in it.
        clock: Seconds, the engine's own.
    """

    def __init__(
        self,
        config: EngineConfig,
        build: Callable[[Callable[[EngineEvent], None]], StepEngine],
        *,
        finisher: Finisher,
        results: ResultCache,
        costs: CostTable,
        budget_bytes: int,
        judge: Judge | None = None,
        loader: Loader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._loader = loader
        self._loading: dict[ImageId, Submission] = {}
        self._sharing = Sharing(results, among_clients=config.share_results)
        self._costs = costs
        self._budget_bytes = budget_bytes
        self._clock = clock
        self._runs: dict[str, Run] = {}
        self._promises = Promises(clock)
        self._turns = Turns()
        self._held: dict[ImageId, Held] = {}
        self._plans: dict[ImageId, Plan] = {}
        self._earlier: dict[ImageId, ImageDone] = {}  # first passes whose second is open
        self._closing: list[Future[None]] = []
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inbox = Inbox(self._handle, lambda: self._told.put(None))
        self._has_ended = False
        self._writer = Writer(finisher, judge)
        self.device = DeviceThread(build, self._told.put)
        self._thread = threading.Thread(target=self._work, name="mezzotint-desk", daemon=True)
        self._thread.start()

    def accept(self, order: Order, *, at_once: bool = False) -> "Future[float]":
        """Hand in an order; the future gives the predicted seconds, or raises the refusal.

        Args:
            order: What is to be made.
            at_once: Whether it is taken in this thread, which saves waking another. Not
                where a signal may raise: an order would be left half taken.
        """
        answer: Future[float] = Future()
        if at_once:
            self._send(Accept(order, answer))
        else:
            self._bring(Accept(order, answer))
        return answer

    def cancel(self, order_id: str) -> "Future[bool]":
        """Cancel an order at its next step; the future says whether there was one."""
        answer: Future[bool] = Future()
        self._bring(CancelOrder(order_id, answer))
        return answer

    def close(self) -> "Future[None]":
        """Finish what is being stepped, refuse the rest, end all threads."""
        answer: Future[None] = Future()
        self._bring(Close(answer))
        return answer

    def _bring(self, message: Any) -> None:
        """Leave a message for the desk's thread."""
        self._told.put(message)
        if self._has_ended:
            self._refuse_rest()

    def _send(self, message: Any) -> None:
        """Take a message, or leave it to the thread that is taking others just now."""
        self._inbox.put(message)
        if self._is_over:  # the desk's thread may go home
            self._told.put(None)
        if self._has_ended:
            self._refuse_rest()

    @property
    def num_held(self) -> int:
        """Images accepted and not ended; a glance from another thread."""
        return len(self._held)

    @property
    def load(self) -> Load:
        """What the engine has before it; a glance from another thread."""
        held = list(self._held.values())
        return Load(images=len(held), seconds=sum(image.seconds for image in held))

    def why_miss(self, plan: Plan, client: str = "") -> str:
        """Explain why a plan is not among the pictures kept for this client."""
        return self._sharing.why_miss(plan, client)

    @property
    def _is_over(self) -> bool:
        """Whether the desk is closing and nothing is left to do."""
        return bool(self._closing) and not self._runs and not self._held

    def _work(self) -> None:
        """Take what the engine tells and what others bring, until closed."""
        while not self._is_over:
            told = [self._told.get()]  # None: something lies in the inbox
            while not self._told.empty():
                told.append(self._told.get())
            for message in told:
                if message is not None:
                    self._inbox.bring(message)
            self._inbox.work()
        self._inbox.shut()
        if self._loader is not None:
            self._loader.close()
        self.device.send(Stop())
        self.device.join()
        self._writer.close()
        self._has_ended = True  # before the last look: nobody is left without an answer
        self._refuse_rest()
        for answer in self._closing:
            answer.set_result(None)

    def _handle(self, message: Any) -> None:
        """Take one message."""
        match message:
            case Accept():
                self._take(message)
            case CancelOrder():
                message.answer.set_result(self._cancel(message.id))
            case Written():
                self._take_written(message)
            case Glanced():
                if message.outcome is True:
                    self.device.send(CancelImage(message.image))
            case Enlarged():
                self._take_enlarged(message)
            case Animated():
                self._take_animated(message)
            case Loaded():
                self._take_loaded(message)
            case Close():
                self._closing.append(message.answer)
                if len(self._closing) == 1:
                    self.device.send(Drain())
                    self._give_up_loading(lambda _: True, NotReady("the engine is draining"))
            case _:
                self._hear(message)

    def _refuse_rest(self) -> None:
        """Answer whoever came while the desk was closing."""
        late_ones = [*self._inbox.leftovers()]
        with contextlib.suppress(queue.Empty):
            while True:
                late_ones.append(self._told.get_nowait())
        for message in late_ones:
            match message:
                case Accept() as late:
                    late.answer.set_exception(NotReady("the engine is closed"))
                case CancelOrder() as late:
                    late.answer.set_result(False)
                case Close() as late:
                    late.answer.set_result(None)
                case _:
                    pass

    def _take(self, message: Accept) -> None:
        """Accept an order or refuse it."""
        order, now = message.order, self._clock()
        deadline = order.request.deadline_s
        run = Run(order, until_s=math.inf if deadline is None else now + deadline)
        try:
            eta_s = self._admit(run)
        except Exception as error:  # the refusal belongs to whoever asked
            message.answer.set_exception(error)
            return
        self._runs[order.id] = run
        self._tell(run, Queued(id=order.id, position=len(self._held), eta_s=eta_s))
        message.answer.set_result(eta_s)
        for index in range(len(order.planned.plans)):
            self._start(run, index)
        self._end_if_over(run)

    def _admit(self, run: Run) -> float:
        """Return the predicted seconds of an order that may come in."""
        order = run.order
        if self._closing:
            raise NotReady("the engine is draining and takes no more requests")
        if order.id in self._runs:
            raise InvalidRequest(f"request id {order.id!r} is in use", field="id")
        work = [
            self._predict(plan, order, index)
            for index, plan in enumerate(order.planned.plans)
            if not (may_share(plan, order) and self._sharing.is_known(plan, order.client))
        ]
        now = self._clock()
        first = order.planned.plans[0]
        kind = (order.client, cost_key(first), first.rows, len(work))
        run.due_s = self._turns.due_s(kind, now, sum(cost.seconds for cost in work))
        flight_s = self._flight_s(order, now)
        if not work:
            run.promised_s = now + flight_s
            return flight_s
        load = load_before(self._held.values(), order.client, run.rank)
        pace = self._promises.factor(load.images)
        eta_s = admit(
            load,
            work,
            config=self._config,
            budget_bytes=self._budget_bytes,
            deadline_s=order.request.deadline_s,
            pace=pace,
        )
        self._promises.give(order.id, eta_s / pace, load.images)
        eta_s = max(eta_s, flight_s)
        run.promised_s = now + eta_s
        return eta_s

    def _flight_s(self, order: Order, now: float) -> float:
        """Return for how long an order will wait for pictures that others have begun."""
        longest = 0.0
        for plan in order.planned.plans:
            leader = self._sharing.leader(plan, order.client) if may_share(plan, order) else None
            if leader is not None and leader.request in self._runs:
                longest = max(longest, self._runs[leader.request].promised_s - now)
        return longest

    def _predict(self, plan: Plan, order: Order, index: int) -> Prediction:
        footprint = order.footprints[index]
        return self._costs.predict(plan, footprint, min_rows=self._config.min_rows)

    def _start(self, run: Run, index: int) -> None:
        """Answer an image from the cache, let it follow a flight, or make it."""
        order, plan = run.order, run.order.planned.plans[index]
        image = ImageId(order.id, index)
        if may_share(plan, order):
            kept = self._sharing.find(plan, index, order.client)
            if kept is not None:
                run.hits += 1
                self._deliver(run, index, kept)
                return
            if self._sharing.follow(plan, image, order.client):
                return
        self._submit(run, image, plan)

    def _submit(self, run: Run, image: ImageId, plan: Plan) -> None:
        """Hand an image to the engine."""
        order = run.order
        seconds = self._predict(plan, order, image.index).seconds
        self._held[image] = Held(client=order.client, seconds=seconds, rank=run.rank)
        self._plans[image] = plan
        submission = self._submission(run, image, plan, order.assets)
        metrics.set_to("mezzotint_queue_images", len(self._held))
        if self._loader is None or order.is_ready:
            self.device.send(submission)
            return
        self._loading[image] = submission
        self._loader.start(plan, lambda error: self._bring(Loaded(image, error)))

    def _submission(
        self, run: Run, image: ImageId, plan: Plan, assets: Mapping[str, Any]
    ) -> Submission:
        """Return one pass of an image as the engine takes it."""
        order = run.order
        return Submission(
            id=image,
            plan=plan,
            claim=Claim(
                client=order.client,
                priority=order.request.priority,
                deadline_s=run.until_s,
                arrived_s=self._clock(),
                due_s=run.due_s,
                preview_every=order.preview_every,
                preview_at=() if image in self._earlier else glance_steps(plan, order.policy),
            ),
            footprint=order.footprints[image.index],
            assets=assets,
        )

    def _take_loaded(self, message: Loaded) -> None:
        """Hand an image whose model is ready to the engine, or fail it alone."""
        submission = self._loading.pop(message.image, None)
        if submission is None:  # cancelled meanwhile
            return
        if message.error is None:
            self.device.send(submission)
            return
        self._settle(message.image, self._let_go(message.image), message.error)

    def _give_up_loading(
        self, is_meant: Callable[[ImageId], bool], error: Exception | None
    ) -> None:
        """End images that wait for their model; it goes on loading for others."""
        for image in [image for image in self._loading if is_meant(image)]:
            del self._loading[image]
            self._settle(image, self._let_go(image), error)

    def _cancel(self, order_id: str) -> bool:
        """Cancel an order: followers at once, what the engine holds at its next step."""
        run = self._runs.get(order_id)
        if run is None:
            return False
        run.is_cancelled = True
        self.device.send(Cancel(order_id))
        self._give_up_loading(lambda image: image.request == order_id, None)
        held = {image.index for image in self._held if image.request == order_id}
        self._sharing.leave(order_id)
        for index in list(run.open):
            if index not in held:
                run.close_image(index, None)
        self._end_if_over(run)
        return True

    def _hear(self, event: EngineEvent) -> None:
        """Pass an engine event on to its order."""
        image = event.id
        run = self._runs.get(image.request)
        match event:
            case ImageStarted():
                if run is not None and not run.is_started:
                    run.is_started = True
                    self._tell(run, Started(id=image.request))
            case ImageStepped():
                self._hear_step(event, run)
            case ImageDone():
                self._hear_done(event, run)
            case ImageCancelled() if run is not None and not run.is_cancelled:
                # given up at a preview: what becomes of the image is decided as for a picture
                self._write(_without_picture(image), run)
            case ImageFailed() | ImageCancelled():
                plan = self._let_go(image)
                error = event.error if isinstance(event, ImageFailed) else None
                self._settle(image, plan, error)

    def _hear_done(self, done: ImageDone, run: Run | None) -> None:
        """Go on to the second pass, or write the picture."""
        plan = self._plans[done.id]
        earlier = self._earlier.pop(done.id, None)
        if earlier is not None:
            timings = earlier.timings + done.timings
            warnings = tuple(dict.fromkeys(earlier.warnings + done.warnings))
            done = replace(done, timings=timings, warnings=warnings)
        elif plan.second is not None and run is not None and not run.is_cancelled:
            self._earlier[done.id] = replace(done, picture=None)
            self._writer.enlarge(
                done.picture,
                plan,
                lambda outcome: self._send(Enlarged(done.id, outcome)),
            )
            return
        self._write(done, run)

    def _take_enlarged(self, message: Enlarged) -> None:
        """Hand the second pass of an image to the engine."""
        image, run = message.image, self._runs.get(message.image.request)
        second = self._plans[image].second
        is_bad = isinstance(message.outcome, Exception)
        if run is None or run.is_cancelled or second is None or is_bad:
            plan = self._let_go(image)
            self._settle(image, plan, message.outcome if is_bad else None)
            return
        assets = {**run.order.assets, ENLARGED: message.outcome}
        self.device.send(self._submission(run, image, second, assets))

    def _hear_step(self, event: ImageStepped, run: Run | None) -> None:
        """Tell progress, and how much is left, to whoever waits for this image."""
        image = event.id
        plan = self._plans.get(image)
        if plan is None:
            return
        step = event.step + (plan.num_steps if image in self._earlier else 0)
        if image in self._held and run is not None:
            whole = self._predict(plan, run.order, image.index).seconds
            left = whole * max(1 - step / max(plan.all_steps, 1), 0.05)
            self._held[image] = replace(self._held[image], seconds=left)
        metrics.count("mezzotint_steps_total", model=plan.model)
        if run is not None and event.preview is not None and image not in self._earlier:
            self._glance(event, plan, run)
        preview = encode_preview(event.preview) if event.preview is not None else None
        for order_id, index in self._sharing.audience(image):
            waiting = self._runs.get(order_id)
            if waiting is not None:
                if not waiting.is_started:
                    waiting.is_started = True
                    self._tell(waiting, Started(id=order_id))
                self._tell(
                    waiting,
                    Stepped(
                        id=order_id,
                        image=index,
                        step=step,
                        steps=max(plan.all_steps, event.steps),
                        preview=preview if _wants_preview(waiting, event) else None,
                    ),
                )

    def _glance(self, event: ImageStepped, plan: Plan, run: Run) -> None:
        """Let the writer judge a preview that gates asked for."""
        policy = run.order.policy
        if event.step not in glance_steps(plan, policy):
            return
        self._writer.glance(
            event, plan, policy, lambda outcome: self._send(Glanced(event.id, outcome))
        )

    def _let_go(self, image: ImageId) -> Plan:
        """Take an image off the books."""
        self._held.pop(image, None)
        self._earlier.pop(image, None)
        metrics.set_to("mezzotint_queue_images", len(self._held))
        return self._plans.pop(image)

    def _write(self, done: ImageDone, run: Run | None) -> None:
        """Let the writer encode (and judge) a picture."""
        plan = self._plans[done.id]
        if run is None:
            self._let_go(done.id)
            self._settle(done.id, plan, None)
            return
        attempts = run.attempts.setdefault(done.id.index, [])
        if is_small(plan, run.order):
            outcome = self._writer.write_here(done, plan, run.order, attempts)
            self._take_written(Written(done.id, plan, outcome))
            return
        self._writer.write(
            done,
            plan,
            run.order,
            attempts,
            lambda outcome: self._send(Written(done.id, plan, outcome)),
        )

    def _take_written(self, message: Written) -> None:
        """Deliver what the writer made, or try again with another seed."""
        plan = self._let_go(message.image)
        run = self._runs.get(message.image.request)
        if isinstance(message.outcome, Retry) and run is not None and not run.is_cancelled:
            image = message.image._replace(attempt=message.outcome.attempt)
            plans = run.order.planned.plans
            seed = derive(plans[0].seed, image.index, image.attempt)
            self._submit(run, image, plans[image.index].with_seed(seed))
            return
        outcome = None if isinstance(message.outcome, Retry) else message.outcome
        self._settle(message.image, plan, outcome)

    def _settle(self, image: ImageId, plan: Plan, outcome: ImageOutput | Exception | None) -> None:
        """Close an image, and with it everybody who waited for the same picture."""
        if isinstance(outcome, ImageOutput):
            self._observe(plan, outcome.timings)
        run = self._runs.get(image.request)
        followers = self._sharing.land(image, plan, outcome, run.order.client if run else "")
        if run is not None:
            self._deliver(run, image.index, outcome)
            self._end_if_over(run)
        self._land(followers, plan, outcome)

    def _land(
        self,
        followers: list[tuple[str, int]],
        plan: Plan,
        outcome: ImageOutput | Exception | None,
    ) -> None:
        """Give followers the picture, or let the first of them make it if the leader left."""
        left_early = outcome is None or isinstance(outcome, DeadlineExceeded | NotReady)
        for order_id, index in followers:
            run = self._runs.get(order_id)
            if run is None:
                continue
            if left_early and not self._closing:
                self._start(run, index)
                continue
            if isinstance(outcome, ImageOutput):
                run.hits += 1
                outcome_here: ImageOutput | Exception = again(outcome, plan, index)
            else:
                outcome_here = outcome or NotReady("the engine is draining")
            self._deliver(run, index, outcome_here)
            self._end_if_over(run)

    def _deliver(self, run: Run, index: int, outcome: ImageOutput | Exception | None) -> None:
        """Book an image's outcome and tell of a finished picture."""
        if not run.close_image(index, outcome):
            return
        is_frame = run.order.request.output.animation is not None
        if isinstance(outcome, ImageOutput) and not run.is_cancelled and not is_frame:
            self._tell(run, ImageFinished(id=run.order.id, image=outcome))

    def _end_if_over(self, run: Run) -> None:
        """Tell the one ending of an order whose images are all closed."""
        if not run.is_over or self._runs.get(run.order.id) is not run or run.is_animating:
            return
        if run.wants_animation:
            run.is_animating = True
            frames = [run.outputs[k] for k in sorted(run.outputs)]
            self._writer.animate(
                run.order,
                frames,
                lambda outcome: self._send(Animated(run.order.id, outcome)),
            )
            return
        del self._runs[run.order.id]
        ending = run.ending()
        if isinstance(ending, Finished) and not run.hits:
            self._promises.keep(run.order.id)
        self._promises.forget(run.order.id)
        self._tell(run, ending)

    def _take_animated(self, message: Animated) -> None:
        """Deliver the file that the frames of an order became."""
        run = self._runs[message.order_id]
        run.is_animating = False
        run.animate(message.outcome)
        if isinstance(message.outcome, ImageOutput) and not run.is_cancelled:
            self._tell(run, ImageFinished(id=run.order.id, image=message.outcome))
        self._end_if_over(run)

    def _tell(self, run: Run, event: Event) -> None:
        """Tell an order's sink; one that raises costs its order, nobody else's."""
        try:
            run.order.sink(event)
        except Exception as error:  # a listener's fault ends its own order
            if not isinstance(event, Finished | Failed | CancelledEvent):
                run.order = replace(run.order, sink=_ignore)
                for index in list(run.open):
                    run.failures.setdefault(index, error)
                self._cancel(run.order.id)

    def _observe(self, plan: Plan, timings: StageTimings) -> None:
        """Publish the numbers of a finished picture, and learn what enlarging it costs."""
        finished = finish_key(plan)
        if finished is not None:
            self._costs.record(finished, "finish", 1, timings.write_s)
        metrics.count("mezzotint_images_total", model=plan.model)
        for stage in ("queue", "encode", "denoise", "decode", "gate", "write"):
            metrics.measure("mezzotint_stage_seconds", getattr(timings, f"{stage}_s"), stage=stage)


def _without_picture(image: ImageId) -> ImageDone:
    """Return the end of an attempt that was given up."""
    return ImageDone(id=image, picture=None, timings=StageTimings(), warnings=())


def _wants_preview(run: Run, event: ImageStepped) -> bool:
    every = run.order.preview_every
    return bool(every) and event.step % every == 0


def _ignore(_event: Event) -> None:
    """Stand for a sink that raised."""
