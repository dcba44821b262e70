"""The verb ``mcp``: the tools of an MCP client on standard input and output."""

import uuid
from collections.abc import Mapping
from typing import Any

import typer

import mezzotint
from mezzotint.cli.session import load_settings, open_service, run
from mezzotint.request import GenerationRequest
from mezzotint.service.base import Service
from mezzotint.settings import Settings
from mezzotint.types import GenerationResult

__all__ = ["mcp"]


def mcp(context: typer.Context) -> None:
    """Offer generate, plan, verify and models to an MCP client over stdin and stdout."""
    from mezzotint.serve.mcp.tools import needs_sdk

    needs_sdk()
    run(_serve(load_settings(context).settings))


async def _serve(settings: Settings) -> None:
    """Serve one client until it closes standard input."""
    from mcp.server.stdio import stdio_server

    from mezzotint.serve.mcp.tools import create_server

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
        self, request: GenerationRequest, *, use_cache: bool = True
    ) -> GenerationResult:
        """Make pictures."""
        id_ = f"mcp-{uuid.uuid4().hex}"
        return await self._service.generate(request, request_id=id_, use_cache=use_cache)

    async def plan(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Resolve a request."""
        return await self._service.plan(request)

    async def recipe(self, data: bytes) -> Mapping[str, Any]:
        """Read what a picture says about itself."""
        return await self._service.inspect(data)

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models."""
        return await self._service.models()
