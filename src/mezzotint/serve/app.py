"""App: the ASGI application of each listener.

One door for every exchange: it names the request, identifies the caller, bounds
the body, routes to a dialect, renders errors in the dialect's words, and writes
headers, metrics and one access line. Dialects behind it never see an exception
of the transport.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mezzotint.errors import MezzotintError, NotReady
from mezzotint.observe import log, spans
from mezzotint.serve.access import AccessLog
from mezzotint.serve.auth import Caller, KeyRing
from mezzotint.serve.browsers import check_caller
from mezzotint.serve.config import is_loopback
from mezzotint.serve.dialects import a1111, huggingface, native, openai, torchserve
from mezzotint.serve.dialects.comfyui import dialect as comfyui
from mezzotint.serve.dialects.comfyui.events import serve_socket
from mezzotint.serve.dialects.hosted import fal, replicate
from mezzotint.serve.errors import (
    ClientGone,
    MethodNotAllowed,
    NotFound,
    NothingHere,
    describe,
)
from mezzotint.serve.front import Front
from mezzotint.serve.mcp import door as mcp
from mezzotint.serve.metrics import ServerMetrics
from mezzotint.serve.schema import document
from mezzotint.serve.site import page
from mezzotint.serve.streaming import BoundedBody
from mezzotint.serve.wire import Dialect, Endpoint, Listener, Visit, json_response

__all__ = ["DIALECTS", "Doorway", "create_app", "endpoints"]

_REQUEST_ID = re.compile(r"^[\w.:/+=-]{1,128}$", re.ASCII)
_ABSOLUTE = re.compile(r"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
_METHODS = "GET, POST, PUT, DELETE, OPTIONS"
_STAGES = ("queue", "encode", "denoise", "decode", "gate", "write")
_NO_TIMING = ", ".join(f"{stage};dur=0.000" for stage in _STAGES).encode()
_SECURE = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cache-control": b"no-store",
}

DIALECTS: tuple[Dialect, ...] = (
    torchserve.DIALECT,
    torchserve.OIP,
    replicate.DIALECT,
    fal.DIALECT,
    comfyui.DIALECT,
    mcp.DIALECT,
    openai.DIALECT,
    a1111.DIALECT,
    huggingface.DIALECT,
    native.DIALECT,
)
"""In the order in which they may claim a path; native takes what is left."""
_NOBODYS = torchserve.DIALECT  # its clients ask for paths that no dialect has


def endpoints(listener: Listener) -> tuple[Endpoint, ...]:
    """Return the endpoints of one listener."""
    return tuple(e for d in DIALECTS for e in d.endpoints if e.listener == listener)


async def _openapi(front: Front, http: Request) -> Response:
    """Answer with the OpenAPI document of the generation listener."""
    version = str(front.memory.get("version", ""))
    shown = endpoints("generation")
    secured = bool(front.memory.get("secured"))
    limits = front.config.limits.ends
    return json_response(
        document(shown, limits=limits, title="Mezzotint", version=version, secured=secured)
    )


def _pages() -> tuple[Endpoint, ...]:
    return (
        Endpoint(method="GET", path="/", handler=page.index, summary="The web page", scope=None),
        Endpoint(
            method="GET",
            path="/web/{name}",
            handler=page.asset,
            summary="A file of the page",
            scope=None,
            answers={kind: {} for kind in ("text/javascript", "text/css", "image/webp")},
        ),
        Endpoint(
            method="GET", path="/favicon.svg", handler=page.icon, summary="The icon", scope=None
        ),
        Endpoint(
            method="GET", path="/openapi.json", handler=_openapi, summary="This API", scope=None
        ),
    )


def create_app(
    front: Front,
    keys: KeyRing,
    *,
    listener: Listener = "generation",
    metrics: ServerMetrics | None = None,
) -> "Doorway":
    """Build the application of one listener.

    Args:
        front: What stands between the doors and the service.
        keys: Who may call.
        listener: Which endpoints.
        metrics: Where answers are counted; shared between the listeners.
    """
    metrics = metrics or ServerMetrics()
    front.memory |= {"metrics": metrics, "secured": not keys.is_open, "keys": keys}
    front.memory.setdefault("access", AccessLog())
    return Doorway(front, keys, listener, metrics)


class Doorway:
    """The ASGI application of one listener."""

    def __init__(
        self, front: Front, keys: KeyRing, listener: Listener, metrics: ServerMetrics
    ) -> None:
        self._front = front
        self._keys = keys
        self._listener: Listener = listener
        self._metrics = metrics
        served = endpoints(listener) + (_pages() if listener == "generation" else ())
        self._router = Router(
            [Route(e.path, self._handler(e), methods=[e.method]) for e in served],
            redirect_slashes=False,
            default=_nothing_here,
        )
        self._visits = 0
        self._is_local = is_loopback(front.config.listeners()[listener][0])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange."""
        if scope["type"] == "websocket":
            await self._serve_socket(scope, receive, send)
            return
        if scope["type"] != "http":
            await _lifespan(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        _take_origin_form(scope, headers)
        offered = headers.get("x-request-id", "")
        request_id = offered if _REQUEST_ID.match(offered) else f"req-{secrets.token_hex(12)}"
        here = Visit(request_id=request_id, listener=self._listener)
        scope["visit"], scope["app"] = here, self
        with (
            log.request(request_id),
            spans.remote_parent(headers),
            spans.span("http", method=scope["method"], listener=self._listener),
        ):
            await self._serve(scope, receive, send, headers=headers, here=here)

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        headers: Mapping[str, str],
        here: Visit,
    ) -> None:
        """Serve one exchange; every error becomes an answer in the dialect's words."""
        began = time.monotonic()
        dialect = self._dialect(scope["path"])
        if dialect.name == _NOBODYS.name and scope["path"].endswith("/"):  # as TorchServe has it
            scope["path"] = scope["path"].rstrip("/") or "/"
        scope["path"] = _below(dialect, scope["path"])
        here.dialect = dialect.name
        body = scope["bounds"] = BoundedBody(receive, self._front.config.limits, headers)
        answer = _Answer(send, here, body, self._cors(headers), self._front)
        try:
            body.check()
            check_caller(
                headers,
                method=scope["method"],
                path=scope["path"],
                is_local=self._is_local,
                config=self._front.config,
            )
            if self._preflight(scope, headers):
                await Response(status_code=204)(scope, body, answer)
            elif scope["method"] == "OPTIONS" and scope["path"] == "*":  # RFC 9110: about all of it
                await Response(status_code=204, headers={"allow": _METHODS})(scope, body, answer)
            else:
                here.caller = self._keys_or_open(headers, scope)
                await self._router(scope, body, answer)
        except (ClientGone, ClientDisconnect):
            answer.status = 499
        except HTTPException as error:
            failure = MethodNotAllowed(f"{scope['method']} is not allowed here")
            failure = failure if error.status_code == 405 else NotFound("nothing is here")
            await answer.error(dialect, failure, scope, body)
        except NothingHere as error:
            owner = dialect if dialect is not native.DIALECT or _is_ours(scope) else _NOBODYS
            await answer.error(owner, error, scope, body)
        except Exception as error:  # the border to the client: a status, whatever it was
            if describe(error).status == 500:
                log.error("http.failed", exception=error, path=scope["path"])
            await answer.error(dialect, error, scope, body)
        finally:
            seconds = time.monotonic() - began
            self._metrics.answered(here, answer.status, seconds)
            _write_access(self._front.memory["access"], scope, here, answer.status, seconds)

    async def _serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one web socket as one of the caller's event streams; refusals are HTTP answers."""
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        limits, meter, caller = self._front.config.limits, self._front.meter, None
        path = _below(comfyui.DIALECT, scope["path"])
        await receive()
        try:
            if self._listener != "generation" or path != "/ws":
                raise NothingHere("no web socket is here")
            check_caller(
                headers,
                method="GET",
                path=scope["path"],
                is_local=self._is_local,
                config=self._front.config,
            )
            client = scope.get("client")
            asked = self._keys.identify(headers, client[0] if client else "")
            asked.require("generate")
            await self._front.shared.count(asked)
            meter.take(asked, "event streams", limits.streams)
            caller = asked
            await serve_socket(self._front, caller, scope, receive, send)
        except (MezzotintError, OSError) as error:  # OSError: the client left while we sent
            log.info("socket.closed", reason=type(error).__name__)
            if caller is None:
                owner = comfyui.DIALECT if path == "/ws" else _NOBODYS
                refusal = owner.render(describe(error), f"req-{secrets.token_hex(12)}")
                await refusal(scope, receive, send)
        finally:
            if caller is not None:
                meter.give(caller, "event streams")

    def _handler(self, endpoint: Endpoint) -> Any:
        """Wrap an endpoint: its scope first, then its handler."""

        async def handle(http: Request) -> Any:
            here: Visit = http.scope["visit"]
            if endpoint.scope is not None:
                if here.caller is None:
                    address = http.client.host if http.client else ""
                    here.caller = self._keys.identify(http.headers, address)
                here.caller.require(endpoint.scope)
                await self._front.shared.count(here.caller)
                if endpoint.body_bytes is not None:
                    http.scope["bounds"].allow(endpoint.body_bytes(self._front.config.limits))
                return await self._answer(endpoint, http, here.caller)
            return await endpoint.handler(self._front, http)

        return handle

    async def _answer(self, endpoint: Endpoint, http: Request, caller: Caller) -> Any:
        """Answer as one of the requests that the caller, and all callers, may have open."""
        limits, meter = self._front.config.limits, self._front.meter
        if self._visits >= limits.connections:
            raise NotReady(f"{limits.connections} requests are open already")
        meter.take(caller, "requests", limits.visits)
        self._visits += 1

        def leave() -> None:
            self._visits -= 1
            meter.give(caller, "requests")

        try:
            response = await endpoint.handler(self._front, http)
        except BaseException:  # cancelled too: the visit is over; it goes on
            leave()
            raise
        return _Leaving(response, leave)

    def _keys_or_open(self, headers: Mapping[str, str], scope: Scope) -> Any:
        """Identify the caller where no key is needed; else the endpoint asks for one."""
        if not self._keys.is_open:
            return None
        client = scope.get("client")
        return self._keys.identify(headers, client[0] if client else "")

    def _dialect(self, path: str) -> Dialect:
        if self._listener != "generation":
            return torchserve.DIALECT
        return next((d for d in DIALECTS if d.pattern.match(path)), native.DIALECT)

    def _cors(self, headers: Mapping[str, str]) -> dict[bytes, bytes]:
        origin = headers.get("origin", "")
        if origin not in self._front.config.cors_origins:
            return {}
        return {
            b"access-control-allow-origin": origin.encode("latin-1"),
            b"vary": b"Origin",
            b"access-control-allow-methods": _METHODS.encode(),
            b"access-control-allow-headers": b"authorization, content-type, idempotency-key, "
            b"last-event-id, x-api-key, x-request-id, cache-control",
            b"access-control-expose-headers": b"x-request-id, server-timing, x-cache, retry-after",
            b"cross-origin-resource-policy": b"cross-origin",
        }

    def _preflight(self, scope: Scope, headers: Mapping[str, str]) -> bool:
        return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


