"""Endings: the one event that a request ends with, and what it means to whoever waits."""

from mezzotint.errors import Cancelled
from mezzotint.types import Cancelled as CancelledEvent
from mezzotint.types import Event, Failed, Finished, GenerationResult

__all__ = ["ENDINGS", "result_of"]

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
