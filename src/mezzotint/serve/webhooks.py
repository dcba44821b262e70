"""Webhooks: telling an address that the operator allows what became of a prediction.

An address that a client names is called from inside the operator's network, so only
hosts of ``serve.webhook_hosts`` are, redirects are not followed, and what the address
answers is shown to nobody. Each message is signed as Replicate signs its own: HMAC-SHA256
over ``id.timestamp.body`` with a secret that each caller may read.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import http.client
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from mezzotint.observe import log
from mezzotint.serve.config import ServeConfig
from mezzotint.serve.errors import WrongField

__all__ = ["check_webhook", "secret_of", "send", "signed_headers"]

_TIMEOUT_S = 5.0
_MOST_S = 10.0  # for one call, however slowly its answer comes in
_CALLERS = ThreadPoolExecutor(8, "webhook")  # so that slow addresses hold up nothing else
_TRIES = 4
_PAUSE_S = 0.5
_PORTS = {"http": 80, "https": 443}


def check_webhook(url: object, config: ServeConfig, field: str) -> str:
    """Return an address that may be called.

    Raises:
        WrongField: If it is no ``http`` or ``https`` address, or its host is not in
            ``serve.webhook_hosts``.
    """
    text = url if isinstance(url, str) else ""
    try:
        parts = urlsplit(text)
        host, port = (parts.hostname or "").lower(), parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    has_user = parts.username is not None or parts.password is not None
    is_printable = text.isascii() and text.isprintable() and " " not in text
    if parts.scheme not in _PORTS or not host or has_user or not is_printable:
        raise WrongField(
            f"{field} must be an http or https address without a user, got {str(url)[:80]!r}",
            field=field,
            value=str(url)[:80],
        )
    known = {name.lower() for name in config.webhook_hosts}
    shown = f"[{host}]" if ":" in host else host
    number = _PORTS[parts.scheme] if port is None else port
    if f"{shown}:{number}" in known or (port is None and shown in known):
        return text
    raise WrongField(
        f"{field}: this server calls no address at {shown}:{number}; the operator may list it in "
        "serve.webhook_hosts",
        field=field,
        value=text[:80],
        allowed=", ".join(sorted(known)) or "none",
    )


def secret_of(key: bytes, client: str) -> str:
    """Return the secret that signs what a client's webhooks get.

    Args:
        key: The server's own secret, the same on all servers of a cluster.
        client: Name of the caller.

    Returns:
        ``whsec_`` and 32 bytes in base64.
    """
    own = hmac.digest(key, client.encode(), hashlib.sha256)
    return "whsec_" + base64.b64encode(own).decode("ascii")


def signed_headers(secret: str, id_: str, body: bytes) -> dict[str, str]:
    """Return the headers that prove who sent a message, and when."""
    stamp = str(int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.digest(key, f"{id_}.{stamp}.".encode() + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "webhook-id": id_,
        "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(signed).decode("ascii"),
    }


async def send(url: str, body: bytes, secret: str, *, id_: str | None = None) -> bool:
    """Send a message, again where it is not taken; True once it is.

    Every try has the same id, drawn if none is given, so that whoever gets two knows them
    for one.
    """
    id_ = id_ or f"msg_{secrets.token_hex(12)}"
    for number in range(_TRIES):
        if number:
            await asyncio.sleep(_PAUSE_S * 4 ** (number - 1))
        try:
            status = await asyncio.get_running_loop().run_in_executor(
                _CALLERS, _post, url, body, signed_headers(secret, id_, body)
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            log.warning("webhook.failed", host=urlsplit(url).netloc, reason=type(error).__name__)
            continue
        if 200 <= status < 300:
            return True
        log.warning("webhook.refused", host=urlsplit(url).netloc, status=status)
        if status < 500 and status != 429:
            return False
    return False


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """Send one POST; redirects are an answer like any other."""
    parts = urlsplit(url)
    is_secure = parts.scheme == "https"
    connect = http.client.HTTPSConnection if is_secure else http.client.HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    clock = threading.Timer(_MOST_S, _cut, [connection])
    clock.daemon = True
    clock.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, dict(headers))
        return connection.getresponse().status
    finally:
        clock.cancel()
        connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    """End what is under way on a connection; whoever waits for it is told that it has ended."""
    with contextlib.suppress(OSError, AttributeError):  # not connected yet, or closed by now
        connection.sock.shutdown(socket.SHUT_RDWR)
