"""Handlers: Python code of TorchServe archives, each in a process of its own.

The code is nobody's friend until an operator has allowed the sha256 of its archive,
and not much of one afterwards. Its process has no environment of ours, no open
files, bounded memory, a folder of its own that goes with it, and, where the kernel
lets us, no network. What takes too long, is cancelled or crashes costs that process
and the call it was in; the next call starts another. Plain data crosses the border,
nothing is unpickled.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mezzotint.errors import DeadlineExceeded, ModelError, QueueFull
from mezzotint.observe import log
from mezzotint.plain import is_dict, is_list
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.config import HandlersConfig
from mezzotint.service.handlers.group import ProcessGroup
from mezzotint.service.workers.transport import read_message, send_message

__all__ = ["HandlerPool"]

_STREAM_LIMIT = 1 << 20
_WATCH_S = 0.25
_MARK = "HANDLER_RUN"  # what the process and its children are known by
_MEDIA = re.compile(r"[\w.+-]+/[\w.+-]+(; ?[\w.+-]+=[\w.+\"-]+)*", re.ASCII)
_ERRORS = ("", "failed", "mismatch", "memory", "died", "timeout")


@dataclass(slots=True)
class _Process:
    """One running handler."""

    digest: str
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    folder: Path
    group: ProcessGroup
    watch: "asyncio.Task[None] | None" = None
    used: float = 0.0
    was_too_large: bool = False


@dataclass(slots=True)
class _Place:
    """Where the calls of one archive meet: one at a time."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    running: _Process | None = None


