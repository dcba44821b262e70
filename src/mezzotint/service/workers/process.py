"""Process: starts the engine's process, with one socket to talk to it."""

import asyncio
import contextlib
import socket
import sys

__all__ = ["STREAM_LIMIT", "start_worker"]

STREAM_LIMIT = 1 << 20
"""Bytes that a reader of the socket buffers."""


async def start_worker() -> tuple[asyncio.subprocess.Process, socket.socket]:
    """Start :mod:`mezzotint.service.workers.worker` in a session of its own.

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
            pass_fds=[theirs.fileno()],
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on a terminal is the parent's to hear
        )
        on_failure.pop_all()
    return process, ours
