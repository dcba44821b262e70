"""The port between the doors and the household.

A door (HTTP dialect, command line, Ray ingress) knows this protocol and nothing
behind it. ``local`` runs the engine in this process, ``worker`` in a supervised
process of its own, ``fake`` answers without tensors so that doors are tested in
milliseconds.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from mezzotint.request import GenerationRequest
from mezzotint.types import Event, GenerationResult

__all__ = ["GenerationService"]


class GenerationService(Protocol):
    """Turns requests into pictures; safe to call from any task of one event loop.

    ``request_id`` is chosen by the door (any unique text); events and results
    carry it. ``client`` names who asks, for fairness; "" is one shared client.
    """

    async def generate(
        self, request: GenerationRequest, *, request_id: str, client: str = ""
    ) -> GenerationResult:
        """Run one request to its end.

        Raises:
            MezzotintError: The one way in which the request ended, if not well.
        """
        ...

    def stream(
        self, request: GenerationRequest, *, request_id: str, client: str = ""
    ) -> AsyncIterator[Event]:
        """Run one request and yield its events; the last one is its ending.

        Closing the iterator early cancels the request at the next step.
        """
        ...

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; False if there is no such running request."""
        ...

    async def plan(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Resolve a request without running it: plan, warnings, predicted cost."""
        ...

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models as plain data: name, digest, family, defaults, limits, ready."""
        ...

    async def health(self) -> Mapping[str, Any]:
        """Tell ``{"ready": bool, "live": bool, "queue": int, ...}`` without waiting."""
        ...

    async def close(self) -> None:
        """Finish what is being stepped, refuse the rest, free everything."""
        ...
