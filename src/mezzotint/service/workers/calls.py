"""Calls: plain questions to the engine's process, and what becomes of them when it dies.

A plain call, such as reading a stranger's picture, is sent again after one death and
refused after the second that it was there at: unlike a picture half made, there is
little to lose, and nothing that could run it alone.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mezzotint.errors import WorkFailed
from mezzotint.service.workers.messages import CallMethod

__all__ = ["Call", "count_death", "in_order"]

_WITH_DATA = ("inspect", "preprocess", "upscale", "grid", "handle", "plan")


@dataclass(slots=True)
class Call:
    """One plain call under way."""

    message: CallMethod
    answer: "asyncio.Future[Any]"
    deaths: int = 0


def count_death(calls: Iterable[Call], *, most: int) -> None:
    """Count a death of the process; fail the calls that were there at ``most`` of them."""
    for call in calls:
        call.deaths += 1
        if call.deaths >= most and not call.answer.done():
            method = call.message.method
            reason = f"the engine died {call.deaths} times while it answered {method}"
            call.answer.set_exception(WorkFailed(reason))


def in_order(calls: Iterable[Call]) -> list[Call]:
    """Return the calls that still wait; last those with a client's data, any of which may kill."""
    waiting = [call for call in calls if not call.answer.done()]
    return sorted(waiting, key=lambda call: call.message.method in _WITH_DATA)
