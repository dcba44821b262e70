"""Device thread: the one thread that owns the engine and every tensor.

Others meet it in two queues: commands in, events out. It sleeps while there is
nothing to do and never waits for anybody; what it may learn meanwhile is left at once when
a command comes.
"""

import queue
import threading
from collections.abc import Callable

from mezzotint.engine.learning import Learner
from mezzotint.engine.state import EngineEvent, ImageFailed, ImageId
from mezzotint.engine.step_engine import StepEngine, Submission
from mezzotint.errors import WorkFailed
from mezzotint.observe import log
from mezzotint.service.dispatch.device_messages import (
    Cancel,
    DeviceMessage,
    Drain,
    Learn,
    Stop,
)

__all__ = ["DeviceThread"]


class DeviceThread:
    """Runs an engine until it is told to stop.

    Args:
        build: Makes the engine in this thread, given where to send events.
        emit: Takes events; called in this thread, must not block or raise.
        flush: Called in this thread after each tick, when all of its events were emitted.
        learner: What is learnt while there are no commands; nothing if None.
    """

    def __init__(
        self,
        build: Callable[[Callable[[EngineEvent], None]], StepEngine],
        emit: Callable[[EngineEvent], None],
        learner: Learner | None = None,
        *,
        flush: Callable[[], None] | None = None,
    ) -> None:
        self._flush = flush
        self._learner = learner or Learner(0.0)
        self._build = build
        self._emit = emit
        self._commands: queue.SimpleQueue[DeviceMessage] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="mezzotint-device", daemon=True)
        self._thread.start()

    def send(self, command: DeviceMessage) -> None:
        """Queue a command; from any thread."""
        self._commands.put(command)
        self._learner.interrupt()

    def join(self, timeout_s: float | None = None) -> None:
        """Wait until the thread has ended."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        """Take commands, tick, until stopped."""
        try:
            engine = self._build(self._emit)
        except Exception as error:  # whatever: nobody may wait for an engine that never comes
            log.error("engine.not_built", exception=error)
            self._refuse(WorkFailed(f"the engine could not be built: {error}"))
            return
        stopping = False
        while not stopping:
            stopping = self._take(engine)
            if stopping:
                continue
            try:
                engine.tick()
            except Exception as error:  # the engine tick: a bug of ours ends what it held
                log.error("engine.tick_failed", error=repr(error))
                engine.abort(WorkFailed(f"the engine failed: {error}"))
            if self._flush is not None:
                self._flush()
        engine.abort(WorkFailed("the engine was stopped"))

    def _refuse(self, error: WorkFailed) -> None:
        """Answer everything with the reason for which there is no engine."""
        while not isinstance(command := self._commands.get(), Stop):
            if isinstance(command, Submission):
                self._emit(ImageFailed(id=command.id, error=error))

    def _take(self, engine: StepEngine) -> bool:
        """Carry out waiting commands; while the engine is idle sleep for one, or learn."""
        block = engine.is_idle
        while True:
            try:
                command = self._commands.get(block=block, timeout=self._learner.wait_s)
            except queue.Empty:
                if block:
                    self._learn()
                return False
            block = False
            match command:
                case Submission():
                    engine.submit(command)
                case Cancel(what):
                    if isinstance(what, ImageId):
                        engine.cancel_image(what)
                    else:
                        engine.cancel(what)
                case Drain():
                    engine.drain()
                case Learn():
                    self._learner.add(command.lesson)
                case Stop():
                    return True

    def _learn(self) -> None:
        """Take a lesson unless a command has come: whoever sends one interrupts after it."""
        self._learner.clear()
        if self._commands.empty():
            self._learner.study()