class HandlerPool:
    """Runs the handler code of archives.

    Args:
        config: Limits.
        folder: Where archives are unpacked while their code runs.
        unpack: ``(archive, target folder, digest)``: copy, check, unpack; gives the
            name of the handler. Called in a thread.
        device: Device the code is told to use.
    """

    def __init__(
        self,
        config: HandlersConfig,
        folder: Path,
        unpack: Callable[[Path, Path, str], Any],
        *,
        device: str = "cpu",
    ) -> None:
        self._config = config
        self._folder = folder
        self._unpack = unpack
        self._device = device
        self._places: dict[str, _Place] = {}
        self._starting = 0

    async def run(
        self, archive: Path, digest: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Give a batch of requests to an archive's handler.

        Args:
            archive: The archive, allowed already.
            digest: sha256 that was allowed.
            rows: Named parameters of each request: text, bytes or plain JSON data.

        Returns:
            One answer for each row; what went wrong is in their ``error``.

        Raises:
            QueueFull: If too many calls wait for this archive, or all processes are busy.
            ModelError: If the archive cannot be unpacked or its code not be loaded.
            DeadlineExceeded: If it takes longer than ``timeout_s``.
        """
        place = self._places.setdefault(digest, _Place())
        if place.waiting >= self._config.max_waiting:
            raise QueueFull(f"{place.waiting} requests wait for this handler already")
        place.waiting += 1
        try:
            async with place.lock:
                return await self._run(place, archive, digest, rows)
        finally:
            place.waiting -= 1

    async def _run(
        self, place: _Place, archive: Path, digest: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Call the handler while nobody else does."""
        if place.running is not None and place.running.process.returncode is not None:
            await self._end(place)
        if place.running is None:
            await self._make_room()
            self._starting += 1
            try:
                place.running = await self._start(archive, digest)
            finally:
                self._starting -= 1
        running = place.running
        try:
            async with asyncio.timeout(self._config.timeout_s):
                batch = {"kind": "batch", "rows": [dict(r) for r in rows]}
                await send_message(running.writer, batch)
                answer = await read_message(
                    running.reader, dict[str, Any], self._config.max_response_bytes
                )
            running.used = time.monotonic()
            return _answers(answer, len(rows))
        except TimeoutError:
            await self._end(place)
            raise DeadlineExceeded(
                f"the handler did not answer within {self._config.timeout_s:g} s; it was killed"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            kind = "memory" if running.was_too_large else "died"
            await self._end(place)
            code = running.process.returncode
            log.error("handler.died", code=code, digest=digest[:16], reason=kind)
            return tuple(HandlerAnswer(error=kind, message=_DEATHS[kind]) for _ in rows)
        except ValueError as error:  # longer than allowed, or not our language
            await self._end(place)
            log.error("handler.broken_answer", reason=str(error), digest=digest[:16])
            return tuple(HandlerAnswer(error="failed", message=str(error)) for _ in rows)
        except BaseException:  # cancelled: whoever waited is gone, the work is not wanted
            await self._end(place)
            raise

    async def _make_room(self) -> None:
        """End the process that was idle longest if there are as many as may be.

        Raises:
            QueueFull: If none of them is idle.
        """
        while True:
            running = [p for p in self._places.values() if p.running is not None]
            if len(running) + self._starting < self._config.max_processes:
                return
            idle = [p for p in running if not p.waiting]
            if not idle:
                raise QueueFull(
                    f"all {self._config.max_processes} handler processes "
                    "(handlers.max_processes) are busy"
                )
            await self._end(min(idle, key=lambda p: p.running.used if p.running else 0.0))

    async def _start(self, archive: Path, digest: str) -> _Process:
        """Unpack an archive into a folder of its own and load its code."""
        folder = self._folder / f"run-{os.getpid()}-{secrets.token_hex(8)}"
        running: _Process | None = None
        try:
            info = await asyncio.to_thread(self._unpack, archive, folder, digest)
            (folder / "tmp").mkdir()
            running = await self._spawn(digest, folder)
            await send_message(running.writer, self._hello(info, folder))
            async with asyncio.timeout(self._config.start_s):
                greeting = await read_message(running.reader, dict[str, Any], 1 << 20)
            if greeting.get("kind") != "ready":
                reason = str(greeting.get("message", "it did not start"))[:2000]
                raise ModelError(f"the handler of {info.name} could not be loaded: {reason}")
            return running
        except TimeoutError:
            await self._remove(running, folder)
            raise ModelError(
                f"the handler was not loaded within {self._config.start_s:g} s; it was killed"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError):
            await self._remove(running, folder)
            too_large = running is not None and running.was_too_large
            reason = _DEATHS["memory" if too_large else "died"]
            raise ModelError(f"the handler died while it was loaded: {reason}") from None
        except BaseException:  # cancelled too: no process is left behind; it goes on
            await self._remove(running, folder)
            raise

    def _hello(self, info: Any, folder: Path) -> dict[str, Any]:
        """Return what the process is told first."""
        kind, _, index = self._device.partition(":")
        return {
            "kind": "load",
            "model_dir": str(folder / "model"),
            "manifest": {
                "runtime": "python",
                "model": {
                    "modelName": info.name,
                    "modelVersion": info.version,
                    "handler": info.handler,
                    "serializedFile": info.serialized_file,
                    "modelFile": info.model_file,
                },
            },
            "gpu_id": int(index or 0) if kind == "cuda" else None,
            "memory_bytes": self._config.memory_bytes,
            "file_bytes": self._config.file_bytes,
        }

    async def _spawn(self, digest: str, folder: Path) -> _Process:
        """Start a process that knows nothing of us but one socket."""
        ours, theirs = socket.socketpair()
        temporary = str(folder / "tmp")
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-IB",
                "-m",
                "mezzotint.service.handlers.child",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                cwd=temporary,
                env={
                    "PATH": "/usr/local/bin:/usr/bin:/bin",
                    "HOME": temporary,
                    "TMPDIR": temporary,
                    "LANG": "C.UTF-8",
                    _MARK: folder.name,
                },
                start_new_session=True,
            )
            on_failure.pop_all()
        reader, writer = await asyncio.open_connection(sock=ours, limit=_STREAM_LIMIT)
        group = ProcessGroup(process.pid, f"{_MARK}={folder.name}")
        running = _Process(digest, process, reader, writer, folder, group, used=time.monotonic())
        running.watch = asyncio.create_task(self._watch(running))
        return running

    async def _watch(self, running: _Process) -> None:
        """Kill a process that takes more than it may with all it started, or is idle for long."""
        while running.process.returncode is None:
            if await asyncio.to_thread(
                running.group.takes_more_than, self._config.memory_bytes, self._config.max_children
            ):
                running.was_too_large = True
                await asyncio.to_thread(running.group.kill)
                return
            place = self._places.get(running.digest)
            is_idle = place is not None and place.running is running and not place.waiting
            if is_idle and time.monotonic() - running.used > self._config.idle_s:
                await asyncio.to_thread(running.group.kill)
                return
            await asyncio.sleep(_WATCH_S)
        await asyncio.to_thread(running.group.kill)  # what it left behind when it died

    async def _end(self, place: _Place) -> None:
        """Kill the process of a place, and all that it started."""
        running, place.running = place.running, None
        if running is not None:
            await self._remove(running, running.folder)

    async def _remove(self, running: _Process | None, folder: Path) -> None:
        if running is not None:
            if running.watch is not None:
                running.watch.cancel()
            running.writer.close()
            await asyncio.to_thread(running.group.kill)
            await running.process.wait()
        await asyncio.to_thread(shutil.rmtree, folder, True)

    async def forget(self, digest: str) -> None:
        """End the process of an archive that was removed."""
        place = self._places.get(digest)
        if place is not None:
            await self._end(place)

    async def close(self) -> None:
        """End every process."""
        for place in self._places.values():
            with contextlib.suppress(OSError):
                await self._end(place)


_DEATHS = {
    "died": "its process ended in the middle of the work",
    "memory": "it took more memory or processes than handlers.memory_bytes and "
    "handlers.max_children allow",
}


def _answers(message: Mapping[str, Any], count: int) -> tuple[HandlerAnswer, ...]:
    """Read what a process answered, trusting none of it.

    Raises:
        ValueError: If it is no answer.
    """
    if message.get("kind") == "failed":
        kind = str(message.get("error"))
        kind = kind if kind in _ERRORS and kind else "failed"
        answer = HandlerAnswer(error=kind, message=str(message.get("message", ""))[:2000])
        return (answer,) * count
    given = message.get("answers")
    if not is_list(given) or len(given) != count:
        raise ValueError("the handler's process did not answer in its language")
    return tuple(_answer(part) for part in given)


def _answer(part: Any) -> HandlerAnswer:
    if not is_dict(part) or not isinstance(part.get("data"), bytes):
        raise ValueError("the handler's process did not answer in its language")
    media = str(part.get("content_type", ""))
    status = part.get("status", 200)
    return HandlerAnswer(
        data=part["data"],
        content_type=media if _MEDIA.fullmatch(media) else "application/octet-stream",
        status=status if isinstance(status, int) and 200 <= status <= 599 else 200,
    )
