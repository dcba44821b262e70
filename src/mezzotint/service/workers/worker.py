"""Worker child: the engine's own process, serving its service over one socket.

Started as ``python -m mezzotint.service.workers.worker FD MEMORY``. The first message says
which factory to call; after that every message is a call, a stream or a cancel. What it is
at stands in the memory, for whoever finds it dead.
When the socket closes, the parent is gone and so is this process.
"""

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
from mezzotint.service.workers.link import Link
from mezzotint.service.workers.messages import Hello, Ready, Refused, ToWorker
from mezzotint.service.workers.recorder import Recorder
from mezzotint.service.workers.responder import Responder, build

__all__ = ["main"]

_SWITCH_S = 5e-4
"""For how long a thread that plans or reads keeps the interpreter from the one that draws.

The device's thread takes it several times a step; at Python's 5 ms each of them costs more than
the step."""


async def _serve(link: Link, recorder: Recorder) -> None:
    """Build the service, then answer until the parent is gone."""
    hello: Hello = await link.read(Hello)
    log.configure(convert(hello.log, LogConfig, "log"))
    if hello.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, hello.cores)  # before any library counts them
    try:
        service = await build(hello.factory, hello.options)
    except MezzotintError as error:
        await link.send(Refused(error=describe_error(error)))
        return
    garbage.settle()
    link.post(Ready(pid=os.getpid()))
    responder = Responder(service, link.send, post=link.post, recorder=recorder)
    await link.follow(ToWorker, responder.take)
    responder.close()


async def _run(fd: int, memory: int) -> None:
    link = await Link.over(socket.socket(fileno=fd))
    await _serve(link, Recorder(memory))


def main() -> None:
    """Serve the socket named on the command line, then end at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    garbage.own_process()
    sys.setswitchinterval(_SWITCH_S)
    event_loop.run(_run(int(sys.argv[1]), int(sys.argv[2])))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # device threads may be in the middle of a step nobody waits for


if __name__ == "__main__":
    main()
