"""Access: the job store from an event loop, and what to do while it is away."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import exc

from mezzotint.errors import NotReady
from mezzotint.observe import log
from mezzotint.service.jobs.retry import StorageRetry
from mezzotint.service.jobs.store import JobStore

__all__ = ["StoreAccess", "reason_of"]

_AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError)
T = TypeVar("T")


class StoreAccess:
    """Runs the store's blocking work in a thread of its own, one piece after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mezzotint-jobs")
        self._store: JobStore | None = None
        self.retry = StorageRetry()

    @property
    def store(self) -> JobStore:
        """The store, once it is open."""
        assert self._store is not None  # noqa: S101 - whoever asks has opened it
        return self._store

    async def open(self, make: Callable[[], JobStore]) -> None:
        """Open the store."""
        self._store = await self._run(make)

    async def close(self) -> None:
        """Close the store, and the thread."""
        if self._store is not None:
            await self._run(self._store.close)
        self._thread.shutdown(wait=True)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def do(self, work: Callable[[], T]) -> T:
        """Run database work.

        Raises:
            NotReady: If the database does not answer, or takes nothing (a full disk).
        """
        try:
            return await self._run(work)
        except _AWAY as error:
            reason = reason_of(error)
            if self._store is not None and not self._store.is_sqlite:
                log.error("jobs.store_away", reason=reason)
                reason = "the database does not answer"  # where it is, is no client's business
            raise NotReady(f"the job store cannot be used: {reason}") from None

    async def insist(self, work: Callable[[], T]) -> T:
        """Run database work of a job under way until it succeeds.

        Raises:
            NotReady: If the server stops before it does.
        """
        return await self.retry.until_done(lambda: self.do(work), NotReady)


def reason_of(error: exc.SQLAlchemyError) -> str:
    """Return what a database said, in one line."""
    said = str(getattr(error, "orig", None) or error).strip()
    return said.splitlines()[0] if said else type(error).__name__