class _Leaving:
    """A response that is followed by something, however it ends."""

    def __init__(self, response: ASGIApp, leave: Callable[[], None]) -> None:
        self._response = response
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await self._response(scope, receive, send)
        finally:
            self._leave()


def _write_access(kept: AccessLog, scope: Scope, here: Visit, status: int, seconds: float) -> None:
    """Write one line, and keep it; never a prompt, never a key, never a query."""
    told = {
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "seconds": round(seconds, 6),
        "dialect": here.dialect,
        "client": here.caller.name if here.caller is not None else "",
        "model": here.model,
        "cache": here.cache,
    }
    log.info("http.answered", **told)
    kept.note(here.request_id, **told)


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    """Start and stop with nothing to do."""
    for moment in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})


async def _nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    raise NothingHere(f"nothing is at {scope['path'][:200]!r}")


def _take_origin_form(scope: Scope, headers: dict[str, str]) -> None:
    """Take a target in absolute form for its path; its host counts (RFC 9112, section 3.2.2)."""
    target = _ABSOLUTE.match(scope["path"])
    if target is not None:
        headers["host"], scope["path"] = target[1], target[2] or "/"


def _below(dialect: Dialect, path: str) -> str:
    """Return a path without the prefix that the dialect's paths may stand below."""
    lead = f"{dialect.prefix}/"
    return path[len(dialect.prefix) :] if dialect.prefix and path.startswith(lead) else path


