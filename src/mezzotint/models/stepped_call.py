"""Stepped calls: a function that calls back, run from one call back to the next.

A diffusers pipeline makes a picture in one call and tells of each step on the way. Here
that call runs in a thread of its own which moves only while somebody waits for it, so
that whoever steps it may do other things between two steps, or give it up.
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["SteppedCall"]

T = TypeVar("T")


class _GivenUpError(BaseException):
    """Ends a call that nobody waits for; no handler of ordinary errors catches it."""


class SteppedCall(Generic[T]):
    """One call that pauses wherever it says so.

    Args:
        work: The call; it is given a function that pauses it until it is resumed.
    """

    def __init__(self, work: Callable[[Callable[[], None]], T]) -> None:
        self._work = work
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._given_up = False
        self._answers: list[T] = []
        self._error: BaseException | None = None
        self.is_over = False

    def resume(self) -> None:
        """Let the call run to its next pause or to its end; one that is over stays so.

        Raises:
            Exception: Whatever the call raised.
        """
        if self.is_over:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error

    def finish(self) -> T:
        """Let the call run to its end and return its answer.

        Raises:
            Exception: Whatever the call raised.
        """
        while not self.is_over:
            self.resume()
        if self._error is not None:
            raise self._error
        return self._answers[0]

    def close(self) -> None:
        """Give the call up where it stands, and wait until it has ended."""
        self._given_up = True
        if self._thread is not None and not self.is_over:
            self._go.release()
            self._back.acquire()
        self.is_over = True

    def _run(self) -> None:
        try:
            self._answers.append(self._work(self._pause))
        except _GivenUpError:
            pass
        except BaseException as error:  # told to whoever resumed the call
            self._error = error
        finally:
            self.is_over = True
            self._back.release()

    def _pause(self) -> None:
        self._back.release()
        self._go.acquire()
        if self._given_up:
            raise _GivenUpError
