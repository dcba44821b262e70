"""Training on a cluster: the processes of one run, placed by Ray and started again together.

What ``torchrun`` is to machines that somebody named, this is to the nodes of a cluster. Each
process is ``mezzotint train`` as a child of an actor of Ray, and finds the others at the first
one's address; the trainer knows nothing of Ray. When a process or its machine is lost all are
ended, and begin again at the newest checkpoint.

The folder that the command runs in, and whatever the configuration names, have to be at the
same paths on every node that gets a process. The first process, which writes the run folder,
is placed on the node of the command where there is room.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mezzotint.errors import Cancelled, InvalidRequest, NotReady, WorkFailed
from mezzotint.observe import log
from mezzotint.plain import is_mapping
from mezzotint.service.cluster import ray_link
from mezzotint.service.cluster.messages import TrainJob, TrainSaid, encode, unpack

__all__ = ["TrainProcess", "as_toml", "train_on"]

# Whose actor is gone has nobody to work for: its standard input has ended.
_PROGRAM = (
    "import os, threading\n"
    "threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()\n"
    "from mezzotint.cli.main import main\n"
    "main()"
)
_PLACE_S = 300.0  # in which every process has to get its place
_ANSWER_S = 20.0  # in which a process answers that lives
_CAUSE_S = 5.0  # for which the others are heard when one has failed: it may not be the cause
_REFUSED = 2  # what a command ends with that was asked for something wrong
_STOPPED = 130  # what it ends with after Ctrl-C
_KEPT_LINES = 20

Event = dict[str, Any]


def as_toml(plain: Mapping[str, Any]) -> str:
    """Write plain data as TOML: nested tables inline, None left out."""
    return "".join(f"{_text(k)} = {_value(v)}\n" for k, v in plain.items() if v is not None)


def _value(value: Any) -> str:
    if is_mapping(value):
        inner = (f"{_text(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        return "[" + ", ".join(_value(item) for item in items) + "]"
    if isinstance(value, float):
        return repr(value)  # also inf and nan, which are TOML's own words
    return _text(value) if isinstance(value, str) else json.dumps(value)


def _text(value: str) -> str:
    """Write a string: JSON's is TOML's, but for pairs of surrogates and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


class TrainProcess:
    """The actor that leads one process of a run; every argument and answer is bytes or text."""

    def __init__(self) -> None:
        self._child: asyncio.subprocess.Process | None = None
        self._is_stopped = False

    async def where(self) -> tuple[str, int]:
        """Return this node's address, and a port that is free there."""
        _, host = ray_link.where_this_is()
        with socket.socket() as free:
            free.bind((host, 0))
            return host, int(free.getsockname()[1])

    async def run(self, job: bytes) -> AsyncIterator[bytes]:
        """Run the process and yield what it says: each a :class:`TrainSaid`, its end the last."""
        asked: TrainJob = unpack(job, TrainJob)
        if not Path(asked.folder).is_dir():
            _, host = ray_link.where_this_is()
            told = f"{asked.folder} is not on the node {host}: a run needs one folder on all nodes"
            yield encode(TrainSaid(code=_REFUSED, line=told))
            return
        with tempfile.TemporaryDirectory(prefix="mezzotint-train-") as temporary:
            file = Path(temporary, "run.toml")
            file.write_text(asked.config, "utf-8")
            command = ["train", str(file), "--json", *(["--fresh"] if asked.fresh else [])]
            child = self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", _PROGRAM, *command,
                cwd=asked.folder,
                env={**os.environ, **_variables(asked)},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 20,
            )  # fmt: skip
            assert child.stdout is not None  # noqa: S101 - it is a pipe
            assert child.stderr is not None  # noqa: S101 - it is a pipe
            if self._is_stopped:  # before it was there
                child.send_signal(signal.SIGINT)
            errors: deque[str] = deque(maxlen=_KEPT_LINES)
            listening = asyncio.create_task(_keep(child.stderr, errors))
            async for line in child.stdout:
                yield encode(TrainSaid(line=line.decode("utf-8", "replace")))
            code = await child.wait()
            await listening
            yield encode(TrainSaid(code=code, line=errors[-1] if errors else ""))

    async def stop(self) -> None:
        """Have the process write a checkpoint and end, as Ctrl-C does."""
        self._is_stopped = True
        if self._child is not None and self._child.returncode is None:
            self._child.send_signal(signal.SIGINT)


