"""Batcher: whose turn it is, decided purely from a picture of the world.

Deficit round robin over clients, with measured seconds as the currency: who is owed most
(:mod:`mezzotint.engine.accounts`) goes first. Priority classes stand above that.

Within a client the earliest deadline goes first, then what is due first: a request is
due some multiple of its own time after it arrived. So a short one passes a long one
that has only begun, and nobody who comes later passes for ever: what was promised to
a request stays true whoever comes after it.

The batch is then filled with images that can share the call, up to the size
that gives most rows per measured second. Two things bound it for the sake of those who are
owed more. An image whose turn would come only after all of the first one's rides along only
where that costs the first next to nothing. And a call of a client that owes to another who is
away stays short, beside what the other's requests take or by itself, since it may come back at
any moment.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mezzotint.engine.accounts import Credits
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import ImageId, ImageState, StepBatch
from mezzotint.engine.waiting import Place, Waiting, place
from mezzotint.planning.costs import CostTable, cost_key, encode_key
from mezzotint.planning.memory import Footprint

__all__ = ["World", "next_batch", "next_joiners"]

_WORTH_WAITING = 1.03  # a larger batch must give this many times the rows per second
_HOPE = 0.5  # share of its time that a call is hoped to take of which no good one is known
_RIDE = 1.1  # times its length, for which an image far behind in turn may ride in a call
_CREDITOR = 1.5  # of its requests, by which a client that is away has to be owed more
_DELAY = 0.1  # of an absent creditor's request, for which a call may keep it waiting
_LEAST_DELAY_S = 0.02  # which it may in any case: nobody notices so little
_ENCODE_SHARE = 0.125  # of the quantum may go into starting images before the next call


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """All that the batcher may know.

    Args:
        running: Images that hold tensors.
        waiting: Images that have none yet.
        footprints: Bytes of each.
        credits: Seconds owed to clients, those who are away included.
        away: Seconds that a request takes of the clients who are away.
        costs: Measured seconds per call.
        config: Limits.
        budget_bytes: Bytes that all tensors of requests may take together.
        models_bytes: Bytes that the weights of all models in use may take, 0 for no bound.
        buckets: Call sizes that may be used for each (kind, key), rising.
    """

    running: Sequence[ImageState]
    waiting: Waiting
    footprints: Mapping[ImageId, Footprint]
    credits: Credits
    away: Mapping[str, float]
    costs: CostTable
    config: EngineConfig
    budget_bytes: int
    models_bytes: int
    buckets: Mapping[tuple[str, Hashable], tuple[int, ...]]

    @property
    def held_bytes(self) -> int:
        """Bytes that running images hold between calls."""
        return sum(self.footprints[s.id].slot_bytes for s in self.running)


def next_batch(world: World) -> StepBatch | None:
    """Choose the next piece of device work, or None if nothing runs.

    The first image is the one that is owed most; the others share its call.
    """
    running = world.running
    if not running:
        return None
    leader = min(running, key=lambda s: _order(s, world.credits))
    group = [s for s in running if s.kind == leader.kind and s.key == leader.key]
    buckets = world.buckets.get((leader.kind, leader.key), world.config.buckets)
    limit_s = min(world.config.quantum_s, _patience_s(leader.claim.client, world))
    ids, bucket = _cut(leader, _share_out(group, leader, world), buckets, limit_s, world)
    taken = set(ids)
    present = {state.claim.client for state in group if state.id in taken}
    wanted = sum(state.rows for state in group if state.claim.client in present)
    return StepBatch(
        kind=leader.kind, ids=ids, key=leader.key, bucket=bucket, wanted=wanted, limit_s=limit_s
    )


def next_joiners(world: World) -> tuple[ImageId, ...]:
    """Choose which waiting images get tensors now, within the memory budget.

    Nobody overtakes an image that does not fit yet, so large ones do not starve; one that
    waits for its pipeline, which runs whole and is taken, is passed. One that waits for room
    for its model's weights is passed only by those that join together with the first image
    of theirs: a model that was read draws what was there for it, and no more.
    """
    if not len(world.waiting):
        return ()
    running = world.running
    count = len(running)
    held = world.held_bytes
    activation = max((_activation(world, s) for s in running), default=0)
    encode_s = world.config.quantum_s * _ENCODE_SHARE
    joiners: list[ImageId] = []
    taken = {s.plan.model_digest for s in running if s.plan.is_alone}
    room = _Room(world)
    counts = Counter(s.claim.client for s in running)
    # of a pipeline that runs whole one picture is drawn after the other
    for state in world.waiting.in_turn(counts, world.credits, taken):
        if room.is_closed:
            break
        if not room.has_room(state):
            continue
        footprint = world.footprints[state.id]
        held += footprint.slot_bytes
        activation = max(activation, _activation(world, state))
        encode_s = min(encode_s, _patience_s(state.claim.client, world))
        encode_s -= world.costs.seconds(encode_key(state.plan), "encode", 1)
        is_alone = count == 0 and not joiners
        fits = held + activation <= world.budget_bytes and count < world.config.max_running
        if not is_alone and (not fits or (joiners and encode_s < 0)):
            break
        joiners.append(state.id)
        room.take(state)
        count += 1
        if state.plan.is_alone:
            taken.add(state.plan.model_digest)
    return tuple(joiners)


class _Room:
    """Whether the weights of an image's model fit beside those in use.

    Args:
        world: Who is running, and how many bytes there may be.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._held = {s.plan.model_digest: self._bytes(s) for s in world.running}
        self._begun: set[str] = set()
        self._has_passed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing else can join: one waits for room, and no model has begun here."""
        return self._has_passed and not self._begun

    def has_room(self, state: ImageState) -> bool:
        """Tell whether an image may join; from the first that may not, only few others may."""
        digest, bound = state.plan.model_digest, self._world.models_bytes
        if self._has_passed:
            return digest in self._begun
        if digest in self._held or not self._held or not bound:
            return True
        self._has_passed = sum(self._held.values()) + self._bytes(state) > bound
        return not self._has_passed

    def take(self, state: ImageState) -> None:
        """Let an image join."""
        digest = state.plan.model_digest
        if digest not in self._held:
            self._held[digest] = self._bytes(state)
            self._begun.add(digest)

    def _bytes(self, state: ImageState) -> int:
        return self._world.footprints[state.id].model_bytes


def _order(state: ImageState, credits: Credits) -> tuple[float, float, Place]:
    """Reading order: class, client's due, deadline, when it is due, arrival."""
    claim = state.claim
    return -claim.priority, -credits.get(claim.client, 0.0), place(state)


