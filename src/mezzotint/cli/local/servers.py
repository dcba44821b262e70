"""Servers: a running server of this home draws what the command line asks for.

It has its models in memory already, so a picture comes seconds sooner and no model is loaded
twice. It is found by the lock that it holds on the home folder, on loopback alone, and stands
behind the same port as the service in this process.
"""

import http.client
import ipaddress
import json
import os
import urllib.parse
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from mezzotint.files import is_there
from mezzotint.request import GenerationRequest
from mezzotint.types import Event

__all__ = ["ServedElsewhere", "find_server", "suits"]

_ANSWERS_S = 0.5


def find_server(home: Path) -> str:
    """Return the address of the ready server that has this home, "" for none on loopback."""
    from mezzotint.service.jobs.ownership import server_of

    url = server_of(home)
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not _is_loopback(parts.hostname or ""):
        return ""
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_ANSWERS_S)
    try:
        connection.request("GET", "/health/ready")
        answer = connection.getresponse()
        return url if answer.status == http.client.OK and json.loads(answer.read()) else ""
    except (OSError, ValueError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def suits(request: GenerationRequest) -> bool:
    """Whether a server can know what a request names: names of the store, and no paths."""
    from mezzotint.techniques.walking import names_of

    names = [name for _, _, name in names_of(request)]
    return not any(os.sep in name or "/" in name or is_there(Path(name)) for name in names)


class ServedElsewhere:
    """A server in the place of the service of this process.

    Args:
        url: Its address.
        key: API key, where it needs one.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        from mezzotint.client.asynchronous import AsyncClient

        self.url = url
        self._client = AsyncClient(url, key)

    async def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        use_cache: bool = True,
        preview_every: int = 0,
    ) -> AsyncGenerator[Event]:
        """Run one request there and yield its events; closing early cancels it."""
        events: Any = self._client.stream(request, use_cache=use_cache)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def plan(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Resolve a request there without running it."""
        return await self._client.plan(request)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