async def _keep(stream: asyncio.StreamReader, lines: deque[str]) -> None:
    """Read a stream to its end and keep the last lines of it."""
    async for line in stream:
        if text := line.decode("utf-8", "replace").strip():
            lines.append(text)


def _variables(job: TrainJob) -> dict[str, str]:
    """Return what a process finds the others by: what torchrun sets."""
    found = {
        "MASTER_ADDR": job.host,
        "MASTER_PORT": str(job.port),
        "RANK": str(job.rank),
        "WORLD_SIZE": str(job.processes),
        "LOCAL_RANK": "0",  # Ray shows a process its own GPU and no other
        "LOCAL_WORLD_SIZE": "1",
        "OMP_NUM_THREADS": str(job.cpus),
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
    }
    return found if job.gpus else {**found, "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True, slots=True)
class _End:
    """How one process ended: its exit code, None if its actor was lost, and its last word."""

    code: int | None
    said: str

    @property
    def is_loss(self) -> bool:
        """Whether it was killed, or its machine is gone, so that another try may do better."""
        return self.code is None or self.code < 0


async def train_on(
    address: str,
    config: Mapping[str, Any],
    *,
    processes: int,
    cpus: int,
    gpus: int,
    restarts: int,
    fresh: bool,
    on_event: Callable[[Event], None],
) -> None:
    """Train on a cluster and return when the run has its steps.

    Args:
        address: ``host:port`` of the head, or ``auto``.
        config: A training run as plain data.
        processes: How many there are.
        cpus: Cores, and threads, of each.
        gpus: GPUs of each, 0 or 1.
        restarts: How often processes that were lost are started again.
        fresh: Refuse to go on from a checkpoint that is there at the start.
        on_event: Told every event of the run.

    Raises:
        NotReady: If no head answers, or the cluster has no room.
        InvalidRequest: If the run is refused.
        WorkFailed: If it fails, or too many processes were lost.
        Cancelled: After Ctrl-C, when a checkpoint was written.
    """
    await asyncio.to_thread(ray_link.connect, address)
    run = _Run(config, processes, cpus, gpus, on_event)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, run.stop)
    try:
        for left in reversed(range(restarts + 1)):
            ends = await run.attempt(fresh=fresh and left == restarts)
            if all(end.code == 0 for end in ends):
                return
            if run.is_stopped:
                raise Cancelled(f"training was stopped at step {run.step}")
            if left and any(end.is_loss for end in ends):
                told = "a process of the run was lost: all are started again"
                on_event({"event": "warning", "step": run.step, "message": told})
                continue
            raise _failure(ends)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _failure(ends: list[_End]) -> InvalidRequest | WorkFailed:
    """Return why a run failed: what was refused, else what was lost, else who fell first."""
    said = {end: end.said.removeprefix("mezzotint: ") for end in ends}
    for end in ends:
        if end.code == _REFUSED:
            return InvalidRequest(said[end])
    for end in ends:
        if end.is_loss:
            return WorkFailed(f"a process of the run was lost, with no restart left: {said[end]}")
    failed = next(end for end in ends if end.code)
    return WorkFailed(said[failed] or f"a process of the run ended with {failed.code}")


