"""MCP over HTTP: the tools at ``POST /mcp``, streamable HTTP of the official SDK.

Every message is served by itself: there are no sessions, so a client may speak to any of
several servers. Keys, the guard against pages, and limits are those of every door; a client
that goes away cancels what it asked for.
"""

import asyncio
import re
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mezzotint.plain import is_dict
from mezzotint.request import GenerationRequest
from mezzotint.serve.errors import ClientGone, Malformed, Problem, UnsupportedMedia
from mezzotint.serve.front import Front
from mezzotint.serve.mcp.tools import Tell, create_server, draw, needs_sdk
from mezzotint.serve.schema import ANY_OBJECT
from mezzotint.serve.streaming import until_gone
from mezzotint.serve.wire import (
    Body,
    Dialect,
    Endpoint,
    json_response,
    media_type,
    parse_json,
    visit,
)
from mezzotint.types import GenerationResult

__all__ = ["DIALECT"]

_CODES = {400: -32700, 404: -32601, 422: -32602}
"""JSON-RPC's codes for what has one; everything else is the server's own."""
_OTHER = -32000
_MESSAGE = {
    **ANY_OBJECT,
    "required": ["jsonrpc"],
    "properties": {"jsonrpc": {"const": "2.0"}, "method": {"type": "string"}},
}
_ENDING: set[asyncio.Task[Any]] = set()  # cancelled, and on their way out
_T = TypeVar("_T")


def _render(problem: Problem, request_id: str) -> Response:
    """Write an error of the exchange itself; those of a tool are answers of the tool."""
    data = {"type": problem.code, "field": problem.field, "request_id": request_id}
    error = {
        "code": _CODES.get(problem.status, _OTHER),
        "message": problem.detail,
        "data": {k: v for k, v in data.items() if v is not None},
    }
    return json_response({"jsonrpc": "2.0", "id": None, "error": error}, problem.status)


async def message(front: Front, http: Request) -> Any:
    """Serve one message of a client."""
    if media_type(http) != "application/json":
        raise UnsupportedMedia(
            f"expected application/json, got {media_type(http) or 'no content type'}"
        )
    body = await http.body()
    _check_shape(parse_json(body))  # the SDK takes NaN and lone surrogates
    await asyncio.to_thread(needs_sdk)  # reading the SDK takes a second
    return _Exchange(front, body)


def _check_shape(asked: Any) -> None:
    """Refuse what is no message, or calls no tool: the SDK does not say which field is wrong.

    Raises:
        Malformed: If it is none.
    """
    if not is_dict(asked):
        raise Malformed(f"the body must be one message, an object, got {type(asked).__name__}")
    if asked.get("jsonrpc") != "2.0":
        raise Malformed("jsonrpc must be '2.0'", field="jsonrpc")
    method = asked.get("method")
    if not (isinstance(method, str) or (method is None and asked.keys() & {"result", "error"})):
        raise Malformed("method must be a text", field="method")
    if method != "tools/call":
        return
    given = asked.get("params")
    given = given if is_dict(given) else {"name": None}
    for name, kind, text in (("name", str, "a text"), ("arguments", dict, "an object")):
        value: object = given.get(name, {} if name == "arguments" else None)
        if not isinstance(value, kind | None if name == "arguments" else kind):
            field = f"params.{name}"
            raise Malformed(f"{field} must be {text}, got {type(value).__name__}", field=field)


class _Exchange:
    """The SDK's answer to one message."""

    def __init__(self, front: Front, body: bytes) -> None:
        self._front = front
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the SDK answer; it and the tools see together when the client leaves."""
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        is_whole = False

        async def answer(part: Message) -> None:
            nonlocal is_whole
            await send(part)
            is_whole = part["type"] == "http.response.body" and not part.get("more_body", False)

        left = asyncio.Event()
        gone = asyncio.ensure_future(until_gone(receive))
        gone.add_done_callback(lambda _: left.set())
        front = self._front
        caller = _Caller(front, Request(scope, _after(left)))
        server = create_server(
            caller,
            version=str(front.memory.get("version", "")),
            limits=front.config.limits.ends,
        )
        manager = StreamableHTTPSessionManager(
            server, stateless=True, max_request_body_size=front.config.limits.body_bytes
        )
        try:
            async with manager.run():
                await manager.handle_request(scope, _after(left, self._body), answer)
        finally:
            gone.cancel()
        if not is_whole:
            raise ClientGone("the client left before its answer was whole")


def _after(left: asyncio.Event, body: bytes | None = None) -> Receive:
    """Return what receives ``body``, if any, and then that the client has left."""
    waiting = [body] if body is not None else []

    async def receive() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


class _Caller:
    """The service behind a server, for who sent one message."""

    def __init__(self, front: Front, http: Request) -> None:
        self._front = front
        self._http = http

    async def generate(
        self, request: GenerationRequest, *, use_cache: bool = True, tell: Tell | None = None
    ) -> GenerationResult:
        """Make pictures; whoever wishes to hear of it is told of each step."""
        events = self._front.stream(self._http, request, quiet=tell is None, fresh=not use_cache)
        drawing = draw(events, request.num_pictures, tell)
        return await _apart(self._front.watched(self._http, drawing))

    async def plan(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Resolve a request."""
        caller = visit(self._http).caller
        self._front.admit(request, caller)
        return await _apart(self._front.service.plan(request, client=caller.name))

    async def recipe(self, data: bytes) -> Mapping[str, Any]:
        """Read what a picture says about itself."""
        caller = visit(self._http).caller
        return await _apart(self._front.service.inspect(data, client=caller.name))

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models."""
        return await _apart(self._front.recent_models())


async def _apart(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for work in a task of its own.

    The SDK cancels its tasks over and over until they end, which would cut short what the
    work does on its way out.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task})
    finally:
        if not task.done():
            _ENDING.add(task)
            task.add_done_callback(_ENDING.discard)
            task.cancel()
    return task.result()


DIALECT = Dialect(
    name="mcp",
    pattern=re.compile(r"^/mcp(/|$)"),
    endpoints=(
        Endpoint(
            method="POST",
            path="/mcp",
            handler=message,
            summary="MCP: one message of a client (streamable HTTP, without sessions)",
            body=Body("McpMessage", lambda _: _MESSAGE),
            answers={"application/json": ANY_OBJECT, "text/event-stream": {}},
        ),
    ),
    render=_render,
)
