"""Event mailbox: events from other threads for the tasks of one event loop.

A loop is woken once for all that has come since it last looked, not once for each.
"""

import asyncio
from collections import deque
from typing import Any

__all__ = ["EventMailbox"]


class EventMailbox:
    """Puts items into queues of one loop, from any thread, in order.

    Args:
        loop: Whose tasks read the queues.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._is_called = False

    def put(self, queue: "asyncio.Queue[Any]", item: Any) -> None:
        """Bring an item for a queue.

        Raises:
            RuntimeError: If the loop is closed.
        """
        self._items.append((queue, item))
        if self._is_called and not self.loop.is_closed():
            return
        self._is_called = True  # before calling: the loop may look at once
        try:
            self.loop.call_soon_threadsafe(self._empty)
        except RuntimeError:
            self._is_called = False
            raise

    def _empty(self) -> None:
        """Hand out what has come, in the loop."""
        self._is_called = False  # before looking: who comes from here on calls again
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)
