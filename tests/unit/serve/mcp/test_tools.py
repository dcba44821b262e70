"""The tools of the MCP door, without the SDK."""

import sys

import pytest

from mezzotint.errors import NotReady
from mezzotint.serve.mcp.tools import needs_sdk


def test_without_the_sdk_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mcp.server.lowlevel", None)
    with pytest.raises(NotReady, match=r"pip install 'mezzotint\[mcp\]'"):
        needs_sdk()