def _is_ours(scope: Scope) -> bool:
    """Whether a path without an endpoint stands among those of the native API."""
    return scope["path"].startswith(("/v1/", "/health/", "/runs"))


class _Answer:
    """Adds the headers every answer has, and remembers how it went."""

    def __init__(
        self, send: Send, here: Visit, body: BoundedBody, cors: dict[bytes, bytes], front: Front
    ) -> None:
        self._send = send
        self._here = here
        self._body = body
        self._cors = cors
        self._front = front
        self.status = 500
        self.started = False

    async def __call__(self, message: Message) -> None:
        """Send one message."""
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            message = {**message, "headers": self._headers(list(message.get("headers", [])))}
        elif not self._body.is_complete and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._body.discard()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        present = {name.lower() for name, _ in headers}
        ours = {
            **_SECURE,
            **self._cors,
            b"x-request-id": self._here.request_id.encode(),
            b"x-cache": self._here.cache.encode(),
            b"server-timing": self._timing(),
        }
        # What is left of a body will not be read, and where an ambiguous one ends is unsure.
        if not self._body.is_complete or self._body.is_ambiguous:
            ours[b"connection"] = b"close"
        return headers + [(k, v) for k, v in ours.items() if k not in present]

    def _timing(self) -> bytes:
        timings = self._here.timings
        if not timings:
            return _NO_TIMING
        totals: dict[str, float] = {
            stage: sum(getattr(t, f"{stage}_s") for t in timings) * 1000.0 for stage in _STAGES
        }
        totals["queue"] = max(t.queue_s for t in timings) * 1000
        return ", ".join(f"{stage};dur={ms:.3f}" for stage, ms in totals.items()).encode()

    async def error(
        self, dialect: Dialect, error: BaseException, scope: Scope, body: BoundedBody
    ) -> None:
        """Answer with an error in the dialect's words, if nothing was sent yet."""
        if self.started:
            raise error
        problem = describe(error)
        self._here.problem = problem.code
        response = dialect.render(problem, self._here.request_id)
        if problem.retry_after_s is not None:
            response.headers["Retry-After"] = str(max(1, round(problem.retry_after_s)))
        if problem.status == 405 and problem.allowed:
            response.headers["Allow"] = problem.allowed
        if problem.status == 401 and "www-authenticate" not in response.headers:
            response.headers["WWW-Authenticate"] = 'Bearer realm="mezzotint"'
        await response(scope, body, self)
