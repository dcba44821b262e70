"""A cluster in virtual time: the real router, engine and autoscaler, devices that are numbers.

Every device has a step engine of its own, with its batcher and its fairness; what it works on
is a formula: a part per call and a part per row. Nothing sleeps: a thousand devices take as
long as their decisions take.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mezzotint.engine.admission import due_s
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import Claim, EngineEvent, ImageDone, ImageFailed, ImageId, StepBatch
from mezzotint.engine.step_engine import Decoded, Encoded, StepEngine, Submission, Worked
from mezzotint.planning.costs import CostTable
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import Plan, Techniques
from mezzotint.request import Output
from mezzotint.service.cluster.autoscaler import Autoscaler, Scale
from mezzotint.service.workers.routing import Need, Place, Router
from mezzotint.types import Size

__all__ = ["Arrival", "Device", "Outcome", "simulate"]

_FOOTPRINT = Footprint(slot_bytes=1 << 20, row_bytes=1 << 20, decode_bytes=1 << 20)
_BUCKETS = (2, 4, 8, 16, 32)
_TEND_S = 1.0
_WORTH_MOVING_S = 1.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace: when, whose, for what."""

    at_s: float
    client: str
    model: str
    steps: int


@dataclass(frozen=True, slots=True)
class Device:
    """What a device takes: seconds of a call, of a row in it, and of starting a replica."""

    call_s: float = 0.3
    row_s: float = 0.1
    start_s: float = 30.0

    def alone_s(self, steps: int) -> float:
        """Return the seconds of one picture with nobody else there."""
        return steps * (self.call_s + 2 * self.row_s) + self.call_s + self.row_s

    def shared_s(self, steps: int) -> float:
        """Return the device seconds of one picture in full calls."""
        rows = _BUCKETS[-1]
        return steps * 2 * (self.call_s / rows + self.row_s) + self.call_s + self.row_s


@dataclass(slots=True)
class Outcome:
    """What became of a trace.

    Args:
        waits_s: Seconds from each arrival to its end.
        stretches: The same in times of what the picture takes alone.
        busy_s: Device seconds that were worked.
        there_s: Device seconds that there were.
        moved: Requests that an idle device took over.
        most: Most replicas at once.
    """

    waits_s: list[float] = field(default_factory=list)
    stretches: list[float] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    busy_s: float = 0.0
    there_s: float = 0.0
    moved: int = 0
    most: int = 0


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Executor:
    """Spends virtual seconds."""

    def __init__(self, clock: _Clock, device: Device) -> None:
        self._clock = clock
        self._device = device
        self.busy_s = 0.0

    def encode(self, image: ImageId, plan: Plan, assets: Any, *, client: str = "") -> Encoded:
        return Encoded(key=plan.batch_key)

    def _work(self, rows: int) -> float:
        seconds = self._device.call_s + self._device.row_s * rows
        self._clock.now += seconds
        self.busy_s += seconds
        return seconds

    def step(self, batch: StepBatch) -> Worked:
        return Worked(seconds=self._work(batch.bucket))

    def decode(self, batch: StepBatch) -> Worked:
        seconds = self._work(batch.bucket)
        return Worked(decoded={i: Decoded(picture=None) for i in batch.ids}, seconds=seconds)

    def preview(self, image: ImageId) -> None:
        return None

    def release(self, image: ImageId) -> None:
        pass

    def buckets(self, kind: str, key: Any) -> tuple[int, ...]:
        return (1, 2, 4, 8) if kind == "decode" else _BUCKETS


class _Replica:
    """One device with its engine; its clock may be ahead by the call under way."""

    def __init__(self, name: str, device: Device, costs: CostTable, now: float, done: Any) -> None:
        self.name = name
        self.clock = _Clock()
        self.clock.now = self.born = now
        self.executor = _Executor(self.clock, device)
        self.is_ticking = False
        self.engine = StepEngine(
            EngineConfig(quantum_s=10.0),
            self.executor,
            lambda event: _hear(self, event, done),
            costs=costs,
            budget_bytes=1 << 50,
            clock=self.clock,
        )


def _hear(replica: _Replica, event: EngineEvent, done: Any) -> None:
    """Tell of a picture that is done; one that failed is a fault of the simulation."""
    if isinstance(event, ImageFailed):
        raise event.error
    if isinstance(event, ImageDone):
        done(replica, event)


def _plan(model: str, steps: int) -> Plan:
    return Plan(
        model=model, model_digest=model, environment="simulated", prompt="", negative_prompt="",
        prompt_dialect="plain", size=Size(64, 64), seed=0, num_inference_steps=steps,
        scheduler="euler", sigma_schedule=None, steps=tuple(range(1, steps + 1)),
        rows=(2,) * steps, guidance=(5.0,) * steps, techniques=Techniques(), output=Output(),
        reproducibility="exact",
    )  # fmt: skip


