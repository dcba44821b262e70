"""Endings: the one event that a request ends with, and what it means to whoever waits."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from mezzotint.errors import Cancelled, WorkFailed
from mezzotint.observe import metrics
from mezzotint.types import Cancelled as CancelledEvent
from mezzotint.types import Event, Failed, Finished, GenerationResult

__all__ = ["ENDINGS", "follow", "result_of", "timed"]

ENDINGS = (Finished, Failed, CancelledEvent)
"""Events after which nothing else comes."""


def result_of(event: Event) -> GenerationResult | None:
    """Return the result of a good ending, None for what is no ending.

    Raises:
        MezzotintError: For a bad ending.
    """
    if isinstance(event, Finished):
        return event.result
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, CancelledEvent):
        raise Cancelled("the request was cancelled")
    return None


async def follow(
    events: AsyncIterator[Event], observe: Callable[[Event], Any] | None = None
) -> GenerationResult:
    """Follow a request's events to its ending.

    Args:
        events: What ``stream`` gives; closed in the end, which cancels a request that
            is still under way.
        observe: Sees each event first, the ending too.

    Raises:
        MezzotintError: For a bad ending, or for none.
    """
    async with contextlib.AsyncExitStack() as stack:
        close = getattr(events, "aclose", None)
        if close is not None:
            stack.push_async_callback(close)
        async for event in events:
            if observe is not None:
                observe(event)
            result = result_of(event)
            if result is not None:
                return result
    raise WorkFailed("the request ended without an ending")


def timed(sink: Callable[[Event], None], model: str, since: float) -> Callable[[Event], None]:
    """Return a sink that also measures how long a request took, however it ended.

    Args:
        sink: Where events go.
        model: The plan's model.
        since: When the request came, of :func:`time.monotonic`.
    """

    def hear(event: Event) -> None:
        if isinstance(event, ENDINGS):
            metrics.measure("mezzotint_request_seconds", time.monotonic() - since, model=model)
        sink(event)

    return hear
