"""Endings: the one event that a request ends with, and what it means to whoever waits."""

import time
from collections.abc import Callable

from mezzotint.errors import Cancelled
from mezzotint.observe import metrics
from mezzotint.types import Cancelled as CancelledEvent
from mezzotint.types import Event, Failed, Finished, GenerationResult

__all__ = ["ENDINGS", "result_of", "timed"]

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
