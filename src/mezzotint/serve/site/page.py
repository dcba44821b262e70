"""Page: the web application at ``/``, built from ``web/`` into the folder ``serve/web``.

It talks to the native dialect like any other client. Its policy allows scripts and
styles of this server alone, none of them within the page, and no request to anywhere
else. Files go out compressed where the client takes that, with a mark (``ETag``) by
which a browser asks whether they changed.
"""

import functools
import gzip
import hashlib
import re
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.serve.errors import NotFound
from mezzotint.serve.front import Front

__all__ = ["asset", "icon", "index"]

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_NAME = re.compile(r"[a-z][a-z0-9-]*\.(?:js|css|svg|html|webp)", re.ASCII)
_KINDS = {
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "html": "text/html; charset=utf-8",
    "webp": "image/webp",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A built file as it goes out."""

    plain: bytes
    packed: bytes
    mark: str
    kind: str


@functools.cache
def _file(name: str) -> _File:
    """Read and compress a built file, once.

    Raises:
        NotFound: If the page has no such file.
    """
    path = resources.files("mezzotint.serve") / "web" / name
    if not _NAME.fullmatch(name) or not path.is_file():
        raise NotFound(f"the page has no file {name[:80]!r}")
    data = path.read_bytes()
    mark = hashlib.sha256(data).hexdigest()[:32]
    return _File(data, gzip.compress(data, 9, mtime=0), mark, _KINDS[name.rpartition(".")[2]])


def _answer(http: Request, name: str, cache: str) -> Response:
    """Answer with a built file, compressed if that is taken; 304 if the client has it."""
    file = _file(name)
    packs = "gzip" in http.headers.get("accept-encoding", "").lower()
    mark = f'"{file.mark}{"-gzip" if packs else ""}"'
    headers = {
        "Content-Security-Policy": _POLICY,
        "Cache-Control": cache,
        "ETag": mark,
        "Vary": "Accept-Encoding",
    }
    if http.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    if packs:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if packs else file.plain, headers=headers, media_type=file.kind)


async def index(front: Front, http: Request) -> Response:
    """Answer with the page."""
    return _answer(http, "index.html", "no-cache")


async def asset(front: Front, http: Request) -> Response:
    """Answer with a script or a style of the page."""
    return _answer(http, http.path_params["name"], "no-cache")


async def icon(front: Front, http: Request) -> Response:
    """Answer with the icon."""
    return _answer(http, "favicon.svg", "public, max-age=86400")
