"""Page: the web page at ``/``, one self-contained file.

It talks to the native dialect like any other client. Its script and style are
allowed by their digests, so nothing else can run in it.
"""

import base64
import functools
import hashlib
import re
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.serve.front import Front

__all__ = ["icon", "index"]

_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@functools.cache
def _page() -> tuple[bytes, str]:
    """Return the page and its content security policy."""
    text = (resources.files("mezzotint.serve") / "web" / "index.html").read_text("utf-8")

    def digests(tag: str) -> str:
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        marks = (base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in bodies)
        return " ".join(f"'sha256-{mark}'" for mark in marks) or "'none'"

    return text.encode(), _POLICY.format(script=digests("script"), style=digests("style"))


async def index(front: Front, http: Request) -> Response:
    """Answer with the page."""
    body, policy = _page()
    headers = {"Content-Security-Policy": policy, "Cache-Control": "no-cache"}
    return Response(body, headers=headers, media_type="text/html; charset=utf-8")


async def icon(front: Front, http: Request) -> Response:
    """Answer with the icon."""
    body = (resources.files("mezzotint.serve") / "web" / "favicon.svg").read_bytes()
    headers = {"Cache-Control": "public, max-age=86400"}
    return Response(body, headers=headers, media_type="image/svg+xml")
