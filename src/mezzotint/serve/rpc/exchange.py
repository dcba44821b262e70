"""Exchange: a gRPC call as a request at the HTTP door, without a socket.

Keys, limits, admission, deadlines, metrics and the access line are those of HTTP, since
the call goes through the same application. A call that is cancelled, or whose deadline
has passed, is to it a client that has gone.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlencode

import grpc
import orjson
from starlette.types import ASGIApp, Message

from mezzotint.errors import InvalidField, UnknownName
from mezzotint.serve.errors import Problem

__all__ = ["Answer", "Call", "Refusal", "model_path", "status_of"]

_FORWARDED = frozenset(
    ("authorization", "x-api-key", "x-request-id", "cache-control", "traceparent", "tracestate")
)
_BY_PROBLEM: Mapping[str, grpc.StatusCode] = {
    "unauthorized": grpc.StatusCode.UNAUTHENTICATED,
    "queue_full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "out_of_memory": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "cancelled": grpc.StatusCode.CANCELLED,
    "work_failed": grpc.StatusCode.INTERNAL,
    "in_use": grpc.StatusCode.FAILED_PRECONDITION,
}
"""Problems whose status of HTTP, at the door of TorchServe, says less than their name."""
_BY_STATUS: Mapping[int, grpc.StatusCode] = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.FAILED_PRECONDITION,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ALREADY_EXISTS,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def status_of(status: int, problem: str) -> grpc.StatusCode:
    """Return the status of gRPC for an error.

    Args:
        status: Its status of HTTP.
        problem: Its name in snake case (:attr:`Problem.code`), "" if it is not known.
    """
    if problem in _BY_PROBLEM:
        return _BY_PROBLEM[problem]
    other = grpc.StatusCode.INTERNAL if status >= 500 else grpc.StatusCode.INVALID_ARGUMENT
    return _BY_STATUS.get(status, other)


class Refusal(Exception):
    """A call ends with a status and a sentence.

    Args:
        status: The status of gRPC.
        sentence: What is wrong, for people.
        retry_after: Seconds after which trying again is sensible, as a text, "" if none.
    """

    def __init__(self, status: grpc.StatusCode, sentence: str, retry_after: str = "") -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after = retry_after

    @classmethod
    def of(cls, problem: Problem) -> "Refusal":
        """Return the refusal that a problem is."""
        return cls(status_of(problem.status, problem.code), problem.detail)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the door answered: its status of HTTP, headers in lower case, and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return orjson.loads(self.body)


class Call:
    """One call of a client, and the door that it goes through.

    Args:
        app: The application of a listener.
        metadata: The call's metadata.
        peer: Who calls, as gRPC names it.
    """

    _ending: set["asyncio.Task[None]"] = set()  # noqa: RUF012 - kept until the door is done

    def __init__(self, app: ASGIApp, metadata: Sequence[tuple[str, Any]], peer: str) -> None:
        self._app = app
        self._headers = [
            (name.encode("latin-1"), value.encode("latin-1", "replace"))
            for name, value in metadata
            if name in _FORWARDED and isinstance(value, str)
        ]
        self._client = _address(peer)

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        also: tuple[int, ...] = (),
    ) -> Answer:
        """Send a request through the door.

        Args:
            method: Of HTTP.
            path: Not quoted.
            query: Parameters of the query.
            headers: Beside those of the metadata.
            body: Its bytes.
            also: Statuses of errors that are an answer here.

        Raises:
            Refusal: If the door answers with an error.
        """
        gone = asyncio.Event()
        inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Message] = []

        async def receive() -> Message:
            if inbox:
                return inbox.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        more = {**(headers or {}), "content-length": str(len(body))}
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "2",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": urlencode(query or {}).encode(),
            "root_path": "",
            "headers": self._headers + [(k.lower().encode(), v.encode()) for k, v in more.items()],
            "client": self._client,
            "server": None,
        }
        task = asyncio.ensure_future(self._run(scope, receive, send))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            gone.set()
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            raise
        return _checked(_answer(sent), scope["visit"].problem, also)

    async def _run(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)


def _answer(sent: Sequence[Message]) -> Answer:
    start = next((m for m in sent if m["type"] == "http.response.start"), None)
    if start is None:
        return Answer(499, {}, b"")
    headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in start["headers"]}
    body = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    return Answer(start["status"], headers, body)


def _checked(answer: Answer, problem: str, also: tuple[int, ...]) -> Answer:
    """Return an answer that is no error.

    Raises:
        Refusal: If it is one.
    """
    if answer.status < 400 or answer.status in also:
        return answer
    sentence = "the request ended without an answer"
    if answer.body:
        sentence = str(answer.json()["message"])
    retry_after = answer.headers.get("retry-after", "")
    raise Refusal(status_of(answer.status, problem), sentence, retry_after)


def _address(peer: str) -> tuple[str, int]:
    """Return host and port of ``ipv4:127.0.0.1:5000`` or ``ipv6:%5B::1%5D:5000``."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else 0


def model_path(root: str, name: str, version: str, between: str = "/") -> str:
    """Return the path of a model, or of a version of it.

    Args:
        root: What stands before its name.
        name: Of the model.
        version: Its version, "" for the default one.
        between: What stands between both.

    Raises:
        InvalidField: If there is no name.
        UnknownName: If a name or a version cannot be one.
    """
    if not name:
        raise InvalidField("Parameter model_name is required.", field="model_name")
    for part in (name, version):
        if "/" in part:
            raise UnknownName("model", part[:200], (), field="model_name")
    return f"{root}{name}{between}{version}" if version else f"{root}{name}"
