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
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from mezzotint.errors import MezzotintError, ModelError, NotReady
from mezzotint.observe import log, metrics
from mezzotint.observe.config import LogConfig
from mezzotint.plain import write
from mezzotint.request import GenerationRequest
from mezzotint.service.config import WorkerConfig
from mezzotint.service.descriptions import read_error
from mezzotint.service.workers.entries import Ending, Question, events_of, make_stream, with_seed
from mezzotint.service.workers.ledger import Ledger
from mezzotint.service.workers.link import Link
from mezzotint.service.workers.liveness import Liveness, read_activity
from mezzotint.service.workers.messages import (
    CallFailed,
    CallMethod,
    FromWorker,
    Greeting,
    Hello,
    Refused,
    ToWorker,
)
from mezzotint.service.workers.process import start_worker
from mezzotint.service.workers.recorder import Recorded, make_memory, read_memory
from mezzotint.service.workers.remote_calls import RemoteCalls
from mezzotint.types import Event, GenerationResult

__all__ = ["LEFT", "WorkerSupervisor"]

LEFT = 75
"""Exit code of a process that leaves since what it stands on is gone: no request is to blame."""

_PING_S = 1.0
_CLOSE_S = 5.0  # who drains has waited before; what is left is to write the tables of costs
_MAX_BACKOFF_S = 30.0
_LONG_ENOUGH_S = 30.0  # a process that lived this long starts with a fresh backoff


