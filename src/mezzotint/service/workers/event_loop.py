"""Event loop: runs the server's coroutines, on uvloop where it exists.

uvloop writes what one turn of the loop sends in one system call, and wakes the loop
once however many threads call: in a process whose threads share an interpreter, that is
most of what a small request costs.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

__all__ = ["run"]


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end in a loop of its own, as :func:`asyncio.run` does."""
    with asyncio.Runner(loop_factory=_factory()) as runner:
        return runner.run(main)


def _factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes loops; None, for asyncio's own, on systems that uvloop leaves out."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
