"""Worker child: the engine's own process, serving its service over one socket.

Started as ``python -m mezzotint.service.workers.worker FD``. The first message says
which factory to call; after that every message is a call, a stream or a cancel.
When the socket closes, the parent is gone and so is this process.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys

from mezzotint.errors import MezzotintError
from mezzotint.observe import garbage, log
from mezzotint.observe.config import LogConfig
from mezzotint.plain import convert
from mezzotint.service.descriptions import describe_error
from mezzotint.service.workers import event_loop
from mezzotint.service.workers.messages import (
    FromWorker,
    Greeting,
    Hello,
    Ready,
    Refused,
    ToWorker,
)
from mezzotint.service.workers.responder import Responder, build
from mezzotint.service.workers.transport import read_message, send_message

__all__ = ["main"]

_STREAM_LIMIT = 1 << 20
_BUFFER_BYTES = 1 << 18
_SWITCH_S = 5e-4
"""For how long a thread that plans or reads keeps the interpreter from the one that draws.

The device's thread takes it several times a step; at Python's 5 ms each of them costs more than
the step."""
_GONE = (ConnectionError, RuntimeError)  # uvloop's word for a closed connection is the latter


class _Child:
    """Serves one parent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        """Build the service, then answer until the parent is gone."""
        hello: Hello = await read_message(self._reader, Hello)
        log.configure(convert(hello.log, LogConfig, "log"))
        if hello.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, hello.cores)  # before any library counts them
        try:
            service = await build(hello.factory, hello.options)
        except MezzotintError as error:
            await self._send(Refused(error=describe_error(error)))
            return
        garbage.settle()
        await self._send(Ready(pid=os.getpid()))
        responder = Responder(service, self._send)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                responder.take(await read_message(self._reader, ToWorker))
        responder.close()

    async def _send(self, message: Greeting | FromWorker) -> None:
        await send_message(self._writer, message)


async def _run(fd: int) -> None:
    connection = socket.socket(fileno=fd)
    reader, writer = await asyncio.open_connection(sock=connection, limit=_STREAM_LIMIT)
    await _Child(reader, writer).serve()


def main() -> None:
    """Serve the socket named on the command line, then end at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    garbage.own_process()
    sys.setswitchinterval(_SWITCH_S)
    event_loop.run(_run(int(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # device threads may be in the middle of a step nobody waits for


if __name__ == "__main__":
    main()
