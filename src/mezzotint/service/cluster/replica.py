"""Replica: one engine on one device, as an actor of Ray.

Fronts send it messages as bytes and listen to what it says, many messages at a time. A front
that has not been heard of for a while is gone, and so is what it asked for.
"""

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import mezzotint
from mezzotint.errors import MezzotintError, ModelError, NotReady
from mezzotint.observe import garbage, log
from mezzotint.observe.config import LogConfig
from mezzotint.plain import convert
from mezzotint.service.base import Service
from mezzotint.service.cluster.messages import (
    DeploymentSpec,
    Outcome,
    ReplicaGreeting,
    encode,
    read_batch,
    unpack,
)
from mezzotint.service.cluster.ray_link import where_this_is
from mezzotint.service.descriptions import describe_error
from mezzotint.service.workers.responder import Responder, build

__all__ = ["Replica", "keep_to", "take_cores"]

_SILENT_S = 20.0
"""A front that says nothing for so long is gone; it asks for health every second."""
_LOOK_S = 0.2


def take_cores(count: int, folder: Path, cores: list[int]) -> list[int]:
    """Take cores that no other replica of this machine has, for as long as this process lives.

    Args:
        count: How many.
        folder: Where the machine's replicas lock one file for each core.
        cores: Cores that there are.

    Returns:
        As many as were free; where too few are, the first ``count`` of all, shared.
    """
    import fcntl

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mine: list[int] = []
    opened: list[int] = []
    for core in cores:
        if len(mine) == count:
            break
        file = os.open(
            folder / f"core-{core}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            continue
        mine.append(core)
        opened.append(file)
    if len(mine) == count:
        return mine  # the locks go with the process
    for file in opened:
        os.close(file)
    return cores[:count]


def keep_to(cores: list[int]) -> None:
    """Keep all threads of this process to cores, and with them those that they start.

    An actor's methods run beside the thread that Ray began with, and libraries ask that one how
    many cores there are.
    """
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


class _Front:
    """One front: what it is told next, and when it was last heard."""

    def __init__(self, service: Service) -> None:
        self.responder = Responder(service, self._send)
        self.outbox: list[Any] = []
        self.has_news = asyncio.Event()
        self.heard = time.monotonic()

    async def _send(self, message: Any) -> None:
        self.outbox.append(message)
        self.has_news.set()


class Replica:
    """The actor; every argument and answer is bytes or text.

    Args:
        spec: A :class:`DeploymentSpec`.
        name: Its own.
    """

    def __init__(self, spec: bytes, name: str) -> None:
        self._spec: DeploymentSpec = unpack(spec, DeploymentSpec)
        self._name = name
        self._fronts: dict[str, _Front] = {}
        self._service: Service | None = None
        self._greeting = ReplicaGreeting()
        self._starting: asyncio.Task[ReplicaGreeting] | None = None
        garbage.own_process()
        log.configure(convert(self._spec.log, LogConfig, "log"))

    async def start(self) -> bytes:
        """Build the service and return when it is warm: a :class:`ReplicaGreeting`."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._begin())
        self._greeting = await asyncio.shield(self._starting)
        return encode(self._greeting)

    async def _begin(self) -> ReplicaGreeting:
        node, host = where_this_is()
        try:
            return await self._start(node, host)
        except Exception as error:  # travels as data: whoever waits shows it
            if not isinstance(error, MezzotintError):
                log.error("replica.failed", exception=error)
            return ReplicaGreeting(error=describe_error(error), node=node, host=host)

    async def _start(self, node: str, host: str) -> ReplicaGreeting:
        spec = self._spec
        if hasattr(os, "sched_setaffinity"):  # before any library counts them
            here = sorted(os.sched_getaffinity(0))
            folder = Path(tempfile.gettempdir()) / f"mezzotint-cores-{os.getuid()}"
            keep_to(take_cores(min(spec.cpus, len(here)), folder, here))
        service = self._service = await build(spec.factory, spec.options)
        until = time.monotonic() + spec.start_s
        while not (health := dict(await service.health()))["ready"]:
            if failed := health.get("failed"):
                reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
                raise ModelError(f"not every model could be warmed up: {reasons}")
            if time.monotonic() > until:
                raise NotReady(f"the engine was not ready after {spec.start_s:g} s")
            await asyncio.sleep(_LOOK_S)
        capabilities = dict(await service.capabilities())
        garbage.settle()
        return ReplicaGreeting(
            version=mezzotint.__version__,
            node=node,
            host=host,
            pid=os.getpid(),
            device=str(health.get("device", "")),
            environment=str(capabilities.get("environment", "")),
            models=[dict(model) for model in await service.models()],
            capabilities=capabilities,
        )

    async def describe(self) -> tuple[bytes, bytes]:
        """Return spec and greeting, for a controller that has just been started."""
        return encode(self._spec), encode(self._greeting)

    async def post(self, front: str, messages: bytes) -> None:
        """Take messages of a front, in order."""
        there = self._front(front)
        there.heard = time.monotonic()
        for message in read_batch(messages, from_worker=False):
            there.responder.take(message)

    async def listen(self, front: str) -> AsyncIterator[bytes]:
        """Yield what a front is told, many messages at a time, until it is gone."""
        there = self._front(front)
        while self._fronts.get(front) is there:
            if there.outbox:
                told, there.outbox = there.outbox, []
                there.has_news.clear()
                yield encode(told)
            else:
                try:
                    await asyncio.wait_for(there.has_news.wait(), 1.0)
                except TimeoutError:
                    self._forget_silent()

    async def live(self) -> None:
        """Never return: whoever waits for this hears of the end of the process."""
        while True:
            await asyncio.sleep(3600)

    async def drain(self, most_s: float) -> None:
        """Return when no front has anything under way, or after ``most_s`` seconds."""
        until = time.monotonic() + most_s
        while time.monotonic() < until and any(f.responder.count for f in self._fronts.values()):
            self._forget_silent()
            await asyncio.sleep(_LOOK_S)

    async def change(self, method: str, arguments: bytes) -> bytes:
        """Change the list of models; the answer as the responder gives it."""
        service = self._service
        assert service is not None  # noqa: S101 - only replicas that are ready are told
        try:
            given = unpack(arguments, dict[str, Any])
            return encode(Outcome(value=await Responder(service, _nobody).call(method, given)))
        except Exception as error:  # travels as data, as everything here
            return encode(Outcome(error=describe_error(error)))

    def _front(self, name: str) -> _Front:
        """Return a front, new if it is."""
        if name not in self._fronts:
            assert self._service is not None  # noqa: S101 - only replicas that are ready are told
            self._fronts[name] = _Front(self._service)
        return self._fronts[name]

    def _forget_silent(self) -> None:
        """End what fronts asked for that are gone."""
        for name, front in list(self._fronts.items()):
            if time.monotonic() - front.heard > _SILENT_S:
                log.warning("replica.front_gone", front=name, requests=front.responder.count)
                front.responder.close()
                del self._fronts[name]
                front.has_news.set()


async def _nobody(_message: Any) -> None:
    """Stand for nobody who listens."""
