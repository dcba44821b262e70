"""Ray service: the service port over the replicas of a cluster.

It runs in a process of its own, supervised as a worker is, so that the HTTP side loads no
Ray and outlives whatever happens to it. When the head is lost the process leaves with
:data:`~mezzotint.service.workers.supervisor.LEFT`; the next one waits for a head, makes the
deployment again, and everything under way is sent again with the seed it had.
"""

import asyncio
import contextlib
import dataclasses
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

import mezzotint
from mezzotint.errors import MezzotintError, NotReady, WorkFailed
from mezzotint.observe import log
from mezzotint.observe.metrics import Metrics
from mezzotint.plain import read
from mezzotint.service.cluster import ray_link
from mezzotint.service.cluster.actors import controller
from mezzotint.service.cluster.deployments import spec_of
from mezzotint.service.cluster.link import ReplicaLink
from mezzotint.service.cluster.messages import (
    ClusterState,
    DeploymentSpec,
    DeploymentState,
    FrontReport,
    Outcome,
    ReplicaState,
    encode,
    unpack,
)
from mezzotint.service.cluster.views import describe
from mezzotint.service.config import WorkerConfig
from mezzotint.service.descriptions import read_error
from mezzotint.service.workers.entries import Question
from mezzotint.service.workers.pool import Pool, PoolWorker, labelled
from mezzotint.service.workers.routing import Need, Place
from mezzotint.service.workers.supervisor import LEFT

__all__ = ["RayService", "create_service"]

_SYNC_S = 0.5
_HEAD_AWAY_S = 10.0
"""Seconds without an answer of the head after which it counts as lost."""
_CONTROLLER_AWAY_S = 30.0
"""Seconds without the controller after which this process is of another head than answers now:
one that was started anew at once, at the same address. Ray starts a controller again sooner."""
_NODES_S = 5.0  # between looks at which nodes there are
_ASK_S = 5.0  # in which a replica that broke has to answer
_STRANDED_S = 30.0
"""Seconds that a request waits for a replica like the one it began on, while others stand."""
_MOST_ASKS = 2
_QUESTION_S = 1.0  # of backlog that a question without a replica counts as


async def create_service(options: Mapping[str, Any]) -> "RayService":
    """Connect to the cluster and make the server's deployment; a worker's factory.

    Args:
        options: ``worker``: a :class:`~mezzotint.service.config.WorkerConfig` as plain data;
            ``service``: the options of its factory; ``log``: the log's configuration.

    Raises:
        NotReady: If no head answers, or this machine is no node of its cluster.
        InvalidRequest: If versions or settings differ from those of the deployment.
        MezzotintError: If no replica can be started, and why.
    """
    config = dataclasses.replace(read(WorkerConfig, options["worker"]), options=options["service"])
    service = RayService(config, spec_of(config, options.get("log")))
    await service.start()
    return service


