"""Worker: the service in a process of its own, watched and restarted.

The HTTP process loads no torch and survives whatever happens to the engine. When
the engine's process dies (kill -9, out of memory, a crash in native code) or
hangs (:mod:`mezzotint.service.workers.liveness`), it is started again, and every request
that was waiting or running is sent again with the seed it had: whoever waits still gets
the picture, and it has the same bytes.

What the two processes say to each other is :mod:`mezzotint.service.workers.messages`.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mezzotint.errors import MezzotintError, ModelError, NotReady
from mezzotint.observe import log, metrics
from mezzotint.observe.config import LogConfig
from mezzotint.plain import write
from mezzotint.request import GenerationRequest
from mezzotint.service.config import WorkerConfig
from mezzotint.service.descriptions import read_error
from mezzotint.service.endings import ENDINGS, follow
from mezzotint.service.workers.calls import Call, count_death, in_order
from mezzotint.service.workers.liveness import Liveness, read_activity
from mezzotint.service.workers.messages import (
    Answered,
    CallFailed,
    CallMethod,
    Cancel,
    FromWorker,
    Greeting,
    Hello,
    Refused,
    StreamRequest,
    ToWorker,
)
from mezzotint.service.workers.process import STREAM_LIMIT, start_worker
from mezzotint.service.workers.remote_calls import RemoteCalls
from mezzotint.service.workers.streams import Stream, Streams
from mezzotint.service.workers.transport import post_message, read_message, send_message
from mezzotint.types import Event, GenerationResult

__all__ = ["WorkerSupervisor"]

_PING_S = 1.0
_CLOSE_S = 5.0  # who drains has waited before; what is left is to write the tables of costs
_MAX_BACKOFF_S = 30.0
_LONG_ENOUGH_S = 30.0  # a process that lived this long starts with a fresh backoff
_MOST_DEATHS = 2  # at which a plain call may be there


class WorkerSupervisor(RemoteCalls):
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
        self._journal: list[CallMethod] = []
        self._log = log_config or LogConfig()
        self._streams = Streams(config.max_crashes, self._leave)
        self._calls: dict[int, Call] = {}
        self._next = 0
        self._ready = asyncio.Event()
        self._first: asyncio.Future[None] | None = None
        self._was_ready = False
        self._closing = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._health: dict[str, Any] = {}
        self._liveness: Liveness | None = None
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
        return await follow(events)

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
        message = StreamRequest(
            call=call,
            request=request.canonical(),
            request_id=request_id,
            client=client,
            use_cache=use_cache,
            preview_every=preview_every,
            quiet=quiet,
        )
        stream = Stream(self._streams, request_id, message)
        self._streams.add(stream, call)
        ended = False
        try:
            await self._send_streams([stream])
            while not ended:
                event = await stream.events.get()
                if isinstance(event, MezzotintError):
                    ended = True
                    raise event
                ended = isinstance(event, ENDINGS)
                yield event
        finally:  # another worker may have it by now, under another number
            await stream.streams.leave(stream, ended)

    async def _leave(self, stream: Stream, ended: bool) -> None:
        """Forget a request to which nobody listens any more."""
        self._streams.remove(stream)
        self._send_suspects()
        if not ended:
            await self._send(Cancel(call=stream.message.call))

    @property
    def is_ready(self) -> bool:
        """Whether the process runs, takes requests and shows no sign of hanging."""
        return self._ready.is_set() and not self._is_doubtful

    @property
    def _is_doubtful(self) -> bool:
        return self._liveness is not None and self._liveness.is_doubtful

    @property
    def num_streams(self) -> int:
        """Requests under way."""
        return len(self._streams)

    async def hand_over(self, other: "WorkerSupervisor") -> int:
        """Let another worker go on with everything under way; return how many requests."""
        streams = self._streams.take_all()
        for stream in streams:
            stream.is_held = stream.is_suspect
            other._streams.add(stream, other._number())
        await other._send_streams([stream for stream in streams if not stream.is_held])
        other._send_suspects()
        return len(streams)

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; while the process restarts, at once."""
        for stream in self._streams:
            if stream.request_id == request_id:
                if self._ready.is_set() and not stream.is_held:
                    return bool(await self._ask("cancel", request_id=request_id))
                self._streams.cancel(stream)
                return True
        return False

    async def health(self) -> Mapping[str, Any]:
        """Tell what the process last said, without waiting."""
        ready = self.is_ready and bool(self._health.get("ready"))
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
        self._refuse_all("the server is shutting down")
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end_process()  # the supervisor may have been cancelled in the middle of it

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
        message = CallMethod(call=call, method=method, arguments=arguments)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[call] = Call(message, answer)
        try:
            await self._send(message)
            return await answer
        except asyncio.CancelledError:  # nobody waits for it any more
            await self._send(Cancel(call=call))
            raise
        finally:
            self._calls.pop(call, None)

    async def _change(self, method: str, **arguments: Any) -> Any:
        """Change the list of models, in this process and in those that follow it."""
        answer = await self._ask(method, **arguments)
        self._journal.append(CallMethod(call=self._number(), method=method, arguments=arguments))
        return answer

    async def _replay(self, reader: asyncio.StreamReader) -> None:
        """Repeat changes of the list of models in a fresh process, before anything else."""
        for message in self._journal:
            if self._writer is None:
                return
            await send_message(self._writer, message)
            answer: FromWorker
            while (answer := await read_message(reader, FromWorker)).call != message.call:
                pass
            if isinstance(answer, CallFailed):
                reason = answer.error.get("message")
                log.error("worker.model_lost", method=message.method, reason=reason)

    async def _send(self, message: ToWorker) -> None:
        """Send now, or leave it to the next start (a cancel is moot then)."""
        if self._writer is None or not self._ready.is_set():
            return
        await send_message(self._writer, message)

    async def _send_streams(self, streams: Iterable[Stream]) -> None:
        """Send requests now, or leave them to the next start."""
        for stream in streams:
            if self._writer is not None and self._ready.is_set():
                stream.is_sent = True
                await send_message(self._writer, stream.message)

    def _send_suspects(self) -> None:
        """Send the next request that may have caused a death, if none of them is under way."""
        if self._writer is None or not self._ready.is_set():
            return
        while (suspect := self._streams.next_suspect()) is not None:
            suspect.is_sent = True
            post_message(self._writer, suspect.message)

    async def _supervise(self) -> None:
        """Start the process again and again until the service closes."""
        backoff_s = 0.0
        while not self._closing:
            began = time.monotonic()
            try:
                await self._run_process()
            except Exception as error:  # a bug of ours: whoever waits gets another process
                log.error("worker.failed", exception=error)
            finally:
                await self._end_process()
            if self._closing or (self._first is not None and self._first.done()
                                 and self._first.exception() is not None):  # fmt: skip
                return
            long = time.monotonic() - began > _LONG_ENOUGH_S
            backoff_s = 0.0 if long else min(_MAX_BACKOFF_S, 2 * backoff_s)
            self.restarts += 1
            metrics.count("mezzotint_worker_restarts_total")
            code = self._process.returncode if self._process is not None else None
            log.error("worker.died", code=code, restarts=self.restarts, requests=len(self._streams))
            count_death(self._calls.values(), most=_MOST_DEATHS)
            self._streams.count_death()
            if self._on_death is not None:
                await self._on_death(self)
            await asyncio.sleep(backoff_s)
            backoff_s = backoff_s or self._config.backoff_s

    async def _run_process(self) -> None:
        """Start one process and serve it until it dies."""
        self._process, ours = await start_worker()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=STREAM_LIMIT)
        hello = Hello(
            factory=self._config.factory,
            options=dict(self._config.options),
            log=write(self._log),
            cores=list(self._cores),
        )
        await send_message(self._writer, hello)
        watch: asyncio.Task[None] | None = None
        try:
            greeting: Greeting = await asyncio.wait_for(
                read_message(reader, Greeting), self._config.start_s
            )
            if isinstance(greeting, Refused):
                self._refuse(read_error(greeting.error))
                return
            await self._replay(reader)
            pid = self._process.pid
            self._liveness = liveness = Liveness(self._config, lambda: read_activity(pid))
            self._ready.set()
            self._was_ready = True
            await self._resend()
            watch = asyncio.create_task(self._watch(self._process, liveness))
            while True:
                message: FromWorker = await read_message(reader, FromWorker)
                liveness.hear()
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

    async def _end_process(self) -> None:
        """Make sure the process is gone."""
        self._ready.clear()
        self._liveness = None
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

    async def _watch(self, process: asyncio.subprocess.Process, liveness: Liveness) -> None:
        """Ask for health every second; kill a process that hangs."""
        while True:
            call = self._number()
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            message = CallMethod(call=call, method="health", arguments={})
            self._calls[call] = Call(message, answer)
            if self._writer is not None:
                post_message(self._writer, message)  # who hangs may read nothing
            try:
                while not (await asyncio.wait([answer], timeout=_PING_S))[0]:
                    if self._kill_if_hung(process, liveness):
                        return
                self._health = answer.result()
                liveness.hear(self._health)
            except MezzotintError as error:
                log.warning("worker.health", reason=str(error))
            finally:
                self._calls.pop(call, None)
            if self._kill_if_hung(process, liveness) or not self._report_start():
                return
            await asyncio.sleep(_PING_S if self._first is None or self._first.done() else 0.05)

    def _kill_if_hung(self, process: asyncio.subprocess.Process, liveness: Liveness) -> bool:
        """Kill the process if it counts as hung; tell whether it does."""
        liveness.look()
        reason = liveness.trouble
        if reason:
            log.error("worker.hung", reason=reason)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return bool(reason)

    def _report_start(self) -> bool:
        """Tell whoever waits for the first start how it went; False if there will be none."""
        if self._first is None or self._first.done():
            return True
        if self._health.get("ready"):
            self._first.set_result(None)
        elif failed := self._health.get("failed"):
            reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
            self._refuse(ModelError(f"not every model could be warmed up: {reasons}"))
            return False
        return True

    async def _resend(self) -> None:
        """Send everything that is under way to a fresh process."""
        await self._send_streams(self._streams.hold_suspects())
        self._send_suspects()
        for call in in_order(self._calls.values()):
            await self._send(call.message)

    def _take(self, message: FromWorker) -> None:
        """Give a message to whoever waits for it."""
        call = self._calls.get(message.call)
        if call is not None and not call.answer.done():
            if isinstance(message, Answered):
                call.answer.set_result(message.value)
            elif isinstance(message, CallFailed):
                call.answer.set_exception(read_error(message.error))
            return
        stream = self._streams.find(message.call)
        if stream is not None and not isinstance(message, Answered):
            stream.take(message)
            if stream.is_suspect:
                self._send_suspects()

    def _refuse_all(self, reason: str) -> None:
        """Refuse everything that is under way."""
        self._streams.refuse(reason)
        for call in self._calls.values():
            if not call.answer.done():
                call.answer.set_exception(NotReady(reason))
