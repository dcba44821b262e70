"""Threads for work on pictures, of which no client gets more than a few at once.

Reading pictures and planning takes seconds where a client sends large ones. Each client
has a line of its own, so whoever fills it waits behind itself, and the plan of somebody
else begins at once.
"""

import asyncio
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from mezzotint.errors import NotReady

__all__ = ["FairThreads"]

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True)
class _Line:
    """What one client waits for, and how much of it is being done."""

    waiting: deque[tuple["Future[Any]", Callable[[], Any]]] = field(
        default_factory=deque[tuple["Future[Any]", Callable[[], Any]]]
    )
    running: int = 0


class FairThreads:
    """A pool of threads with a line for each client; safe to use from any thread.

    Args:
        count: Threads.
        per_client: Threads that one client may have at once.
    """

    def __init__(self, count: int = 16, per_client: int = 2) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="mezzotint-pictures")
        self._per_client = per_client
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._is_closed = False

    async def run(
        self, client: str, work: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """Do some work in a thread when it is the client's turn; cancelling leaves its line.

        Raises:
            NotReady: If the threads are closed, or close before its turn.
        """
        future: Future[T] = Future()
        context = contextvars.copy_context()
        with self._lock:
            if self._is_closed:
                raise NotReady("the engine is closed")
            line = self._lines.setdefault(client, _Line())
            line.waiting.append((future, lambda: context.run(work, *arguments, **named)))
            self._fill(client, line)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads once what they do is done; what waits is refused."""
        with self._lock:
            self._is_closed = True
            late = [future for line in self._lines.values() for future, _ in line.waiting]
            for line in self._lines.values():
                line.waiting.clear()
        for future in late:
            if future.set_running_or_notify_cancel():
                future.set_exception(NotReady("the engine is closed"))
        self._pool.shutdown(wait=False)

    def _fill(self, client: str, line: _Line) -> None:
        """Give a line the threads that it may have."""
        while line.waiting and line.running < self._per_client:
            future, work = line.waiting.popleft()
            if future.set_running_or_notify_cancel():
                line.running += 1
                self._pool.submit(self._do, client, line, future, work)
        if not line.running and not line.waiting:
            self._lines.pop(client, None)

    def _do(self, client: str, line: _Line, future: "Future[Any]", work: Callable[[], Any]) -> None:
        """Do one piece of work, then let the client's next one in."""
        outcome: Any = None
        fault: BaseException | None = None
        try:
            outcome = work()
        except BaseException as error:  # it belongs to whoever waits
            fault = error
        with self._lock:
            line.running -= 1
            self._fill(client, line)
        if fault is None:
            future.set_result(outcome)
        else:
            future.set_exception(fault)