class WorkerSupervisor(RemoteCalls):
    """The service port over a supervised process.

    Args:
        config: Which factory to call there, and how patiently.
        log_config: How the process logs.
        cores: CPU cores the process may use; empty is all of them.
        on_death: Told that the process died, before it is started again.
        on_ready: Told that a process is up and takes requests.

    Use it between :meth:`start` and :meth:`close`.
    """

    def __init__(
        self,
        config: WorkerConfig,
        log_config: LogConfig | None = None,
        *,
        cores: Sequence[int] = (),
        on_death: Callable[["WorkerSupervisor"], None] | None = None,
        on_ready: Callable[["WorkerSupervisor"], None] | None = None,
    ) -> None:
        self._config = config
        self._cores = tuple(cores)
        self._on_death = on_death
        self._on_ready = on_ready
        self._journal: list[CallMethod] = []
        self._log = log_config or LogConfig()
        self.ledger = Ledger(self._post, max_crashes=config.max_crashes)
        self._first: asyncio.Future[None] | None = None
        self._was_ready = False
        self._closing = False
        self._process: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._memory: int | None = None
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
        stream, events = make_stream(
            with_seed(request),
            request_id=request_id,
            client=client,
            use_cache=use_cache,
            preview_every=preview_every,
            quiet=quiet,
        )
        self.ledger.open(stream)
        async with contextlib.aclosing(events_of(stream, events)) as told:
            async for event in told:
                yield event

    async def generate(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
    ) -> GenerationResult:
        """Run one request to its end, of which alone the process tells."""
        self._check()
        return await Ending(
            self.ledger,
            with_seed(request),
            request_id=request_id,
            client=client,
            use_cache=use_cache,
        ).wait()

    @property
    def is_ready(self) -> bool:
        """Whether the process runs, takes requests and shows no sign of hanging."""
        return self.ledger.is_up and not self._is_doubtful

    @property
    def _is_doubtful(self) -> bool:
        return self._liveness is not None and self._liveness.is_doubtful

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; while the process restarts, at once."""
        done = self.ledger.cancel(request_id)
        return bool(await self._ask("cancel", request_id=request_id)) if done is None else done

    async def health(self) -> Mapping[str, Any]:
        """Tell what the process last said, without waiting."""
        ready = self.is_ready and bool(self._health.get("ready"))
        process = self._process
        pid = process.pid if process is not None and process.returncode is None else 0
        waiting = {"queue": len(self.ledger)} if not self.ledger.is_up else {}
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
        is_warm = self.ledger.is_up and bool(self._health.get("ready"))
        if is_warm:
            with contextlib.suppress(MezzotintError, TimeoutError):
                await asyncio.wait_for(self._ask("close"), _CLOSE_S)
        elif self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._closing = True
        self.ledger.refuse("the server is shutting down")
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end_process()  # the supervisor may have been cancelled in the middle of it
        self._read_recorder()

    def _check(self) -> None:
        """Refuse work before the first start and after the close."""
        if self._closing:
            raise NotReady("the server is shutting down")
        if not self._was_ready:
            raise NotReady("the models are still loading")

    async def _ask(self, method: str, **arguments: Any) -> Any:
        """Call a method in the process; repeated if the process dies meanwhile."""
        self._check()
        return await Question(self.ledger, method, arguments).wait()

    async def change(self, method: str, **arguments: Any) -> Any:
        """Change the list of models, in this process and in those that follow it."""
        answer = await self._ask(method, **arguments)
        call = CallMethod(call=self.ledger.number(), method=method, arguments=arguments)
        self._journal.append(call)
        return answer

    async def _replay(self, link: Link) -> None:
        """Repeat changes of the list of models in a fresh process, before anything else."""
        for message in self._journal:
            link.post(message)
            answer: FromWorker
            while (answer := await link.read(FromWorker)).call != message.call:
                pass
            if isinstance(answer, CallFailed):
                reason = answer.error.get("message")
                log.error("worker.model_lost", method=message.method, reason=reason)

    def _post(self, message: ToWorker) -> None:
        """Send a message; the ledger is up only while there is a process."""
        if self._link is not None:
            self._link.post(message)

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
            if time.monotonic() - began > _LONG_ENOUGH_S:
                backoff_s = 0.0
            self.restarts += 1
            metrics.count("mezzotint_worker_restarts_total")
            code = self._process.returncode if self._process is not None else None
            log.error("worker.died", code=code, restarts=self.restarts, requests=len(self.ledger))
            self.ledger.lose(blame=code != LEFT, recorded=self._read_recorder())
            if self._on_death is not None:
                self._on_death(self)
            await asyncio.sleep(backoff_s)
            backoff_s = min(_MAX_BACKOFF_S, 2 * backoff_s) or self._config.backoff_s

    async def _run_process(self) -> None:
        """Start one process and serve it until it dies."""
        self._memory = make_memory()
        self._process, ours = await start_worker(self._memory)
        self._link = link = await Link.over(ours)
        hello = Hello(
            factory=self._config.factory,
            options=dict(self._config.options),
            log=write(self._log),
            cores=list(self._cores),
        )
        link.post(hello)
        watch: asyncio.Task[None] | None = None
        try:
            greeting: Greeting = await asyncio.wait_for(link.read(Greeting), self._config.start_s)
            if isinstance(greeting, Refused):
                self._refuse(read_error(greeting.error))
                return
            await self._replay(link)
            pid = self._process.pid
            self._liveness = liveness = Liveness(self._config, lambda: read_activity(pid))
            self._was_ready = True
            self.ledger.begin()
            if self._on_ready is not None:
                self._on_ready(self)
            watch = asyncio.create_task(self._watch(self._process, liveness))

            def take(message: FromWorker) -> None:
                liveness.hear()
                self.ledger.take(message)

            await link.follow(FromWorker, take)
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

    def _read_recorder(self) -> Recorded | None:
        """Return what the process that is gone wrote down, and let go of its memory."""
        memory, self._memory = self._memory, None
        if memory is None:
            return None
        try:
            return read_memory(memory)
        finally:
            os.close(memory)

    async def _end_process(self) -> None:
        """Make sure the process is gone."""
        self.ledger.is_up = False
        self._liveness = None
        if self._link is not None:
            self._link.close()
            self._link = None
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
            question = Question(self.ledger, "health", {})  # who hangs may read nothing
            answer = question.answer
            try:
                while not (await asyncio.wait([answer], timeout=_PING_S))[0]:
                    if self._kill_if_hung(process, liveness):
                        return
                self._health = answer.result()
                liveness.hear(self._health)
            except MezzotintError as error:
                log.warning("worker.health", reason=str(error))
            finally:
                question.close()
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
