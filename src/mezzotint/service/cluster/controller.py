"""Controller: which replicas there are and should be, for all fronts of a cluster.

One actor, started again by Ray when it dies; it then finds the replicas that live by their
names. It holds nothing that could be lost: fronts keep what they were asked, and name their
deployments again. Requests never pass through it.
"""

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

import mezzotint
from mezzotint.errors import InvalidRequest, MezzotintError, UnknownName, WorkFailed
from mezzotint.observe import log
from mezzotint.service.cluster import ray_link
from mezzotint.service.cluster.autoscaler import Autoscaler
from mezzotint.service.cluster.deployments import fault_of, note_of
from mezzotint.service.cluster.messages import (
    ClusterState,
    DeploymentSpec,
    DeploymentState,
    FrontReport,
    Outcome,
    ReplicaGreeting,
    ReplicaState,
    encode,
    unpack,
)
from mezzotint.service.cluster.replica import Replica
from mezzotint.service.descriptions import describe_error

__all__ = ["Controller"]

_TEND_S = 0.25
_FRONT_S = 15.0  # a front that reports nothing for so long is gone
_DRAIN_S = 60.0
_MAX_BACKOFF_S = 30.0


@dataclass(slots=True, eq=False)
class _Replica:
    """One replica: its actor, and what is known of it."""

    name: str
    actor: Any
    deployment: str
    status: str = "starting"
    fault: str = ""
    greeting: ReplicaGreeting = field(default_factory=ReplicaGreeting)
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True, eq=False)
class _Deployment:
    """One deployment: what it should be, and how its starts went."""

    spec: DeploymentSpec
    scaler: Autoscaler
    wanted: int = 0
    first: ReplicaGreeting | None = None
    error: dict[str, Any] = field(default_factory=dict[str, Any])
    not_before: float = 0.0
    backoff_s: float = 0.0
    journal: list[tuple[str, bytes]] = field(default_factory=list[tuple[str, bytes]])
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Controller:
    """The actor; every argument and answer is bytes or text.

    Args:
        version: Of Mezzotint, that started it.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._deployments: dict[str, _Deployment] = {}
        self._replicas: dict[str, _Replica] = {}
        self._fronts: dict[str, tuple[float, FrontReport]] = {}
        self._number = int(time.time() * 1000) << 8  # greater than one before a restart
        self._changed = asyncio.Condition()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._begun: asyncio.Task[None] | None = None

    async def sync(self, front: str, report: bytes, wait_s: float) -> bytes:
        """Take a front's report and return the state, at the latest after ``wait_s``."""
        await self._begin()
        told: FrontReport = unpack(report, FrontReport)
        self._fronts[front] = (time.monotonic(), told)
        if told.seen == self._number:
            try:
                async with asyncio.timeout(wait_s), self._changed:
                    await self._changed.wait_for(lambda: told.seen != self._number)
            except TimeoutError:
                pass
        return encode(self._state())

    async def state(self) -> bytes:
        """Return the state at once."""
        await self._begin()
        return encode(self._state())

    async def leave(self, front: str) -> None:
        """Forget a front that closes."""
        self._fronts.pop(front, None)

    async def deploy(self, spec: bytes, replace: bool) -> bytes:
        """Make a deployment what ``spec`` says; an :class:`Outcome`.

        Args:
            spec: A :class:`DeploymentSpec`.
            replace: Whether one of that name with another spec is replaced; else it is kept,
                and the call refused.
        """
        await self._begin()
        wanted: DeploymentSpec = unpack(spec, DeploymentSpec)
        try:
            self._deploy(wanted, replace)
        except MezzotintError as error:
            return encode(Outcome(error=describe_error(error)))
        await self._notify()
        return encode(Outcome())

    def _deploy(self, wanted: DeploymentSpec, replace: bool) -> None:
        if wanted.version != self._version:
            raise InvalidRequest(
                f"the cluster runs Mezzotint {self._version} and this is {wanted.version}: "
                "install the same version on every machine, or take the cluster down first",
                field="worker.ray",
            )
        there = self._deployments.get(wanted.name)
        if there is not None and there.spec == wanted:
            return
        if there is not None and not replace:
            raise InvalidRequest(
                f"the deployment {wanted.name} stands with other settings than this server's: "
                "give both the same, or another worker.cluster.deployment",
                field="worker.cluster.deployment",
            )
        for name, other in self._deployments.items():
            taken = sorted(set(other.spec.models) & set(wanted.models))
            if name != wanted.name and taken:
                raise InvalidRequest(
                    f"{', '.join(taken)} is served by the deployment {name} already",
                    field="--models",
                )
        self._deployments[wanted.name] = _Deployment(wanted, Autoscaler(wanted.scale))
        for replica in list(self._replicas.values()):
            if replica.deployment == wanted.name:
                self._retire(replica)
        log.info("cluster.deployed", deployment=wanted.name)

    async def wait_settled(self, name: str) -> bytes:
        """Return when a replica of a deployment is ready, or could not start."""
        there = self._deployments.get(name)
        if there is None:
            error = UnknownName("deployment", name, list(self._deployments))
            return encode(Outcome(error=describe_error(error)))
        await there.settled.wait()
        return encode(Outcome(error=there.error))

    async def remove(self, name: str) -> bytes:
        """End a deployment, "" for all: an :class:`Outcome`."""
        await self._begin()
        if name and name not in self._deployments:
            error = UnknownName("deployment", name, list(self._deployments))
            return encode(Outcome(error=describe_error(error)))
        for replica in list(self._replicas.values()):
            if replica.deployment == name or not name:
                self._retire(replica)
        if name:
            del self._deployments[name]
        else:
            self._deployments.clear()
        await self._notify()
        return encode(Outcome())

    async def change(self, deployment: str, method: str, arguments: bytes) -> bytes:
        """Change the list of models of a deployment, at every replica and those to come."""
        there = self._deployments.get(deployment)
        ready = [r for r in self._replicas.values()
                 if r.deployment == deployment and r.status == "ready"]  # fmt: skip
        if there is None or not ready:
            error = WorkFailed(f"no replica of {deployment} is ready to be changed")
            return encode(Outcome(error=describe_error(error)))
        first: bytes = await ready[0].actor.change.remote(method, arguments)
        answer: Outcome = unpack(first, Outcome)
        if answer.error:
            return first
        there.journal.append((method, arguments))
        await asyncio.gather(*(r.actor.change.remote(method, arguments) for r in ready[1:]),
                             return_exceptions=True)  # fmt: skip
        return first

    async def _begin(self) -> None:
        """Find what lives, once, before anything else."""
        if self._begun is None:
            self._begun = asyncio.create_task(self._adopt())
        await asyncio.shield(self._begun)

    async def _adopt(self) -> None:
        """Take in the replicas that live, of a controller before this one."""
        for name in ray_link.names_of_replicas():
            if (actor := ray_link.get_actor(name)) is None:
                continue
            try:
                async with asyncio.timeout(5.0):
                    spec_bytes, greeting_bytes = await actor.describe.remote()
            except Exception as error:  # it is gone, or does not answer: it is not ours
                log.warning("cluster.not_adopted", replica=name, reason=str(error)[:200])
                ray_link.ray_module().kill(actor)
                continue
            spec: DeploymentSpec = unpack(spec_bytes, DeploymentSpec)
            greeting: ReplicaGreeting = unpack(greeting_bytes, ReplicaGreeting)
            there = self._deployments.setdefault(
                spec.name, _Deployment(spec, Autoscaler(spec.scale))
            )
            replica = self._replicas[name] = _Replica(name, actor, spec.name)
            if spec != there.spec:
                self._retire(replica)
            else:
                self._follow(replica, there, is_started=bool(greeting.version))
        self._spawn(self._tend())

    async def _tend(self) -> None:
        """Bring replicas and wishes together, again and again."""
        while True:
            now = time.monotonic()
            for front, (heard, _) in list(self._fronts.items()):
                if now - heard > _FRONT_S:
                    del self._fronts[front]
            for name, there in self._deployments.items():
                backlog_s, requests = self._backlog(name)
                there.wanted = there.scaler.want(now, backlog_s=backlog_s, requests=requests)
                if there.first is None and not there.error:
                    there.wanted = max(there.wanted, 1)  # to know what it serves
                self._scale(name, there, now)
            await asyncio.sleep(_TEND_S)

    def _scale(self, name: str, there: _Deployment, now: float) -> None:
        """Start or end replicas of one deployment."""
        own = [r for r in self._replicas.values() if r.deployment == name]
        alive = [r for r in own if r.status in ("starting", "ready")]
        for _ in range(there.wanted - len(alive)):
            if now >= there.not_before:
                self._start(there)
        surplus = len(alive) - there.wanted
        loads = {r.name: self._load(r.name) for r in alive}
        order = sorted(alive, key=lambda r: (r.status == "ready", loads[r.name], -r.since))
        for replica in order[: max(surplus, 0)]:
            self._retire(replica)

    def _start(self, there: _Deployment) -> None:
        """Start one replica."""
        spec = there.spec
        name = ray_link.replica_name(spec.name, secrets.token_hex(4))
        ray = ray_link.ray_module()
        actor = (
            ray.remote(Replica)
            .options(
                name=name,
                namespace=ray_link.NAMESPACE,
                lifetime="detached",
                num_cpus=spec.cpus,
                num_gpus=spec.gpus,
                max_restarts=0,
                max_concurrency=1_000_000,  # its own engine queues, nobody before it
                scheduling_strategy="SPREAD",
            )
            .remote(encode(spec), name)
        )
        replica = self._replicas[name] = _Replica(name, actor, spec.name)
        self._follow(replica, there)

    def _follow(self, replica: _Replica, there: _Deployment, *, is_started: bool = False) -> None:
        """Wait for a replica's start, and for its end."""
        self._spawn(self._lead(replica, there, is_started))

    async def _lead(self, replica: _Replica, there: _Deployment, is_started: bool) -> None:
        """Lead one replica from its start to its end."""
        reason = ""
        try:
            greeting: ReplicaGreeting = unpack(await replica.actor.start.remote(), ReplicaGreeting)
            replica.greeting = greeting
            if greeting.error:
                self._note_failure(there, greeting.error)
                ray_link.ray_module().kill(replica.actor)
                return
            replica.fault = fault_of(greeting, there.first, self._version)
            if not is_started:
                for method, arguments in there.journal:
                    await replica.actor.change.remote(method, arguments)
            if replica.fault:
                log.error("cluster.replica_refused", replica=replica.name, reason=replica.fault)
                self._note_failure(there, describe_error(WorkFailed(replica.fault)))
                ray_link.ray_module().kill(replica.actor)
                return
            replica.fault = note_of(greeting, there.first)
            there.first = there.first or greeting
            there.error, there.backoff_s = {}, 0.0
            there.settled.set()
            if replica.status == "starting":
                replica.status = "ready"
            log.info("cluster.replica_ready", replica=replica.name, host=greeting.host)
            await self._notify()
            await replica.actor.live.remote()
        except Exception as error:  # Ray's own are of many kinds: it is gone
            reason = str(error).partition("\n")[0][:200]
            ray_link.ray_module().kill(replica.actor)  # or could not be reached: nobody leads it
        finally:
            self._replicas.pop(replica.name, None)
            if replica.status == "starting" and reason:
                there.not_before = time.monotonic() + self._next_backoff(there)
            if replica.status != "leaving":
                log.warning("cluster.replica_lost", replica=replica.name, reason=reason)
            await self._notify()

    def _note_failure(self, there: _Deployment, error: dict[str, Any]) -> None:
        """Remember why a replica did not start, and wait longer each time."""
        there.error = error
        there.not_before = time.monotonic() + self._next_backoff(there)
        if there.first is None:
            there.settled.set()
        log.error("cluster.replica_failed", deployment=there.spec.name,
                  reason=error.get("message"))  # fmt: skip

    @staticmethod
    def _next_backoff(there: _Deployment) -> float:
        there.backoff_s = min(max(2 * there.backoff_s, 0.5), _MAX_BACKOFF_S)
        return there.backoff_s

    def _retire(self, replica: _Replica) -> None:
        """Let a replica finish what it has, then end it; fronts send it nothing more."""
        if replica.status != "leaving":
            was_ready, replica.status = replica.status == "ready", "leaving"
            self._spawn(self._end(replica, was_ready))

    async def _end(self, replica: _Replica, was_ready: bool) -> None:
        await self._notify()
        if was_ready:
            try:
                await replica.actor.drain.remote(_DRAIN_S)
            except Exception as error:  # Ray's own: it is gone already
                log.debug("cluster.drain", replica=replica.name, reason=str(error)[:200])
        ray_link.ray_module().kill(replica.actor)
        self._replicas.pop(replica.name, None)

    def _backlog(self, name: str) -> tuple[float, int]:
        """Return seconds and number of the requests that all fronts have for a deployment."""
        parts = [report.backlogs.get(name, (0.0, 0)) for _, report in self._fronts.values()]
        return sum(seconds for seconds, _ in parts), sum(count for _, count in parts)

    def _load(self, replica: str) -> float:
        """Return the seconds that all fronts have given a replica."""
        return sum(report.loads.get(replica, 0.0) for _, report in self._fronts.values())

    def _state(self) -> ClusterState:
        now = time.monotonic()
        deployments = [
            DeploymentState(
                spec=there.spec,
                wanted=there.wanted,
                backlog_s=self._backlog(name)[0],
                requests=self._backlog(name)[1],
                fault=str(there.error.get("message", "")),
                error=there.error,
                models=there.first.models if there.first else [],
                capabilities=there.first.capabilities if there.first else {},
            )
            for name, there in self._deployments.items()
        ]
        replicas = [
            ReplicaState(
                name=r.name,
                deployment=r.deployment,
                status=r.status,
                fault=r.fault,
                node=r.greeting.node,
                host=r.greeting.host,
                pid=r.greeting.pid,
                device=r.greeting.device,
                environment=r.greeting.environment,
                since_s=now - r.since,
                others_s=self._load(r.name),
                warm=[m["name"] for m in r.greeting.models if m.get("ready")],
            )
            for r in self._replicas.values()
        ]
        return ClusterState(
            number=self._number,
            version=mezzotint.__version__,
            deployments=deployments,
            replicas=replicas,
            fronts=len(self._fronts),
        )

    async def _notify(self) -> None:
        """Tell whoever waits that something changed."""
        async with self._changed:
            self._number += 1
            self._changed.notify_all()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
