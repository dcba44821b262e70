"""Notices: hearing at once what another server wrote, by PostgreSQL's ``LISTEN``.

A notice says where to look and holds nothing else, so that one that is lost costs a second
and no more: everybody who waits looks for itself now and then.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from mezzotint.observe import log

__all__ = ["Notices"]

_PAUSE_S = 0.5  # before a connection that was lost is made again


class Notices:
    """Listens as long as its task runs.

    Args:
        arguments: What ``psycopg`` connects with.
        channel: Name of the channel.
        hear: Called with the kind of each notice and the job that it is about; with ("", "")
            when notices may have been missed.
    """

    def __init__(
        self, arguments: Mapping[str, Any], channel: str, hear: Callable[[str, str], None]
    ) -> None:
        self._arguments = arguments
        self._channel = channel
        self._hear = hear
        self.is_listening = False

    async def listen(self) -> None:
        """Listen until cancelled; a connection that breaks is made again."""
        import psycopg

        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    **self._arguments, autocommit=True
                )
                async with connection:
                    await connection.execute(f'LISTEN "{self._channel}"'.encode())
                    self.is_listening = True
                    self._hear("", "")
                    async for notice in connection.notifies():
                        kind, _, id_ = notice.payload.partition(" ")
                        self._hear(kind, id_)
            except (psycopg.Error, OSError) as error:
                if self.is_listening:
                    log.warning("jobs.not_listening", reason=str(error).strip()[:200])
            finally:
                self.is_listening = False
            await asyncio.sleep(_PAUSE_S)
