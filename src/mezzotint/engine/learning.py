"""Learning: what makes later pictures faster is found out while nobody waits.

Lessons are certificates of call sizes and seconds of calls. They are taught in the device
thread once it has been idle for a while, and left at once when a request comes: a lesson
that was left goes on where it stood.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mezzotint.observe import log
from mezzotint.observe.interruption import Interrupted, interruptible

__all__ = ["Learner", "Lesson"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """Something to learn.

    Args:
        name: For the log.
        study: Learns it. May raise
            :class:`~mezzotint.observe.interruption.Interrupted`, and is called again then.
        at_once: Whether it does not wait for a while without work.
    """

    name: str
    study: Callable[[], None]
    at_once: bool = False


class Learner:
    """Lessons, taken one after the other.

    Args:
        after_s: Seconds without work before the first; 0 takes only those that go at once.
        is_busy: Whether somebody waits for anything, asked in the device thread.
    """

    def __init__(self, after_s: float, is_busy: Callable[[], bool] = lambda: False) -> None:
        self._after_s = after_s
        self._is_busy = is_busy
        self._lessons: deque[Lesson] = deque()
        self._somebody_came = threading.Event()

    def add(self, lesson: Lesson) -> None:
        """Take a lesson on, in the device thread; one that goes at once goes first."""
        if lesson.at_once:
            self._lessons.appendleft(lesson)
        elif self._after_s:
            self._lessons.append(lesson)

    def interrupt(self) -> None:
        """Leave the lesson under way; from any thread, after what is to be done was queued."""
        self._somebody_came.set()

    def clear(self) -> None:
        """Forget interruptions; whoever learns looks into the queue after this."""
        self._somebody_came.clear()

    @property
    def wait_s(self) -> float | None:
        """Seconds to wait for work before learning; None where there is nothing to learn."""
        if not self._lessons:
            return None
        return 0.0 if self._lessons[0].at_once else self._after_s

    def study(self) -> None:
        """Take the first lesson, until it ends or somebody comes."""
        lesson = self._lessons[0]
        if not lesson.at_once and self._is_busy():
            return
        try:
            with interruptible(self._somebody_came):
                lesson.study()
        except Interrupted:
            return
        except Exception as error:  # what cannot be learnt is done without
            log.error("engine.lesson_failed", lesson=lesson.name, error=repr(error))
        else:
            log.info("engine.learnt", lesson=lesson.name)
        self._lessons.popleft()
