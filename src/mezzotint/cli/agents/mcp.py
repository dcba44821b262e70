"""The verb ``mcp``: the tools of an MCP client on standard input and output."""

import typer

from mezzotint.cli.session import load_settings, run

__all__ = ["mcp"]


def mcp(context: typer.Context) -> None:
    """Offer generate, plan, verify and models to an MCP client over stdin and stdout.

    Over HTTP the same tools are at /mcp of a server.
    """
    from mezzotint.cli.agents.stdio import serve
    from mezzotint.serve.mcp.tools import needs_sdk

    needs_sdk()
    run(serve(load_settings(context).settings))
