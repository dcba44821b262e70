"""MCP on standard input and output: one client, and the service of this process."""

import uuid
from collections.abc import Mapping
from typing import Any

import mezzotint
from mezzotint.cli.session import open_service
from mezzotint.request import GenerationRequest
from mezzotint.serve.mcp.tools import Tell, create_server, draw
from mezzotint.service.base import Service
from mezzotint.settings import Settings
from mezzotint.types import GenerationResult

__all__ = ["serve"]


async def serve(settings: Settings) -> None:
    """Serve one client until it closes standard input."""
    from mcp.server.stdio import stdio_server

    async with open_service(settings) as service, stdio_server() as (reading, writing):
        server = create_server(
            _Local(service), version=mezzotint.__version__, limits=settings.serve.limits.ends
        )
        await server.run(reading, writing, server.create_initialization_options())


class _Local:
    """The service of this process, for one client."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def generate(
        self, request: GenerationRequest, *, use_cache: bool = True, tell: Tell | None = None
    ) -> GenerationResult:
        """Make pictures; whoever wishes to hear of it is told of each step."""
        id_ = f"mcp-{uuid.uuid4().hex}"
        events = self._service.stream(
            request, request_id=id_, use_cache=use_cache, quiet=tell is None
        )
        return await draw(events, request.num_pictures, tell)

    async def plan(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Resolve a request."""
        return await self._service.plan(request)

    async def recipe(self, data: bytes) -> Mapping[str, Any]:
        """Read what a picture says about itself."""
        return await self._service.inspect(data)

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models."""
        return await self._service.models()
