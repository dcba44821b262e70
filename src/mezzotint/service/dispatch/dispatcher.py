"""Dispatcher: takes requests, hands images to the engine, gives pictures back.

It takes one message after the other, in a thread of its own; an event loop that nothing
interrupts has its requests taken there and then, and takes what the device tells. Device
work happens in the device thread, encoding and judging in the writer (small pictures are
encoded here). What each message does stands in
:mod:`~mezzotint.service.dispatch.lifecycle`.
"""

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from mezzotint.engine.backlog import Load
from mezzotint.engine.cache import ResultCache
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.learning import Learner
from mezzotint.engine.state import EngineEvent, ImageDone, ImageStarted, ImageStepped
from mezzotint.engine.step_engine import StepEngine
from mezzotint.errors import NotReady
from mezzotint.planning.costs import CostTable
from mezzotint.planning.plan import Plan
from mezzotint.service.dispatch.device_messages import Stop
from mezzotint.service.dispatch.device_thread import DeviceThread
from mezzotint.service.dispatch.lifecycle import Lifecycle
from mezzotint.service.dispatch.mailbox import Mailbox
from mezzotint.service.dispatch.messages import Cancel, Close, DispatcherMessage, Submit
from mezzotint.service.finishing.pictures import Finisher
from mezzotint.service.finishing.writer import Writer
from mezzotint.service.provision.loader import Loader
from mezzotint.service.requests import Judge, RequestSubmission

__all__ = ["Dispatcher"]

_FEW = 8  # messages that the loop takes before it looks at what else there is