class _Run:
    """One run: its processes, started together as often as it takes."""

    def __init__(
        self,
        config: Mapping[str, Any],
        processes: int,
        cpus: int,
        gpus: int,
        on_event: Callable[[Event], None],
    ) -> None:
        self._text = as_toml(config)
        self._count, self._cpus, self._gpus = processes, cpus, gpus
        self._on_event = on_event
        self._actors: list[Any] = []
        self._placing: asyncio.Timeout | None = None
        self.is_stopped = False
        self.step = 0

    def stop(self) -> None:
        """Have every process write a checkpoint and end; who waits for a place gives it up."""
        self.is_stopped = True
        if self._placing is not None and not self._placing.expired():
            self._placing.reschedule(0.0)
        for actor in self._actors:
            actor.stop.remote()

    async def attempt(self, *, fresh: bool) -> list[_End]:
        """Start every process, and return how they ended."""
        ray = ray_link.ray_module()
        self._actors = [self._place(ray, rank) for rank in range(self._count)]
        try:
            host, port = await self._placed()
            jobs = [
                TrainJob(
                    rank=rank, processes=self._count, host=host, port=port, cpus=self._cpus,
                    gpus=self._gpus, folder=str(Path.cwd()), config=self._text, fresh=fresh,
                )
                for rank in range(self._count)
            ]  # fmt: skip
            tasks = [
                asyncio.create_task(self._follow(actor, job))
                for actor, job in zip(self._actors, jobs, strict=True)
            ]
            return await self._ended(tasks)
        finally:
            for actor in self._actors:
                with contextlib.suppress(Exception):  # Ray's own: it is gone already
                    ray.kill(actor)
            self._actors = []

    def _place(self, ray: Any, rank: int) -> Any:
        """Ask for one process; the first where this command runs, if there is room."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return (
            ray.remote(TrainProcess)
            .options(
                num_cpus=self._cpus,
                num_gpus=self._gpus,
                max_restarts=0,
                max_concurrency=8,
                scheduling_strategy="SPREAD" if rank else here,
            )
            .remote()
        )

    async def _placed(self) -> tuple[str, int]:
        """Return where the first process is, once every one has its place.

        Raises:
            NotReady: If one has none in time.
            Cancelled: After Ctrl-C: nothing has begun, so there is nothing to keep.
        """
        try:
            async with asyncio.timeout(_PLACE_S) as self._placing:
                places = await asyncio.gather(*(actor.where.remote() for actor in self._actors))
        except TimeoutError:
            if self.is_stopped:
                raise Cancelled(f"training was stopped at step {self.step}") from None
            raise NotReady(
                f"the cluster had no room for {self._count} processes with {self._cpus} CPU and "
                f"{self._gpus} GPU each within {_PLACE_S:g} s: see `mezzotint cluster status`"
            ) from None
        except Exception as error:  # Ray's own are of many kinds
            told = str(error).partition("\n")[0][:200]
            raise NotReady(f"a process of the run could not be placed: {told}") from None
        finally:
            self._placing = None
        return places[0]

    async def _ended(self, tasks: list[asyncio.Task[_End]]) -> list[_End]:
        """Wait until all have ended well, or one has not and the others told what they know.

        One that was stopped leaves the others alone: the first of them writes the checkpoint.
        """
        try:
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if any(task.result().code not in (0, _STOPPED) for task in done) and waiting:
                    _, waiting = await asyncio.wait(waiting, timeout=_CAUSE_S)
                    lost = await self._lost(tasks) if waiting else []
                    return [task.result() for task in tasks if task.done()] + lost
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()

    async def _lost(self, tasks: list[asyncio.Task[_End]]) -> list[_End]:
        """Return an end for each process that has told none and does not answer any more.

        Those beside it fail at once when its machine goes, long before Ray says why.
        """

        async def ask(actor: Any) -> _End | None:
            try:
                async with asyncio.timeout(_ANSWER_S):
                    await actor.where.remote()
            except Exception:  # Ray's own are of many kinds
                return _End(None, f"it did not answer within {_ANSWER_S:g} s")
            return None

        pairs = zip(tasks, self._actors, strict=False)  # without actors nobody is asked
        found = await asyncio.gather(*(ask(actor) for task, actor in pairs if not task.done()))
        return [end for end in found if end is not None]

    async def _follow(self, actor: Any, job: TrainJob) -> _End:
        """Hear one process to its end."""
        try:
            run = actor.run.options(num_returns="streaming")
            async for told in run.remote(encode(job)):
                said: TrainSaid = unpack(await told, TrainSaid)
                if said.code is not None:
                    return _End(said.code, said.line)
                if job.rank == 0:
                    self._tell(said.line)
        except Exception as error:  # Ray's own are of many kinds: its machine is gone
            return _End(None, str(error).partition("\n")[0][:200] or type(error).__name__)
        return _End(None, "it said nothing more")

    def _tell(self, line: str) -> None:
        """Pass an event on."""
        try:
            event = json.loads(line)
            self.step = int(event["step"])
        except (ValueError, KeyError, TypeError):
            log.debug("train.said", line=line.strip()[:200])
            return
        self._on_event(event)
