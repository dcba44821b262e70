"""Worker: the service in a process of its own, watched and restarted.

The HTTP process loads no torch and survives whatever happens to the engine. When
the engine's process dies (kill -9, out of memory, a crash in native code) or
falls silent, it is started again, and every request that was waiting or running
is sent again with the seed it had: whoever waits still gets the picture, and it
has the same bytes.

Messages are length-prefixed JSON with byte strings beside it
(:mod:`mezzotint.service.workers.wire`); nothing is pickled.
"""

import asyncio
import contextlib
import secrets
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mezzotint import errors
from mezzotint.errors import MezzotintError, ModelError, NotReady, WorkFailed
from mezzotint.observe import log, metrics
from mezzotint.observe.config import LogConfig
from mezzotint.plain import write
from mezzotint.request import GenerationRequest, Output
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.calls import Call, count_death, in_order
from mezzotint.service.workers.wire import read_error, read_event, read_image
from mezzotint.service.workers.worker import post_message, read_message, send_message
from mezzotint.types import (
    Cancelled,
    Event,
    Failed,
    Finished,
    GenerationResult,
    ImageFinished,
    ImageOutput,
    Queued,
    Started,
)

__all__ = ["WorkerSupervisor"]

_PING_S = 1.0
_CLOSE_S = 5.0  # who drains has waited before; what is left is to write the tables of costs
_MAX_BACKOFF_S = 30.0
_LONG_ENOUGH_S = 30.0  # a process that lived this long starts with a fresh backoff
_STREAM_LIMIT = 1 << 20
_SUSPECT = 2  # who was running in so many deaths goes on alone among its like


@dataclass(slots=True)
class _Stream:
    """One request under way, who works on it, and what its client has seen."""

    owner: "WorkerSupervisor"
    request_id: str
    message: dict[str, Any]
    events: "asyncio.Queue[Event | MezzotintError]" = field(default_factory=asyncio.Queue)
    crashes: int = 0
    is_queued: bool = False
    is_started: bool = False
    is_held: bool = False
    started_before: bool = False
    images: dict[int, ImageOutput] = field(default_factory=dict[int, ImageOutput])