class RayService(Pool):
    """The service port over the replicas of a cluster.

    Args:
        config: ``ray`` names the cluster; patience and crash counts hold for each replica.
        spec: The deployment that this front serves.

    Use it between :meth:`start` and :meth:`close`.
    """

    def __init__(self, config: WorkerConfig, spec: DeploymentSpec) -> None:
        is_shared = bool(dict(config.options.get("engine", {})).get("share_results"))
        super().__init__(max_crashes=config.max_crashes, shares=is_shared)
        self._config = config
        self._spec = spec
        self._front = f"front-{secrets.token_hex(6)}"
        self._head = ""
        self._controller: Any = None
        self._state = ClusterState(number=0, version=mezzotint.__version__)
        self._known: dict[str, DeploymentSpec] = {spec.name: spec}
        self._reported: dict[str, float] = {}
        self._asking = 0
        self._has_replica = asyncio.Event()
        self._stranded: dict[str, float] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._nodes: list[dict[str, Any]] = []
        self._lost: set[str] = set()  # replicas that broke, and that the controller has yet
        self._asked: dict[str, asyncio.Task[None]] = {}
        self.losses = 0

    async def start(self) -> None:
        """Connect, make the deployment, and wait until its first replica is warm.

        Raises:
            MezzotintError: If there will be none, and why.
        """
        self._head = await asyncio.to_thread(ray_link.connect, self._config.ray)
        self._controller = await asyncio.to_thread(controller)
        for spec in list(self._known.values()):
            await self._deploy(spec)
        await self._wait_settled()
        self._was_ready = True
        await self._sync_once(0.0)
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._probe())]

    async def _wait_settled(self) -> None:
        """Return when the first replica is warm."""
        spec, most_s = self._spec, 0.95 * self._config.start_s
        try:
            async with asyncio.timeout(most_s):
                self._read(await self._call_controller("wait_settled", spec.name))
        except TimeoutError:
            raise NotReady(
                f"no replica of {spec.name} was ready after {most_s:g} s; each needs a node with "
                f"{spec.cpus} free CPU and {spec.gpus} GPU: see `mezzotint cluster status`"
            ) from None

    async def _deploy(self, spec: DeploymentSpec) -> None:
        self._read(await self._call_controller("deploy", encode(spec), False))

    async def _call_controller(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._controller, method).remote(*arguments)
        except Exception as error:  # Ray's own are of many kinds
            told = str(error).partition("\n")[0][:200]
            raise NotReady(f"the cluster's controller does not answer: {told}") from None

    @staticmethod
    def _read(answer: bytes) -> Any:
        outcome: Outcome = unpack(answer, Outcome)
        if outcome.error:
            raise read_error(outcome.error)
        return outcome.value

    # What the controller says

    async def _follow(self) -> None:
        """Report and learn, again and again; leave the process where that is no use any more."""
        listed = -_NODES_S
        heard = time.monotonic()
        while True:
            try:
                await self._sync_once(_SYNC_S)
                heard = time.monotonic()
                if time.monotonic() - listed > _NODES_S:
                    listed = time.monotonic()
                    self._nodes = await asyncio.to_thread(ray_link.list_nodes)
            except NotReady as error:
                log.warning("cluster.controller_away", reason=str(error))
                if time.monotonic() - heard > _CONTROLLER_AWAY_S:
                    log.error("cluster.controller_lost", head=self._head)
                    os._exit(LEFT)
                await asyncio.sleep(_SYNC_S)
                with contextlib.suppress(MezzotintError, TimeoutError):
                    async with asyncio.timeout(_HEAD_AWAY_S):
                        self._controller = await asyncio.to_thread(controller)
            except Exception as error:  # a bug of ours: the next round may do better
                log.error("cluster.sync_failed", exception=error)
                await asyncio.sleep(_SYNC_S)

    async def _sync_once(self, wait_s: float) -> None:
        report = self._report()
        answer = await self._call_controller("sync", self._front, encode(report), wait_s)
        self._reported = report.loads
        state: ClusterState = unpack(answer, ClusterState)
        here = {d.spec.name for d in state.deployments}
        for name, spec in self._known.items():
            if name not in here:  # the controller has been started anew and knew no replica
                await self._deploy(spec)
        self._known |= {d.spec.name: d.spec for d in state.deployments}
        self._take(state)

    def _report(self) -> FrontReport:
        """Return what this front has under way."""
        backlogs: dict[str, tuple[float, int]] = {}
        for given in self._given.values():
            seconds, count = backlogs.get(given.need.group, (0.0, 0))
            backlogs[given.need.group] = (seconds + given.need.seconds, count + 1)
        if self._asking:
            seconds, count = backlogs.get(self._spec.name, (0.0, 0))
            backlogs[self._spec.name] = (seconds + _QUESTION_S, count + 1)
        return FrontReport(
            version=mezzotint.__version__,
            backlogs=backlogs,
            loads={name: place.booked_s for name, place in self._router.places.items()},
            seen=self._state.number,
        )

    def _take(self, state: ClusterState) -> None:
        """Bring links in line with what the controller says."""
        self._state = state
        there = {r.name: r for r in state.replicas}
        for name in list(self._workers):
            if name not in there:
                self._lose(self._link(name), "the controller ended it")
        for name, replica in there.items():
            if name in self._workers:
                link = self._link(name)
                link.is_leaving = replica.status != "ready"
                place = self._router.places[name]
                place.others_s = max(replica.others_s - self._reported.get(name, 0.0), 0.0)
            elif replica.status == "ready" and name in self._lost:
                self._ask_lost(name)
            elif replica.status == "ready":
                self._meet(replica)
        self._lost &= there.keys()
        for link in map(self._link, list(self._workers)):
            if link.is_leaving:
                self._move_off(link)
        self._place_waiting()
        for deployment in self._known:
            self._relieve(deployment)
        self._fail_stranded()
        if any(worker.is_ready for worker in self._workers.values()):
            self._has_replica.set()
        else:
            self._has_replica.clear()

    def _meet(self, replica: ReplicaState) -> None:
        """Take a replica in."""
        actor = ray_link.get_actor(replica.name)
        if actor is None:
            return
        link = ReplicaLink(replica, actor, self._front, self._config, self._lose)
        place = Place(
            name=replica.name,
            group=replica.deployment,
            environment=replica.environment,
            warm=set(replica.warm),
        )
        self._admit(place, link)
        log.info("cluster.replica_met", replica=replica.name, host=replica.host)

    def _ask_lost(self, name: str) -> None:
        """Ask a replica that broke whether it lives: Ray takes a while to know that it does not."""

        async def ask() -> None:
            try:
                async with asyncio.timeout(_ASK_S):
                    await ray_link.get_actor(name).describe.remote()
                self._lost.discard(name)
            except Exception as error:  # Ray's own are of many kinds: it is asked again
                log.debug("cluster.replica_silent", replica=name, reason=str(error)[:200])
                await asyncio.sleep(_SYNC_S)
            finally:
                del self._asked[name]

        if name not in self._asked:
            self._asked[name] = asyncio.create_task(ask())

    def _link(self, name: str) -> ReplicaLink:
        link = self._workers[name]
        assert isinstance(link, ReplicaLink)  # noqa: S101 - nothing else is ever admitted
        return link

    def _lose(self, link: ReplicaLink, reason: str) -> None:
        """Give what a replica had to others: it is gone."""
        if self._workers.get(link.name) is not link:
            return
        was_leaving = link.is_leaving
        link.close()
        link.ledger.lose(blame=not was_leaving)
        if not was_leaving:
            self.losses += 1
            log.warning("cluster.replica_lost", replica=link.name, reason=reason,
                        requests=len(link.ledger))  # fmt: skip
        self._lost.add(link.name)
        self._dismiss(link.name)
        link.ledger.refuse("the replica is gone")

    def _move_off(self, link: ReplicaLink) -> None:
        """Move what a leaving replica has not begun."""
        self._place_again(
            [self._given[s] for s in link.ledger if s in self._given and not s.is_started]
        )

    def _fail_stranded(self) -> None:
        """Fail exact requests that began where no replica is like it any more."""
        loop = asyncio.get_running_loop()
        waiting: dict[str, float] = {}
        starting = {r.deployment for r in self._state.replicas if r.status == "starting"}
        for given in list(self._given.values()):
            need = given.need
            others = any(p.is_ready and p.group == need.group
                         for p in self._router.places.values())  # fmt: skip
            if given.name or not need.environment or not others or need.group in starting:
                continue
            key = given.stream.request_id
            waiting[key] = self._stranded.get(key, loop.time())
            if loop.time() - waiting[key] > _STRANDED_S:
                given.stream.hear(WorkFailed(
                    "the request began on a replica whose arithmetic no other one has, and that "
                    "is gone; ask again, or with reproducibility stable"
                ))  # fmt: skip
        self._stranded = waiting

    async def _probe(self) -> None:
        """Leave the process when the head is lost."""
        away_since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1.0)
            if await ray_link.is_answering(self._head):
                away_since = None
                continue
            away_since = away_since if away_since is not None else loop.time()
            if loop.time() - away_since > _HEAD_AWAY_S:
                log.error("cluster.head_lost", head=self._head)
                os._exit(LEFT)

    # The port

    def _group_of(self, model: str) -> str:
        """Return the deployment that serves a model; the front's own if none names it."""
        name = model.partition("@")[0]
        for spec in self._known.values():
            if name in spec.models or model in spec.models:
                return spec.name
        return self._spec.name

    def _bound(self, need: Need) -> Need:
        """Hold an exact request to the environment of its deployment's oldest replica."""
        if not need.is_exact or need.environment:
            return need
        ready = [r for r in self._state.replicas
                 if r.deployment == need.group and r.status == "ready"]  # fmt: skip
        oldest = max(ready, key=lambda r: r.since_s, default=None)
        return need if oldest is None else dataclasses.replace(need, environment=oldest.environment)

    async def _any(self) -> PoolWorker:
        """Return the replica with least to do, as soon as there is one.

        Raises:
            NotReady: If there is none within the seconds that a start may take.
        """
        self._asking += 1
        try:
            async with asyncio.timeout(self._config.start_s):
                while True:
                    ready = [w for w in self._able() if w.is_ready]
                    own = [w for w in ready if isinstance(w, ReplicaLink)
                           and w.state.deployment == self._spec.name]  # fmt: skip
                    if own or ready:
                        return (own or ready)[0]
                    self._has_replica.clear()
                    await self._has_replica.wait()
        except TimeoutError:
            raise NotReady("no replica of the cluster is ready") from None
        finally:
            self._asking -= 1

    async def _ask(self, method: str, **arguments: Any) -> Any:
        """Ask a replica; another one if it dies meanwhile, once."""
        self._check()
        for _ in range(_MOST_ASKS):
            worker = await self._any()
            try:
                return await Question(worker.ledger, method, dict(arguments)).wait()
            except NotReady:
                if worker in self._workers.values():
                    raise
        raise WorkFailed(f"the engine died {_MOST_ASKS} times while it answered {method}")

    async def change(self, method: str, **arguments: Any) -> Any:
        """Change the list of models, at every replica of this front's deployment."""
        self._check()
        await self._any()
        given = encode(arguments)
        return self._read(await self._call_controller("change", self._spec.name, method, given))

    def _deployments(self) -> list[DeploymentState]:
        return list(self._state.deployments)

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models of all deployments; one is ready where any replica has it in memory."""
        self._check()
        warm = {name for place in self._router.places.values() for name in place.warm}
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for deployment in self._deployments():
            asked = deployment.models
            ready = [w for w in self._workers.values() if isinstance(w, ReplicaLink)
                     and w.is_ready and w.state.deployment == deployment.spec.name]  # fmt: skip
            if ready:
                with contextlib.suppress(MezzotintError):
                    asked = await Question(ready[0].ledger, "models", {}).wait()
            for model in asked:
                only = deployment.spec.models
                if not only or model["name"] in only:
                    entry = {**model, "ready": model["ready"] or model["name"] in warm}
                    found.setdefault((model["name"], model["version"]), entry)
        return tuple(found.values())

    async def capabilities(self) -> Mapping[str, Any]:
        """List every name a request may use, as the first replica listed them."""
        for deployment in self._deployments():
            if deployment.spec.name == self._spec.name and deployment.capabilities:
                return deployment.capabilities
        return await self._ask("capabilities")

    async def health(self) -> Mapping[str, Any]:
        """Tell how the cluster is, without waiting; ready also with no replica if that is meant."""
        links = [self._link(name) for name in self._workers]
        own = next((d for d in self._deployments() if d.spec.name == self._spec.name), None)
        may_sleep = own is not None and own.spec.least == 0 and not own.fault
        ready = any(link.is_ready for link in links) or may_sleep
        return {
            "ready": self._was_ready and not self._closing and ready,
            "live": True,
            "queue": len(self._given),
            "backlog_s": sum(g.need.seconds for g in self._given.values()),
            "device": next((link.state.device for link in links), ""),
            "call": None,
            "metrics_text": "".join(
                labelled(
                    str(link.health.get("metrics_text") or ""),
                    node=link.state.host,
                    replica=link.name,
                )
                for link in links
            ) + self._own_metrics(links),
            "cluster": self.describe(),
        }  # fmt: skip

    def _own_metrics(self, links: list[ReplicaLink]) -> str:
        """Return what this front knows of the cluster in Prometheus' text format."""
        told = Metrics()  # anew each time, so that who is gone is gone
        for link in links:
            place = self._router.places[link.name]
            where = {"node": link.state.host, "replica": link.name}
            told.set_to("mezzotint_replica_up", int(link.is_ready), **where)
            told.set_to("mezzotint_replica_backlog_seconds", place.backlog_s, **where)
        for deployment in self._deployments():
            where = {"deployment": deployment.spec.name}
            told.set_to("mezzotint_replicas_wanted", deployment.wanted, **where)
            told.set_to("mezzotint_deployment_backlog_seconds", deployment.backlog_s, **where)
        told.set_to("mezzotint_lobby_requests", len(self._lobby))
        told.count("mezzotint_replicas_lost_total", self.losses)
        return told.render().decode()

    def describe(self) -> dict[str, Any]:
        """Return head, nodes, fronts, deployments and replicas as plain data."""
        return {"head": self._head, "nodes": self._nodes, **describe(self._state)}

    async def close(self) -> None:
        """Leave the cluster; its replicas stay for others, or end when nobody asks."""
        if self._closing:
            return
        self._closing = True
        for task in [*self._tasks, *self._asked.values()]:
            task.cancel()
        for name in list(self._workers):
            self._link(name).close()
        self._lobby.refuse("the server is shutting down")
        with contextlib.suppress(Exception):  # Ray's own: it is gone already
            async with asyncio.timeout(2.0):
                await self._controller.leave.remote(self._front)