def _share_out(group: list[ImageState], leader: ImageState, world: World) -> Iterator[ImageState]:
    """Yield images that can share a call: the leader, then in turn by what clients are owed."""
    yield leader
    lines: dict[tuple[int, str], list[ImageState]] = defaultdict(list)
    for state in group:
        lines[state.claim.priority, state.claim.client].append(state)
    for line in lines.values():
        line.sort(key=place, reverse=True)
    row_s = world.costs.seconds(cost_key(leader.plan), leader.kind, 2) / 2
    heap = [(-priority, -world.credits.get(client, 0.0), client) for priority, client in lines]
    heapq.heapify(heap)
    while heap:
        priority, due, client = heapq.heappop(heap)
        line = lines[-priority, client]
        state = line.pop()
        if state.id != leader.id:
            yield state
        if line:
            heapq.heappush(heap, (priority, due + row_s * state.rows, client))


def _patience_s(client: str, world: World) -> float:
    """Return the seconds for which a call of a client may keep others waiting who are away.

    Only those count whose whole request would come long before anything of the client's.
    """
    owed = world.credits.get(client, 0.0)
    return min(
        (max(_DELAY * seconds, _LEAST_DELAY_S) for other, seconds in world.away.items()
         if world.credits[other] - owed > _CREDITOR * seconds > 0),
        default=math.inf,
    )  # fmt: skip


def _comes_after(state: ImageState, leader: ImageState, whole_s: float, world: World) -> bool:
    """Whether an image's turn would come only when all that the leader asks for is done."""
    if state.claim.client == leader.claim.client or state.claim.priority != leader.claim.priority:
        return state.claim.priority < leader.claim.priority
    owed = world.credits
    return owed.get(leader.claim.client, 0.0) - owed.get(state.claim.client, 0.0) > whole_s


def _cut(
    leader: ImageState,
    queue: Iterator[ImageState],
    buckets: tuple[int, ...],
    limit_s: float,
    world: World,
) -> tuple[tuple[ImageId, ...], int]:
    """Return which images of the queue to take and the size of their call.

    Args:
        leader: The first of the queue.
        queue: Images that can share a call, in turn; read as far as they fit.
        buckets: Call sizes that may be used.
        limit_s: Seconds that a call of several images may take.
        world: What is known.
    """
    key, kind = cost_key(leader.plan), leader.kind
    measured = world.costs.measured_rows(key, kind)
    reach = 2 * max(measured, default=1)
    footprint = world.footprints[leader.id]
    row_bytes = footprint.decode_bytes if kind == "decode" else footprint.row_bytes
    free = world.budget_bytes - world.held_bytes
    step_s = world.costs.seconds(key, "step", max(leader.rows, world.config.min_rows))
    whole_s = len(leader.plan.rows) * step_s + world.costs.seconds(key, "decode", 1)
    best, best_bucket, best_rate, rows, own_s = 0, 0, 0.0, 0, 0.0
    ids: list[ImageId] = []
    for position, state in enumerate(queue, start=1):
        ids.append(state.id)
        rows += state.rows
        bucket = _bucket(rows, buckets)
        seconds = world.costs.seconds(key, kind, bucket)
        if position > 1 and not world.costs.is_settled(key, kind, bucket):
            seconds *= _HOPE
        # no call is dearer than a larger one: it was timed beside other work of the machine
        larger = (world.costs.seconds(key, kind, size) for size in measured if size > bucket)
        seconds = min((seconds, *larger))
        if position == 1 or not _comes_after(state, leader, whole_s, world):
            own_s = seconds
        if position > 1 and (
            seconds > _RIDE * own_s
            or bucket > buckets[-1]
            or rows > world.config.max_rows
            or bucket * row_bytes > free
            or seconds > limit_s
            or (bucket not in measured and bucket > max(reach, _bucket(leader.rows, buckets)))
        ):
            break
        rate = rows / max(seconds, 1e-9)
        if best == 0 or rate > best_rate * _WORTH_WAITING:
            best, best_bucket, best_rate = position, bucket, rate
    return tuple(ids[:best]), best_bucket


def _bucket(rows: int, buckets: tuple[int, ...]) -> int:
    """Return the smallest allowed call that holds the rows, or a multiple of the largest."""
    for bucket in buckets:
        if bucket >= rows:
            return bucket
    return -(-rows // buckets[-1]) * buckets[-1]


def _activation(world: World, state: ImageState) -> int:
    """Return the bytes that an image needs inside its widest call."""
    footprint = world.footprints[state.id]
    rows = max(max(state.plan.rows, default=1), world.config.min_rows)
    return max(rows * footprint.row_bytes, footprint.decode_bytes)
