"""Browsers: which requests of web pages are served.

Any web page can make its reader's browser send requests to a server on the same
machine, and may have a name that leads there (DNS rebinding). Browsers say where a
request comes from (``Sec-Fetch-Site`` of Fetch Metadata, ``Origin``) and what name
they asked for (``Host``); clients that are no browsers say neither of the first two
and are served as before. What is not understood is refused.
"""

from collections.abc import Mapping
from urllib.parse import urlsplit

from mezzotint.serve.config import ServeConfig, is_loopback
from mezzotint.serve.errors import Forbidden, MethodNotAllowed

__all__ = ["check_caller", "is_browser", "refuse_drawing_by_get"]

_OWN = ("same-origin", "none")  # the page of this server; typed, or from a bookmark
_PAGE = "/"
_HOW = "the operator may list its origin in serve.cors_origins"


def check_caller(
    headers: Mapping[str, str], *, method: str, path: str, is_local: bool, config: ServeConfig
) -> None:
    """Refuse pages of other origins, and names that a page may have rebound to us.

    Args:
        headers: The request's headers, names in lower case.
        method: HTTP method.
        path: Path without the query.
        is_local: Whether the listener is on a loopback address.
        config: ``cors_origins`` and ``trusted_hosts``.

    Raises:
        Forbidden: If a browser says that the request comes from elsewhere, or the
            server is asked for under a name that is not its own.
    """
    host = headers.get("host")
    if is_local and host is not None:
        _check_host(host, config)
    origin = headers.get("origin")
    if origin is not None and origin in config.cors_origins:
        return
    if origin is not None and _place(origin) != (host or ""):
        raise Forbidden(f"pages of {origin[:80]!r} may not call this server; {_HOW}")
    site = headers.get("sec-fetch-site", "none")
    if site not in _OWN and not _is_link_to_page(headers, method, path):
        raise Forbidden(f"a page of another origin may not call this server ({site[:20]}); {_HOW}")


def _check_host(host: str, config: ServeConfig) -> None:
    """Refuse a name that is neither loopback nor listed.

    Raises:
        Forbidden: If it is another one.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    known = {trusted.lower() for trusted in config.trusted_hosts}
    if not (is_loopback(name) or name in known):
        raise Forbidden(
            f"this server answers to loopback names only, got Host {host[:80]!r}; "
            "the operator may list other names in serve.trusted_hosts"
        )


def _place(origin: str) -> str:
    """Return host and port of an origin, "null" for one that is opaque or cannot be read."""
    try:
        return urlsplit(origin).netloc or "null"
    except ValueError:
        return "null"


def _is_link_to_page(headers: Mapping[str, str], method: str, path: str) -> bool:
    """Whether somebody followed a link to the web page, which does nothing by itself."""
    opens = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    return method == "GET" and path == _PAGE and opens == ("navigate", "document")


def is_browser(headers: Mapping[str, str]) -> bool:
    """Whether a browser sent this: it cannot leave out where the request comes from."""
    return "sec-fetch-site" in headers or "sec-fetch-mode" in headers


def refuse_drawing_by_get(method: str, headers: Mapping[str, str]) -> None:
    """Refuse to draw for an ``<img>``, a link or a preload.

    TorchServe takes predictions by any method, and clients that are no browsers may go
    on to send GET.

    Raises:
        MethodNotAllowed: If a browser sends GET, or anybody HEAD.
    """
    if method == "HEAD" or (method == "GET" and is_browser(headers)):
        raise MethodNotAllowed(
            "predictions are made by POST or PUT; GET is for clients outside browsers",
            allowed="POST, PUT",
        )