class WorkerSupervisor:
    """The service port over a supervised process.

    Args:
        config: Which factory to call there, and how patiently.
        log_config: How the process logs.
        cores: CPU cores the process may use; empty is all of them.
        on_death: Told that the process died, before it is started again.

    Use it between :meth:`start` and :meth:`close`.
    """

    def __init__(
        self,
        config: WorkerConfig,
        log_config: LogConfig | None = None,
        *,
        cores: Sequence[int] = (),
        on_death: Callable[["WorkerSupervisor"], Awaitable[None]] | None = None,
    ) -> None:
        self._config = config
        self._cores = tuple(cores)
        self._on_death = on_death
        self._journal: list[dict[str, Any]] = []
        self._log = log_config or LogConfig()
        self._streams: dict[int, _Stream] = {}
        self._calls: dict[int, Call] = {}
        self._next = 0
        self._ready = asyncio.Event()
        self._first: asyncio.Future[None] | None = None
        self._was_ready = False
        self._closing = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._health: dict[str, Any] = {}
        self._heard = time.monotonic()
        self._supervisor: asyncio.Task[None] | None = None
        self.restarts = 0

    async def start(self, *, wait: bool = True) -> None:
        """Start the process.

        Args:
            wait: Whether to return only when it is ready.

        Raises:
            MezzotintError: If the factory refuses, or does not get ready in time.
        """
        self._first = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise())
        if wait:
            await self.wait_ready()

    async def wait_ready(self) -> None:
        """Return when the process is ready for the first time.

        Raises:
            MezzotintError: If the factory refuses, or takes too long.
        """
        if self._first is None:
            raise NotReady("the worker was not started")
        await asyncio.shield(self._first)

    async def generate(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
    ) -> GenerationResult:
        """Run one request to its end."""
        events = self.stream(
            request, request_id=request_id, client=client, use_cache=use_cache, quiet=True
        )
        try:
            async for event in events:
                if isinstance(event, Finished):
                    return event.result
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Cancelled):
                    raise errors.Cancelled("the request was cancelled")
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        raise WorkFailed("the request ended without an ending")

    async def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
        quiet: bool = False,
    ) -> AsyncIterator[Event]:
        """Run one request and yield its events; a death of the process goes unnoticed."""
        self._check()
        if request.seed is None:  # a second run must make the same picture
            request = replace(request, seed=secrets.randbits(32))
        call = self._number()
        message = {
            "kind": "stream",
            "call": call,
            "request": request.canonical(),
            "request_id": request_id,
            "client": client,
            "use_cache": use_cache,
            "preview_every": preview_every,
            "quiet": quiet,
        }
        stream = self._streams[call] = _Stream(self, request_id, message)
        ended = False
        try:
            await self._send(message)
            while not ended:
                event = await stream.events.get()
                if isinstance(event, MezzotintError):
                    ended = True
                    raise event
                ended = isinstance(event, Finished | Failed | Cancelled)
                yield event
        finally:  # another worker may have it by now, under another number
            owner, call = stream.owner, stream.message["call"]
            owner._streams.pop(call, None)
            owner._send_suspect()
            if not ended:
                await owner._send({"kind": "stop", "call": call})

    @property
    def is_ready(self) -> bool:
        """Whether the process runs and takes requests."""
        return self._ready.is_set()

    @property
    def num_streams(self) -> int:
        """Requests under way."""
        return len(self._streams)

    async def hand_over(self, other: "WorkerSupervisor") -> int:
        """Let another worker go on with everything under way; return how many requests."""
        streams = list(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.owner = other
            stream.message = {**stream.message, "call": other._number()}
            other._streams[stream.message["call"]] = stream
        await other._send_all(streams)
        return len(streams)

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; while the process restarts, at once."""
        for call, stream in list(self._streams.items()):
            if stream.request_id == request_id:
                if self._ready.is_set() and not stream.is_held:
                    return bool(await self._ask("cancel", request_id=request_id))
                self._streams.pop(call)
                stream.events.put_nowait(Cancelled(id=request_id))
                return True
        return False

    async def plan(self, request: GenerationRequest, *, client: str = "") -> Mapping[str, Any]:
        """Resolve a request without running it."""
        return await self._ask("plan", request=request.canonical(), client=client)

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models."""
        return tuple(await self._ask("models"))

    async def capabilities(self) -> Mapping[str, Any]:
        """List every name a request may use."""
        return await self._ask("capabilities")

    async def health(self) -> Mapping[str, Any]:
        """Tell what the process last said, without waiting."""
        ready = self._ready.is_set() and bool(self._health.get("ready"))
        process = self._process
        pid = process.pid if process is not None and process.returncode is None else 0
        waiting = {"queue": len(self._streams)} if not self._ready.is_set() else {}
        return {
            "queue": 0,
            **self._health,
            **waiting,
            "live": not self._closing,
            "ready": ready,
            "pid": pid,
            "restarts": self.restarts,
        }

    async def register(
        self, source: str, *, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model."""
        return await self._change("register", source=source, name=name, version=version)

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove one version of a model."""
        await self._change("unregister", name=name, version=version)

    async def set_default(self, name: str, version: str) -> None:
        """Make the bare name mean this version."""
        await self._change("set_default", name=name, version=version)

    async def inspect(self, data: bytes, *, client: str = "") -> Mapping[str, Any]:
        """Read the recipe inside a picture."""
        return await self._ask("inspect", data=data, client=client)

    async def upscale(
        self, data: bytes, *, factor: float, model: str | None = None, output: Output,
        client: str = "", cover: tuple[int, int] | None = None, crop: bool = False,
    ) -> ImageOutput:  # fmt: skip
        """Enlarge a picture."""
        how = {"factor": factor, "model": model, "client": client, "cover": cover, "crop": crop}
        return read_image(await self._ask("upscale", data=data, output=write(output), **how))

    async def grid(
        self, images: Sequence[bytes], *, columns: int, padding_px: int = 2, output: Output
    ) -> bytes:
        """Lay pictures out in a grid."""
        return await self._ask(
            "grid",
            images=list(images),
            columns=columns,
            padding_px=padding_px,
            output=write(output),
        )

    async def handle(
        self, model: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Give requests to the handler code of an archive."""
        answers = await self._ask("handle", model=model, rows=[dict(row) for row in rows])
        return tuple(HandlerAnswer(**answer) for answer in answers)

    async def close(self) -> None:
        """Let the process finish what is being stepped, then end it.

        A process that is still loading or compiling has nothing to finish and is
        killed; so is one that does not close within seconds.
        """
        if self._closing:
            return
        is_warm = self._ready.is_set() and bool(self._health.get("ready"))
        if is_warm:
            with contextlib.suppress(MezzotintError, TimeoutError):
                await asyncio.wait_for(self._ask("close"), _CLOSE_S)
        elif self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._closing = True
        self._ready.clear()
        self._lose("the server is shutting down")
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        await self._bury()  # the supervisor may have been cancelled in the middle of it

    def _check(self) -> None:
        """Refuse work before the first start and after the close."""
        if self._closing:
            raise NotReady("the server is shutting down")
        if not self._was_ready:
            raise NotReady("the models are still loading")

    def _number(self) -> int:
        self._next += 1
        return self._next

    async def _ask(self, method: str, **arguments: Any) -> Any:
        """Call a method in the process; repeated if the process dies meanwhile."""
        self._check()
        call = self._number()
        message = {"kind": "call", "call": call, "method": method, "arguments": arguments}
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call] = Call(message, answer)
        try:
            await self._send(message)
            return await answer
        except asyncio.CancelledError:  # nobody waits for it any more
            await self._send({"kind": "stop", "call": call})
            raise
        finally:
            self._calls.pop(call, None)

    async def _change(self, method: str, **arguments: Any) -> Any:
        """Change the list of models, in this process and in those that follow it."""
        answer = await self._ask(method, **arguments)
        self._journal.append(
            {"kind": "call", "call": self._number(), "method": method, "arguments": arguments}
        )
        return answer

    async def _replay(self, reader: asyncio.StreamReader) -> None:
        """Repeat changes of the list of models in a fresh process, before anything else."""
        for message in self._journal:
            if self._writer is None:
                return
            await send_message(self._writer, message)
            while (answer := await read_message(reader))["call"] != message["call"]:
                pass
            if answer["kind"] == "error":
                reason = answer["error"].get("message")
                log.error("worker.model_lost", method=message["method"], reason=reason)

    async def _send(self, message: Mapping[str, Any]) -> None:
        """Send now, or leave it to the next start (a stop is moot then)."""
        if self._writer is None or not self._ready.is_set():
            return
        await send_message(self._writer, message)

    async def _supervise(self) -> None:
        """Start the process again and again until the service closes."""
        backoff_s = 0.0
        while not self._closing:
            began = time.monotonic()
            try:
                await self._live()
            except Exception as error:  # a bug of ours: whoever waits gets another process
                log.error("worker.failed", exception=error)
            finally:
                await self._bury()
            if self._closing or (self._first is not None and self._first.done()
                                 and self._first.exception() is not None):  # fmt: skip
                return
            long = time.monotonic() - began > _LONG_ENOUGH_S
            backoff_s = 0.0 if long else min(_MAX_BACKOFF_S, 2 * backoff_s)
            self.restarts += 1
            metrics.count("mezzotint_worker_restarts_total")
            code = self._process.returncode if self._process is not None else None
            log.error("worker.died", code=code, restarts=self.restarts, requests=len(self._streams))
            self._count_crashes()
            if self._on_death is not None:
                await self._on_death(self)
            await asyncio.sleep(backoff_s)
            backoff_s = backoff_s or self._config.backoff_s

    async def _live(self) -> None:
        """Start one process and serve it until it dies."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "mezzotint.service.workers.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on a terminal is the parent's to hear
            )
            on_failure.pop_all()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=_STREAM_LIMIT)
        hello = {
            "factory": self._config.factory,
            "options": dict(self._config.options),
            "log": write(self._log),
            "cores": list(self._cores),
        }
        await send_message(self._writer, hello)
        watch: asyncio.Task[None] | None = None
        try:
            greeting = await asyncio.wait_for(read_message(reader), self._config.start_s)
            if greeting["kind"] == "refused":
                self._refuse(read_error(greeting["error"]))
                return
            self._heard = time.monotonic()
            await self._replay(reader)
            self._ready.set()
            self._was_ready = True
            await self._resend()
            watch = asyncio.create_task(self._watch())
            while True:
                message = await read_message(reader)
                self._heard = time.monotonic()
                self._take(message)
        except TimeoutError:
            if not self._was_ready:
                self._refuse(NotReady(f"the engine was not ready after {self._config.start_s:g} s"))
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            return
        finally:
            if watch is not None:
                watch.cancel()

    def _refuse(self, error: MezzotintError) -> None:
        """Tell whoever waits for the first start that there will be none."""
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)

    async def _bury(self) -> None:
        """Make sure the process is gone."""
        self._ready.clear()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._process is None:
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), 5.0 if self._closing else 0.5)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def _watch(self) -> None:
        """Ask for health every second; kill a process that fell silent."""
        while True:
            call = self._number()
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            message = {"kind": "call", "call": call, "method": "health", "arguments": {}}
            self._calls[call] = Call(message, answer)
            await self._send(message)
            try:
                async with asyncio.timeout(self._config.silence_s):
                    self._health = await answer
            except TimeoutError:
                if time.monotonic() - self._heard >= self._config.silence_s:
                    log.error("worker.silent", seconds=self._config.silence_s)
                    if self._process is not None:
                        self._process.kill()
                    return
            except MezzotintError as error:
                log.warning("worker.health", reason=str(error))
            finally:
                self._calls.pop(call, None)
            if self._first is not None and not self._first.done():
                if self._health.get("ready"):
                    self._first.set_result(None)
                elif failed := self._health.get("failed"):
                    reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
                    self._refuse(ModelError(f"not every model could be warmed up: {reasons}"))
                    return
            await asyncio.sleep(_PING_S if self._first is None or self._first.done() else 0.05)

    async def _resend(self) -> None:
        """Send everything that is under way to a fresh process."""
        await self._send_all(list(self._streams.values()))
        for call in in_order(self._calls.values()):
            await self._send(call.message)

    async def _send_all(self, streams: Sequence[_Stream]) -> None:
        """Send requests; of those that may have caused a death, one after another.

        So the one that does cause it dies alone, and those that ran beside it live.
        """
        for stream in streams:
            stream.is_held = stream.crashes >= _SUSPECT
        for stream in streams:
            if not stream.is_held:
                await self._send(stream.message)
        self._send_suspect()

    def _send_suspect(self) -> None:
        """Send the next request that may have caused a death, if none of them is under way."""
        if self._writer is None or not self._ready.is_set():
            return
        suspects = [s for s in self._streams.values() if s.crashes >= _SUSPECT]
        if suspects and all(s.is_held for s in suspects):
            suspects[0].is_held = False
            post_message(self._writer, suspects[0].message)

    def _take(self, message: Mapping[str, Any]) -> None:
        """Give a message to whoever waits for it."""
        kind, number = message["kind"], message["call"]
        call = self._calls.get(number)
        if call is not None and not call.answer.done():
            if kind == "answer":
                call.answer.set_result(message["value"])
            else:
                call.answer.set_exception(read_error(message["error"]))
            return
        stream = self._streams.get(number)
        if stream is None:
            return
        if kind == "error":
            stream.events.put_nowait(read_error(message["error"]))
        elif kind == "end":
            stream.events.put_nowait(WorkFailed("the request ended without an ending"))
        else:
            self._deliver(stream, read_event(message["event"], stream.images))

    def _deliver(self, stream: _Stream, event: Event) -> None:
        """Hand an event on, unless a run before the crash did so already."""
        if isinstance(event, Queued):
            if stream.is_queued:
                return
            stream.is_queued = True
        elif isinstance(event, Started):
            stream.is_started = True
            if stream.started_before:
                return
            stream.started_before = True
        elif isinstance(event, ImageFinished):
            was_told = event.image.index in stream.images
            stream.images[event.image.index] = event.image
            if was_told:
                return
        stream.events.put_nowait(event)

    def _count_crashes(self) -> None:
        """Fail requests that were running in too many deaths of the process."""
        count_death(self._calls.values(), most=_SUSPECT)
        for call, stream in list(self._streams.items()):
            stream.crashes += stream.is_started
            stream.is_started = False
            if stream.crashes >= self._config.max_crashes:
                del self._streams[call]
                stream.events.put_nowait(
                    WorkFailed(f"the engine died {stream.crashes} times while it ran this request")
                )

    def _lose(self, reason: str) -> None:
        """Refuse everything that is under way."""
        for stream in self._streams.values():
            stream.events.put_nowait(NotReady(reason))
        for call in self._calls.values():
            if not call.answer.done():
                call.answer.set_exception(NotReady(reason))
