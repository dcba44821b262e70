"""Mailbox: messages from any thread, taken one after the other.

To the dispatcher: whoever brings a message may take it there and then, so that it need not
wait for a thread to wake; what others bring meanwhile goes to the one thread that does
nothing else. Never two take messages at a time, so they need no lock.

To the tasks of an event loop: the loop is woken once for all that has come since it last
looked, not once for each.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from mezzotint.observe import log

__all__ = ["EventMailbox", "Mailbox"]

_FEW = 4  # messages that whoever brings one takes for others at most


class Mailbox:
    """Gives messages to ``handle``, never two at a time, in the order of arrival.

    Args:
        handle: Takes one message; must not block. What it brings itself is taken after
            it. An error that it raises is logged and costs that one message.
        wake: Wakes the thread that calls :meth:`work`.
    """

    def __init__(self, handle: Callable[[Any], None], wake: Callable[[], None]) -> None:
        self._handle = handle
        self._wake = wake
        self._messages: deque[Any] = deque()
        self._turn = threading.Lock()  # held by whoever takes messages

    def bring(self, message: Any) -> None:
        """Leave a message for :meth:`work`, or for whoever takes messages just now."""
        self._messages.append(message)

    def put(self, message: Any) -> None:
        """Bring a message and take it, with what lies before it, if nobody is at it."""
        ahead = len(self._messages)
        self._messages.append(message)
        if self._turn.acquire(blocking=False):
            try:
                for _ in range(min(ahead, _FEW) + 1):
                    if self._messages:
                        self._take(self._messages.popleft())
            finally:
                self._turn.release()
        if self._messages:  # too many, or brought while another took his last
            self._wake()

    def take_some(self, most: int) -> bool | None:
        """Take up to ``most`` messages.

        Returns:
            Whether there are more; None, and nothing was taken, if another thread is at it.
        """
        if not self._turn.acquire(blocking=False):
            return None
        try:
            for _ in range(most):
                if self._messages:
                    self._take(self._messages.popleft())
        finally:
            self._turn.release()
        return bool(self._messages)

    def work(self) -> None:
        """Take everything that is there, after whoever is at it now."""
        with self._turn:
            while self._messages:
                self._take(self._messages.popleft())

    def _take(self, message: Any) -> None:
        try:
            self._handle(message)
        except Exception as error:  # a bug of ours: the others are still taken
            log.error("mailbox.failed", exception=error, message=type(message).__name__)

    def shut(self) -> None:
        """Wait until nobody takes messages; from here on they are left lying."""
        self._turn.acquire()

    def leftovers(self) -> Sequence[Any]:
        """Return, once, the messages that were brought too late."""
        found: list[Any] = []
        while self._messages:
            try:
                found.append(self._messages.popleft())
            except IndexError:  # another thread looked too
                break
        return found


class EventMailbox:
    """Hands items out in one loop, from any thread, in order.

    Args:
        loop: Where.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._thread = threading.get_ident()
        self._items: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._is_called = False

    def put(self, hear: Callable[[Any], None], item: Any) -> None:
        """Bring an item for whoever hears it in the loop.

        Raises:
            RuntimeError: If the loop is closed.
        """
        self._items.append((hear, item))
        if self._is_called and not self.loop.is_closed():
            return
        self._is_called = True  # before calling: the loop may look at once
        try:
            if threading.get_ident() == self._thread:
                self.loop.call_soon(self._empty)
            else:
                self.loop.call_soon_threadsafe(self._empty)
        except RuntimeError:
            self._is_called = False
            raise

    def _empty(self) -> None:
        """Hand out what has come, in the loop."""
        self._is_called = False  # before looking: who comes from here on calls again
        while self._items:
            hear, item = self._items.popleft()
            try:
                hear(item)
            except Exception as error:  # a bug of ours: the others still hear
                log.error("mailbox.failed", exception=error, message=type(item).__name__)
