"""Kept: what the durable queue answers of the jobs it keeps, without running any."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from mezzotint.service.jobs.access import StoreAccess
from mezzotint.service.jobs.results import ResultFiles
from mezzotint.service.jobs.rows import ENDED, Job

__all__ = ["KeptJobs"]

_OPEN = ("queued", "running")
_STATUSES = {"open": _OPEN, "ended": ENDED, "all": (*_OPEN, *ENDED)}


class KeptJobs:
    """Finding and deleting jobs; the queue itself says where they are.

    Args:
        access: The store.
        results: Where pictures are kept.
    """

    def __init__(self, access: StoreAccess, results: ResultFiles) -> None:
        self._access = access
        self.results = results

    async def page(
        self,
        *,
        client: str | None = None,
        status: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> list[Job]:
        """Return jobs, newest first."""
        return await self._access.do(
            lambda: self._access.store.page(client=client, status=status, limit=limit, after=after)
        )

    async def browse(
        self,
        *,
        client: str | None,
        which: str,
        words: Sequence[str] = (),
        limit: int = 60,
        after: str | None = None,
    ) -> list[Job]:
        """Return jobs ("open", "ended" or "all") whose texts hold every word, newest first."""
        statuses = _STATUSES[which]
        return await self._access.do(
            lambda: self._access.store.browse(
                client=client, statuses=statuses, words=words, limit=limit, after=after
            )
        )

    async def pictures(
        self, *, client: str | None, limit: int = 500, after: str | None = None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """Return short descriptions of the pictures of ended jobs, and where to go on."""
        return await self._access.do(
            lambda: self._access.store.pictures(
                client=client, statuses=ENDED, limit=limit, after=after
            )
        )

    async def mark(self, id_: str, index: int, marks: Mapping[str, Any]) -> None:
        """Keep a star, a rating and boards of a picture."""
        await self._access.do(lambda: self._access.store.mark(id_, index, marks))

    async def forget(self, id_: str) -> bool:
        """Delete a job that has ended, with its pictures; False if it has not."""
        gone = await self._access.do(lambda: self._access.store.delete(id_))
        for digest in gone or ():
            await asyncio.to_thread(self.results.remove, digest)
        return gone is not None

    async def due_webhook(self) -> tuple[str, str, int] | None:
        """Take one address that is to be told of a job's ending.

        Returns:
            The job's id, the address and how often it was tried; None if nothing is due.
            It is nobody else's for a few minutes, and due again if it is not settled.
        """
        return await self._access.do(self._access.store.due_webhook)

    async def settle_webhook(self, id_: str, *, again_s: float | None) -> None:
        """Say when an address is to be told again; None if it need not be."""
        await self._access.do(lambda: self._access.store.settle_webhook(id_, again_s))
