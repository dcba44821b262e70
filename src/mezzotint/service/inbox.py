"""Inbox: messages from any thread, taken one after the other without a thread of its own.

Whoever brings a message takes it there and then, and with it what others bring
meanwhile; they go on at once. So nothing waits for a thread to wake, and whoever takes
messages needs no lock.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from mezzotint.observe import log

__all__ = ["Inbox"]


class Inbox:
    """Gives messages to ``handle``, never two at a time, in the order of arrival.

    Args:
        handle: Takes one message; must not block. What it brings itself is taken after
            it. An error that it raises is logged and costs that one message.
        settled: Called, also never twice at a time, whenever nothing is left to take.
    """

    def __init__(self, handle: Callable[[Any], None], settled: Callable[[], None]) -> None:
        self._handle = handle
        self._settled = settled
        self._messages: deque[Any] = deque()
        self._turn = threading.Lock()  # held by whoever takes messages

    def put(self, *messages: Any) -> None:
        """Bring messages; they are taken before this returns, or by whoever is at it now."""
        self._messages.extend(messages)
        while self._messages and self._turn.acquire(blocking=False):
            try:
                while self._messages:
                    self._take(self._messages.popleft())
                self._settled()
            finally:
                self._turn.release()

    def _take(self, message: Any) -> None:
        try:
            self._handle(message)
        except Exception as error:  # a bug of ours: the others are still taken
            log.error("inbox.failed", exception=error, message=type(message).__name__)

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