class Dispatcher:
    """Takes requests from any thread.

    Args:
        config: Limits.
        build: Makes the engine inside the device thread.
        finisher: Turns decoded pictures into finished ones.
        results: Kept pictures.
        costs: Measured seconds, learnt by the engine.
        budget_bytes: Bytes that tensors of requests may take together.
        judge: Scores pictures, or None if there are no gates.
        loader: Makes models ready beside the device thread; without one they load in it.
        learner: What the device thread learns while nobody waits.
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
        learner: Learner | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._closing: list[Future[None]] = []
        self._told: queue.SimpleQueue[DispatcherMessage | None] = queue.SimpleQueue()
        self._mailbox = Mailbox(self._handle, self._wake)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_called = False  # the loop was asked to look
        self._has_news = False  # of the device, nobody was woken for it yet
        self._has_ended = False
        self._writer = Writer(finisher, judge)
        self.device = DeviceThread(build, self._hear, learner, flush=self._flush)
        self._lifecycle = Lifecycle(
            config,
            device=self.device,
            writer=self._writer,
            results=results,
            costs=costs,
            budget_bytes=budget_bytes,
            loader=loader,
            clock=clock,
            send=self._send,
            leave=self._leave,
        )
        self._thread = threading.Thread(target=self._work, name="mezzotint-dispatcher", daemon=True)
        self._thread.start()

    def accept(self, submission: RequestSubmission, *, at_once: bool = False) -> "Future[float]":
        """Hand in a request; the future gives the predicted seconds, or raises the refusal.

        Args:
            submission: What is to be made.
            at_once: Whether it is taken in this thread, which saves waking another. Not
                where a signal may raise: a request would be left half taken.
        """
        answer: Future[float] = Future()
        if at_once:
            self._send(Submit(submission, answer))
        else:
            self._leave(Submit(submission, answer))
        return answer

    def attend(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what the device tells in an event loop from here on, where no signal may raise.

        That is one thread less to wake for each picture, and the loop writes the answer at once.
        """
        self._loop = loop

    def cancel(self, request_id: str) -> "Future[bool]":
        """Cancel a request at its next step; the future says whether there was one."""
        answer: Future[bool] = Future()
        self._leave(Cancel(request_id, answer))
        return answer

    def close(self) -> "Future[None]":
        """Finish what is being stepped, refuse the rest, end all threads."""
        answer: Future[None] = Future()
        self._leave(Close(answer))
        return answer

    def _leave(self, message: DispatcherMessage) -> None:
        """Leave a message for the dispatcher's thread."""
        self._told.put(message)
        if self._has_ended:
            self._refuse_rest()

    def _send(self, message: DispatcherMessage) -> None:
        """Take a message, or leave it to the thread that is taking others just now."""
        self._mailbox.put(message)
        if self._is_over:  # the dispatcher's thread may end
            self._told.put(None)
        if self._has_ended:
            self._refuse_rest()

    def _hear(self, event: EngineEvent) -> None:
        """Take an event of the device, in its thread.

        What a call came to is told when all of it is booked: one wake for all pictures of it.
        """
        if isinstance(event, ImageStarted) and self._lifecycle.begin(event.id.request):
            return
        self._mailbox.bring(event)
        if isinstance(event, ImageDone | ImageStepped):
            self._has_news = True
        else:
            self._wake()

    def _flush(self) -> None:
        """Wake somebody for what a call came to."""
        if self._has_news:
            self._has_news = False
            self._wake()

    def _wake(self) -> None:
        """Have the loop, or the dispatcher's own thread, take what lies in the mailbox."""
        loop = self._loop
        if loop is None or not self._call(loop):
            self._told.put(None)

    def _call(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Have a loop look into the mailbox; False if there is none any more."""
        if not loop.is_running():
            return False
        if self._is_called:
            return True
        self._is_called = True  # before calling: the loop may look at once
        try:
            loop.call_soon_threadsafe(self._look)
        except RuntimeError:  # it is closed
            self._is_called, self._loop = False, None
        return self._is_called

    def _look(self) -> None:
        """Take some of what lies in the mailbox, in the loop; other work of it comes between."""
        self._is_called = False  # before looking: who comes from here on calls again
        is_more = self._mailbox.take_some(_FEW)
        if is_more:
            self._wake()
        elif is_more is None or self._is_over:  # for the dispatcher's thread to go on, or to end
            self._told.put(None)

    @property
    def num_held(self) -> int:
        """Images accepted and not ended; read from another thread."""
        return len(self._lifecycle.held)

    def num_using(self, model_digest: str) -> int:
        """Count the images accepted and not ended that a model draws; from any thread."""
        return sum(model_digest in plan.models for plan in self._lifecycle.plans)

    @property
    def load(self) -> Load:
        """What the engine has before it; read from another thread."""
        held = self._lifecycle.held
        return Load(images=len(held), seconds=held.seconds)

    def why_miss(self, plan: Plan, client: str = "") -> str:
        """Explain why a plan is not among the pictures kept for this client."""
        return self._lifecycle.why_miss(plan, client)

    @property
    def _is_over(self) -> bool:
        """Whether the dispatcher is closing and nothing is left to do."""
        return bool(self._closing) and self._lifecycle.is_idle

    def _work(self) -> None:
        """Take what the engine tells and what others bring, until closed."""
        while not self._is_over:
            told = [self._told.get()]  # None: something lies in the mailbox
            while not self._told.empty():
                told.append(self._told.get())
            for message in told:
                if message is not None:
                    self._mailbox.bring(message)
            self._mailbox.work()
        self._mailbox.shut()
        if self._loader is not None:
            self._loader.close()
        self.device.send(Stop())
        self.device.join()
        self._writer.close()
        self._has_ended = True  # before the last look: nobody is left without an answer
        self._refuse_rest()
        for answer in self._closing:
            answer.set_result(None)

    def _handle(self, message: DispatcherMessage) -> None:
        """Take one message."""
        if isinstance(message, Close):
            self._closing.append(message.answer)
            if len(self._closing) == 1:
                self._lifecycle.drain()
            return
        self._lifecycle.handle(message)

    def _refuse_rest(self) -> None:
        """Answer whoever came while the dispatcher was closing."""
        late_ones = [*self._mailbox.leftovers()]
        with contextlib.suppress(queue.Empty):
            while True:
                late_ones.append(self._told.get_nowait())
        for message in late_ones:
            match message:
                case Submit() as late:
                    late.answer.set_exception(NotReady("the engine is closed"))
                case Cancel() as late:
                    late.answer.set_result(False)
                case Close() as late:
                    late.answer.set_result(None)
                case _:
                    pass
