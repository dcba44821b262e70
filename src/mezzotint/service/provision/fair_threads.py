"""Threads for work on pictures, of which no client gets more than its share.

Reading pictures and planning takes seconds where a client sends large ones. Each client
has a line of its own, so whoever fills it waits behind itself, and the plan of somebody
else begins at once.

These threads share cores and interpreter with the one that draws. While pictures of somebody
else are on their way, and shortly after, a client's line does one thing at a time and rests
after each, so that what it takes stays a tenth of one core; a line that asks for more goes on
between those pictures, as far as there is a between within two seconds, and at a lower priority
of the operating system, where threads have one. Alone, nothing rests.
"""

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from mezzotint.errors import NotReady

__all__ = ["FairThreads"]

P = ParamSpec("P")
T = TypeVar("T")

_REST = 9.0  # seconds of rest for each second of work, while others wait for pictures
_LONGEST_REST_S = 20.0
_GIVES_WAY_S = 2.0  # after its rest, for which a line waits until pictures of others are done
_SHORTLY_S = 5.0  # after its last picture a client may come back at any moment
_LOWER = 10  # in the system's steps: about a tenth of a core that somebody else wants
_FEW_LINES = 64  # below which nobody looks for lines that have rested


@dataclass(slots=True)
class _Line:
    """What one client waits for, and how much of it is being done."""

    waiting: deque[tuple["Future[Any]", Callable[[], Any]]] = field(
        default_factory=deque[tuple["Future[Any]", Callable[[], Any]]]
    )
    running: int = 0
    rests_until: float = 0.0
    alarm: threading.Timer | None = None
    alarm_at: float = 0.0


class FairThreads:
    """A pool of threads with a line for each client; safe to use from any thread.

    Args:
        count: Threads.
        per_client: Threads that one client may have at once; one while others wait for
            pictures.
    """

    def __init__(self, count: int = 16, per_client: int = 2) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="mezzotint-pictures")
        self._rested = ThreadPoolExecutor(
            count, thread_name_prefix="mezzotint-rested", initializer=_lower_priority
        )
        self._per_client = per_client
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._drawing: Counter[str] = Counter()
        self._drew_at: dict[str, float] = {}  # of the two clients who drew last
        self._prune_at = _FEW_LINES
        self._is_closed = False

    @contextlib.contextmanager
    def drawing(self, client: str) -> Generator[None]:
        """Say that pictures of a client are on their way until the block ends."""
        with self._lock:
            self._drawing[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._drawing[client] -= 1
                if not self._drawing[client]:
                    del self._drawing[client]
                    self._drew_at.pop(client, None)
                    self._drew_at[client] = time.monotonic()  # the latest last
                    while len(self._drew_at) > 2:
                        del self._drew_at[next(iter(self._drew_at))]
                    for other, line in list(self._lines.items()):
                        if line.waiting:  # perhaps for this
                            self._fill(other, line)

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
            if not line.running and not line.waiting and time.monotonic() >= line.rests_until:
                line.rests_until = 0.0  # it asks for less than it may have
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
                if line.alarm:
                    line.alarm.cancel()
        for future in late:
            if future.set_running_or_notify_cancel():
                future.set_exception(NotReady("the engine is closed"))
        self._pool.shutdown(wait=False)
        self._rested.shutdown(wait=False)

    def _fill(self, client: str, line: _Line) -> None:
        """Give a line the threads that it may have."""
        others = self._are_others_drawing(client)
        most = 1 if others else self._per_client
        now_s = time.monotonic()
        while line.waiting and line.running < most:
            rests_until = line.rests_until
            if line.rests_until and any(other != client for other in self._drawing):
                rests_until += _GIVES_WAY_S
            if others and now_s < rests_until:
                self._call_later(client, line, rests_until - now_s)
                return
            future, work = line.waiting.popleft()
            if future.set_running_or_notify_cancel():
                line.running += 1
                pool = self._rested if others and line.rests_until else self._pool
                pool.submit(self._do, client, line, future, work)
        if not line.running and not line.waiting and now_s >= line.rests_until:
            self._lines.pop(client, None)

    def _are_others_drawing(self, client: str) -> bool:
        """Whether pictures of others are on their way, or were until just now."""
        since = time.monotonic() - _SHORTLY_S
        return any(other != client for other in self._drawing) or any(
            other != client and at > since for other, at in self._drew_at.items()
        )

    def _prune(self) -> None:
        """Forget lines that have rested, each time there are twice as many."""
        if len(self._lines) < self._prune_at:
            return
        now_s = time.monotonic()
        self._lines = {
            client: line for client, line in self._lines.items()
            if line.running or line.waiting or line.rests_until > now_s
        }  # fmt: skip
        self._prune_at = max(_FEW_LINES, 2 * len(self._lines))

    def _call_later(self, client: str, line: _Line, seconds: float) -> None:
        """Look at a line again once it has rested."""
        at = time.monotonic() + seconds
        if line.alarm is not None:
            if at >= line.alarm_at:
                return
            line.alarm.cancel()  # pictures of others are done earlier than they might have been
        line.alarm_at = at
        line.alarm = threading.Timer(seconds, self._wake, (client, line))
        line.alarm.daemon = True
        line.alarm.start()

    def _wake(self, client: str, line: _Line) -> None:
        with self._lock:
            line.alarm = None
            if not self._is_closed:
                self._fill(client, line)

    def _do(self, client: str, line: _Line, future: "Future[Any]", work: Callable[[], Any]) -> None:
        """Do one piece of work, then let the client's next one in."""
        outcome: Any = None
        fault: BaseException | None = None
        began_s = time.thread_time()
        try:
            outcome = work()
        except BaseException as error:  # it belongs to whoever waits
            fault = error
        rest_s = min(_REST * (time.thread_time() - began_s), _LONGEST_REST_S)
        with self._lock:
            line.running -= 1
            if self._are_others_drawing(client):
                line.rests_until = max(line.rests_until, time.monotonic()) + rest_s
            self._fill(client, line)
            self._prune()
        if fault is None:
            future.set_result(outcome)
        else:
            future.set_exception(fault)


def _lower_priority() -> None:
    """Let the calling thread run after others; only Linux has priorities of threads."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        now = os.getpriority(os.PRIO_PROCESS, thread)
        with contextlib.suppress(OSError):  # a sandbox may forbid it; nothing depends on it
            os.setpriority(os.PRIO_PROCESS, thread, min(now + _LOWER, 19))
