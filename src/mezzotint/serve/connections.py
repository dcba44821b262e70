"""Connections: what a listener holds open, and who has to go when it is full.

A connection without a request is worth nothing to anybody but its owner: it goes when
somebody else comes. Heads of requests have to arrive within a few seconds. So neither
idle nor half-open connections keep a probe out, and a listener never has more files
open than it may.
"""

import asyncio
import contextlib
import functools
import math
import re
import resource
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Literal, cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from mezzotint.observe import log

__all__ = ["Crowd", "Protocol", "Socket", "raise_file_limit"]

_SPARE = 64  # connections beyond the limit that are heard, so that probes are answered
_FILES = 512  # files of everything but connections
_LAST_LOOK_S = 0.02
_LINGER_S = 1.0  # between a refusal and the end of its connection
_NO_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Bytes that no head of a request holds: TLS at a plain port, or rubbish."""
_MOST_LINES = 256
"""Lines of a head; more are no client's, and take the time of others to read."""
_NO_VERSION = re.compile(rb"[^\r\n]* HTTP/(?!1\.[01]\r?\n)[^\s]*\r?\n")
"""A first line of another version of HTTP than those that are spoken here."""
_REFUSALS = {
    400: (b"Bad Request", b"Invalid HTTP request received.\n"),
    431: (b"Request Header Fields Too Large", b"The head of the request is too long.\n"),
}
"""Reason and text of what is answered to a head that is not taken, by status."""


class Crowd:
    """The connections of one listener.

    Args:
        most: How many there may be before idle ones make room.
        head_s: Seconds in which the head of a request must arrive.
    """

    def __init__(self, most: int, head_s: float) -> None:
        self.most = most
        self.head_s = head_s
        self._idle: OrderedDict[Protocol, None] = OrderedDict()
        self._open = 0

    def enter(self, newcomer: "Protocol") -> bool:
        """Count a connection; False if there is no room for it at all."""
        self._open += 1
        while self._open > self.most and self._idle:
            oldest, _ = self._idle.popitem(last=False)
            oldest.let_go()
            self._open -= 1
        self._idle[newcomer] = None
        return self._open <= self.most + _SPARE

    def work(self, connection: "Protocol") -> None:
        """Note that a connection has a request."""
        self._idle.pop(connection, None)

    def rest(self, connection: "Protocol") -> None:
        """Note that a connection waits for its next request."""
        if not connection.is_gone:
            self._idle[connection] = None
            self._idle.move_to_end(connection)

    def leave(self, connection: "Protocol") -> None:
        """Forget a connection that is closed, unless it was let go before."""
        self._idle.pop(connection, None)
        if not connection.is_gone:
            connection.is_gone = True
            self._open -= 1


class Socket(WebSocketsSansIOProtocol):
    """A web socket on a connection that stays counted until it is closed."""

    left: Callable[[], None] | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self.left is not None:
            self.left()
        super().connection_lost(exc)

    async def send(self, message: Any) -> None:
        """Send a message; after a refusal nothing is left of the handshake."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True

    def send_receive_event_to_app(self) -> None:
        """Hand a message on; text that is no UTF-8 ends the socket with 1007, and no more."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()


class Protocol(H11Protocol):
    """HTTP/1.1 on one connection, counted, with a deadline for slow heads.

    The time runs from the first byte (or the connection), not from the last: a client
    that sends a line now and then gains nothing.
    """

    def __init__(self, *arguments: Any, crowd: Crowd, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._crowd = crowd
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_socket = False
        self._lines = 0  # of the head that is arriving
        self._is_refused = False  # what still comes is not read
        self.is_gone = False

    def connection_made(self, transport: Any) -> None:
        """Count the connection, or close it where there is no room."""
        super().connection_made(transport)
        if self._crowd.enter(self):
            self._watch()
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take bytes; once a head is whole the connection works.

        A head that cannot become one is refused at its first wrong byte, not when its
        time is over.
        """
        if self._is_refused:
            return
        self._watch()
        if self._is_idle():
            head = data.partition(b"\r\n\r\n")[0]
            self._lines += head.count(b"\n")
            if _NO_HEAD.search(head) or _NO_VERSION.match(data):
                self._refuse(400)
                return
            if self._lines > _MOST_LINES:
                self._refuse(431)
                return
        super().data_received(data)
        if not self._is_idle():
            self._lines = 0
            self._rest()
            self._crowd.work(self)

    def on_response_complete(self) -> None:
        """Rest until the next request."""
        super().on_response_complete()
        if self._is_idle():
            self._crowd.rest(self)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """Hand the connection to a web socket, which works as long as it is open."""
        self._is_socket = True
        super().handle_websocket_upgrade(event)
        taker = self.transport.get_protocol()
        if isinstance(taker, Socket):
            taker.left = functools.partial(self._crowd.leave, self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._rest()
        self._crowd.leave(self)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; whoever was about to answer its head has nobody to tell."""
        cycle = self._current()
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
        else:  # h11 says of an error which status it stands for
            is_long = getattr(sys.exc_info()[1], "error_status_hint", 400) == 431
            self._refuse(431 if is_long else 400)
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()

    def let_go(self) -> None:
        """Close an idle connection, to make room."""
        self.is_gone = True
        self._rest()
        self.transport.close()

    def _is_idle(self) -> bool:
        cycle = self._current()
        return not self._is_socket and (cycle is None or cycle.response_complete)

    def _current(self) -> RequestResponseCycle | None:
        """Return the latest exchange; there is none before the first, whatever uvicorn types."""
        return cast("RequestResponseCycle | None", self.cycle)

    def _watch(self) -> None:
        if self._head_timer is None and self._is_idle():
            self._head_timer = self.loop.call_later(self._crowd.head_s, self._give_up)

    def _rest(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: Literal[400, 431]) -> None:
        """Answer what is no HTTP with 400, a head that is too long with 431, and close.

        Not before the client has had time to read it: closing beside bytes that nobody read
        resets the connection, and takes the answer from it.
        """
        self._rest()
        self._is_refused = True
        reason, text = _REFUSALS[status]
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (status, reason, len(text), text)
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _give_up(self) -> None:
        """Look once more at what has arrived, then close.

        Where this process stood still for a while, time is over before the loop has read what
        lies there: uvloop looks at its timers first.
        """
        self._head_timer = self.loop.call_later(_LAST_LOOK_S, self._close_idle)

    def _close_idle(self) -> None:
        self._head_timer = None
        if self._is_idle():
            self.transport.close()


def raise_file_limit(connections: int) -> None:
    """Let this process open as many files as its connections may need, if it may.

    Args:
        connections: Of all listeners together.
    """
    wanted = connections + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (resource.RLIM_INFINITY, -1) or soft >= wanted:
        return
    most = math.inf if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(wanted, most)), hard))
    if most < wanted:
        log.warning("files.few", allowed=int(most), wanted=wanted)
