"""Process: starts the engine's process, with one socket to talk to it, and its recorder."""

import asyncio
import contextlib
import socket
import sys

__all__ = ["start_worker"]


async def start_worker(memory: int) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Start :mod:`mezzotint.service.workers.worker` in a session of its own.

    Args:
        memory: Where it writes down what it is at; see
            :func:`~mezzotint.service.workers.recorder.make_memory`.

    Returns:
        The process, and our end of its socket, for the caller to close.

    Raises:
        OSError: If no process can be started.
    """
    ours, theirs = socket.socketpair()
    with contextlib.ExitStack() as on_failure, theirs:
        on_failure.callback(ours.close)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "mezzotint.service.workers.worker",
            str(theirs.fileno()),
            str(memory),
            pass_fds=[theirs.fileno(), memory],
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on a terminal is the parent's to hear
        )
        on_failure.pop_all()
    return process, ours