class _Cluster:
    def __init__(self, device: Device, replicas: int, scale: Scale | None) -> None:
        self.device = device
        self.router = Router()
        self.costs = CostTable()
        self.scaler = Autoscaler(scale) if scale else None
        self.replicas: dict[str, _Replica] = {}
        self.starting = 0
        self.lobby: deque[ImageId] = deque()
        self.needs: dict[ImageId, tuple[Need, Arrival]] = {}
        self.at: dict[ImageId, str] = {}
        self.outcome = Outcome()
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = itertools.count()
        self.plans: dict[tuple[str, int], Plan] = {}
        for _ in range(replicas):
            self.start(0.0)

    def push(self, at_s: float, kind: str, what: Any) -> None:
        heapq.heappush(self.events, (at_s, next(self.order), kind, what))

    def start(self, now: float) -> None:
        name = f"r{next(self.order)}"
        self.replicas[name] = _Replica(name, self.device, self.costs, now, self.done)
        self.router.join(Place(name=name, warm={"model"}))
        self.outcome.most = max(self.outcome.most, len(self.replicas))

    def done(self, replica: _Replica, event: ImageDone) -> None:
        self.push(replica.clock.now, "done", (replica.name, event.id))

    def place(self, image: ImageId, now: float) -> None:
        need, arrival = self.needs[image]
        name = self.router.choose(need)
        if name is None:
            self.lobby.append(image)
            return
        self.router.book(name, need)
        self.at[image] = name
        replica = self.replicas[name]
        plan = self.plans.setdefault(
            (arrival.model, arrival.steps), _plan(arrival.model, arrival.steps)
        )
        claim = Claim(client=arrival.client, arrived_s=arrival.at_s,
                      due_s=due_s(arrival.at_s, need.seconds))  # fmt: skip
        replica.engine.submit(Submission(id=image, plan=plan, claim=claim, footprint=_FOOTPRINT))
        if not replica.is_ticking:
            replica.is_ticking = True
            replica.clock.now = max(replica.clock.now, now)
            self.push(replica.clock.now, "tick", replica)

    def relieve(self, now: float) -> None:
        by_need: dict[int, ImageId] = {}

        def waiting(name: str) -> Iterable[Need]:
            states = self.replicas[name].engine.states.values()
            for state in reversed([s for s in states if s.status == "waiting"]):
                need = self.needs[state.id][0]
                by_need[id(need)] = state.id
                yield need

        for name, need in self.router.relieve(least_s=_WORTH_MOVING_S, waiting=waiting):
            image = by_need[id(need)]
            self.replicas[name].engine.cancel_image(image)
            self.router.settle(name, need)
            self.place(image, now)
            self.outcome.moved += 1

    def tend(self, now: float) -> None:
        for _ in range(len(self.lobby)):
            self.place(self.lobby.popleft(), now)
        self.relieve(now)
        if self.scaler is None:
            return
        backlog = sum(n.seconds for n, _ in self.needs.values())
        want = self.scaler.want(now, backlog_s=backlog, requests=len(self.needs))
        for _ in range(want - len(self.replicas) - self.starting):
            self.starting += 1
            self.push(now + self.device.start_s, "ready", None)
        idle = [r for r in self.replicas.values() if r.engine.is_idle]
        for replica in idle[: max(len(self.replicas) - want, 0)]:
            self.end(replica, now)

    def end(self, replica: _Replica, now: float) -> None:
        self.outcome.there_s += now - replica.born
        self.outcome.busy_s += replica.executor.busy_s
        del self.replicas[replica.name]
        self.router.leave(replica.name)

    def take(self, kind: str, what: Any, now: float) -> None:
        if kind == "arrive":
            image = ImageId(f"q{next(self.order)}", 0)
            seconds = self.device.shared_s(what.steps)
            self.needs[image] = (Need(models=frozenset({what.model}), seconds=seconds), what)
            self.place(image, now)
        elif kind == "tick":
            if what.engine.tick():
                self.push(what.clock.now, "tick", what)
            else:
                what.is_ticking = False
        elif kind == "done":
            name, image = what
            need, arrival = self.needs.pop(image)
            self.router.settle(name, need, is_done=True)
            self.outcome.waits_s.append(now - arrival.at_s)
            self.outcome.stretches.append((now - arrival.at_s) / self.device.alone_s(arrival.steps))
            self.outcome.clients.append(arrival.client)
        elif kind == "ready":
            self.starting -= 1
            self.start(now)
        elif kind == "tend":
            self.tend(now)


def simulate(
    trace: Sequence[Arrival], *, device: Device, replicas: int, scale: Scale | None = None
) -> Outcome:
    """Replay a trace to its last picture.

    Args:
        trace: In order of arrival.
        device: What every device takes.
        replicas: How many there are at the beginning.
        scale: Bounds of the autoscaler; None keeps their number.
    """
    cluster = _Cluster(device, replicas, scale)
    for arrival in trace:
        cluster.push(arrival.at_s, "arrive", arrival)
    cluster.push(0.0, "tend", None)
    now, left = 0.0, len(trace)
    while left:
        now, _, kind, what = heapq.heappop(cluster.events)
        cluster.take(kind, what, now)
        left -= kind == "done"
        if kind == "tend":
            cluster.push(now + _TEND_S, "tend", None)
    for replica in list(cluster.replicas.values()):
        cluster.end(replica, now)
    return cluster.outcome
