"""Retry: what a full disk refused is done again until it succeeds.

A job's pictures and endings stay in memory meanwhile, so that a disk that was full
for a while costs time and nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mezzotint.errors import MezzotintError
from mezzotint.observe import log

__all__ = ["StorageRetry"]

T = TypeVar("T")
_PAUSE_S = 1.0


class StorageRetry:
    """Repeats work that a full disk, or a database that is away, refused."""

    def __init__(self) -> None:
        self._waiting: dict[object, str] = {}
        self._is_over = False

    @property
    def trouble(self) -> str:
        """Why work is being repeated at the moment, "" if none is."""
        return next(iter(self._waiting.values()), "")

    def end(self) -> None:
        """Let the next refusal through: nobody waits for room any more."""
        self._is_over = True

    async def until_done(
        self, work: Callable[[], Awaitable[T]], refusal: type[MezzotintError]
    ) -> T:
        """Do some work again and again until it succeeds.

        Args:
            work: What to do; it must be harmless to do it again.
            refusal: The error that means "not now".

        Raises:
            MezzotintError: The refusal, once :meth:`end` was called.
        """
        token = object()
        try:
            while True:
                try:
                    return await work()
                except refusal as error:
                    if self._is_over:
                        raise
                    if not self._waiting:
                        log.error("jobs.no_room", reason=str(error))
                    self._waiting[token] = str(error)
                    await asyncio.sleep(_PAUSE_S)
        finally:
            self._waiting.pop(token, None)
