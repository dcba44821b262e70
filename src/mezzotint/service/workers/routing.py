"""Routing: which worker gets a request, decided purely from what is known of the workers.

In this order: a worker whose arithmetic is that of the environment in which the request
has begun; the one on which an equal plan is under way, so that both share one drawing; then
the one that would be done first: its backlog in seconds, and what it takes there to have
the model (a load counts as much as four requests like it, two seconds at least) or the
adapters (as much as one). Of workers that are equal in all that, each in its turn.

What a request takes is learnt from the device seconds of those before it. A decision looks
at every worker once, whatever waits; nothing is queued here, so that each engine's fairness
sees all that it has to do.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field

from mezzotint.request import GenerationRequest
from mezzotint.techniques.table import ADAPTERS
from mezzotint.techniques.walking import names_of
from mezzotint.types import GenerationResult

__all__ = ["Estimates", "Need", "Place", "Router", "need_of"]

_LOAD = 4.0  # requests like it that loading the model is worth
_LEAST_LOAD_S = 2.0
_APPLY = 1.0  # requests like it that applying the adapters is worth
_KINDS = 4096  # kinds of requests whose seconds are remembered
_MEMORY = 0.3  # share of the latest measurement in an estimate
_UNKNOWN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a request needs of a worker.

    Args:
        models: Models that it draws with.
        adapters: LoRAs, control networks and the like, by name.
        plan: Equal for requests whose pictures are equal and may be shared; "" for one that
            shares nothing.
        seconds: What it is estimated to take.
        group: Deployment whose workers may have it.
        environment: In which it has begun, "" if it has not.
        is_exact: Whether another environment than that is refused, not only avoided.
    """

    models: frozenset[str]
    adapters: frozenset[str] = frozenset()
    plan: str = ""
    seconds: float = _UNKNOWN_S
    group: str = ""
    environment: str = ""
    is_exact: bool = True


def need_of(
    request: GenerationRequest, *, seconds: float, owner: str | None, group: str = ""
) -> Need:
    """Return what a request needs.

    Args:
        request: With a seed.
        seconds: What it is estimated to take.
        owner: Whose equal requests may share its pictures; None for nobody's.
        group: Deployment whose workers may have it.
    """
    adapters = {
        f"{kind.replace('_', ' ')} {name}"
        for _, kind, name in names_of(request)
        if kind in ADAPTERS.values()
    }
    return Need(
        models=frozenset({request.model, *(m.model for m in request.ensemble)}),
        adapters=frozenset(adapters),
        plan="" if owner is None else f"{owner} {request.digest}",
        seconds=seconds,
        group=group,
        is_exact=request.reproducibility == "exact",
    )


class Estimates:
    """What requests take, from what those before them took.

    A kind that is new takes what its model takes for each step and pixel; where nothing is
    known of the model, one second a picture.
    """

    def __init__(self) -> None:
        self._seconds: OrderedDict[Hashable, float] = OrderedDict()

    def seconds(self, request: GenerationRequest) -> float:
        """Return the device seconds that a request is expected to take."""
        count, work = _size(request)
        for kind, unit in ((_kind(request), 1.0), (request.model, work), ("", work)):
            if kind in self._seconds:
                return count * unit * self._seconds[kind]
        return count * _UNKNOWN_S

    def learn(self, request: GenerationRequest, result: GenerationResult) -> None:
        """Take in what a request took; one that was answered from a cache tells nothing."""
        took = [i.timings.encode_s + i.timings.denoise_s + i.timings.decode_s
                for i in result.images if i.timings.model_calls]  # fmt: skip
        if result.cache == "hit" or not took:
            return
        mean, (_, work) = sum(took) / len(took), _size(request)
        of_all = mean / work
        for kind, value in ((_kind(request), mean), (request.model, of_all), ("", of_all)):
            before = self._seconds.get(kind, value)
            self._seconds[kind] = before + _MEMORY * (value - before)
            self._seconds.move_to_end(kind)
        if len(self._seconds) > _KINDS:
            self._seconds.popitem(last=False)


def _size(request: GenerationRequest) -> tuple[int, float]:
    """Return how many pictures a request asks for, and the work of one: steps times pixels."""
    pixels = (request.width or 512) * (request.height or 512)
    count = request.walk.frames if request.walk else request.num_images
    return count, (request.num_inference_steps or 20) * pixels


def _kind(request: GenerationRequest) -> Hashable:
    size = (request.width, request.height)
    return request.model, request.num_inference_steps, size, request.scheduler, request.upscale


@dataclass(slots=True, eq=False)
class Place:
    """What is known of one worker.

    Args:
        name: Unlike any other's.
        group: Deployment that it belongs to.
        environment: What its arithmetic depends on; equal texts give equal bytes.
        is_ready: Whether it takes requests.
        warm: Models that it has in memory.
        adapters: Adapters that its latest requests had.
        booked_s: Estimated seconds of the requests that it was given here.
        others_s: Seconds that it has to do for others than this router.
    """

    name: str
    group: str = ""
    environment: str = ""
    is_ready: bool = True
    warm: set[str] = field(default_factory=set[str])
    adapters: set[str] = field(default_factory=set[str])
    booked_s: float = 0.0
    others_s: float = 0.0
    booked: int = 0

    @property
    def backlog_s(self) -> float:
        """Seconds until it would begin with a new request."""
        return self.booked_s + self.others_s


class Router:
    """Chooses workers and keeps the books on what each was given."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._groups: dict[str, list[Place]] = {}
        self._flights: dict[str, tuple[str, int]] = {}  # plan -> place, requests
        self._turn = 0

    def join(self, place: Place) -> None:
        """Take a worker in; one of the same name is replaced."""
        self.leave(place.name)
        self.places[place.name] = place
        self._groups.setdefault(place.group, []).append(place)

    def leave(self, name: str) -> None:
        """Forget a worker, and what is under way there; one that is gone is no error."""
        place = self.places.pop(name, None)
        if place is not None:
            self._groups[place.group].remove(place)
            self._flights = {p: f for p, f in self._flights.items() if f[0] != name}

    def choose(self, need: Need) -> str | None:
        """Return the worker for a request, None if none can have it now."""
        shared = self._under_way(need)
        if shared is not None:
            return shared
        load_s = max(_LOAD * need.seconds, _LEAST_LOAD_S)
        apply_s = _APPLY * need.seconds
        places = self._groups.get(need.group, ())
        self._turn += 1
        count, turn = len(places), self._turn
        best: tuple[bool, float, int] | None = None
        chosen: Place | None = None
        for number, place in enumerate(places):
            if not place.is_ready or not _fits(place, need):
                continue
            strange = bool(need.environment) and place.environment != need.environment
            seconds = place.booked_s + place.others_s
            if not need.models <= place.warm:
                seconds += load_s
            elif not need.adapters <= place.adapters:
                seconds += apply_s
            if best is not None and (strange, seconds) > best[:2]:
                continue
            key = (strange, seconds, (number - turn) % count)
            if best is None or key < best:
                best, chosen = key, place
        return chosen.name if chosen is not None else None

    def _under_way(self, need: Need) -> str | None:
        """Return the ready worker on which an equal plan is under way, None if there is none."""
        name, _ = self._flights.get(need.plan, ("", 0)) if need.plan else ("", 0)
        place = self.places.get(name)
        if place is None or not place.is_ready:
            return None
        return name if need.environment in ("", place.environment) else None

    def book(self, name: str, need: Need) -> None:
        """Note that a worker was given a request."""
        place = self.places[name]
        place.booked_s += need.seconds
        place.booked += 1
        if need.plan:
            where, count = self._flights.get(need.plan, (name, 0))
            self._flights[need.plan] = (where, count + 1) if where == name else (name, 1)

    def settle(self, name: str, need: Need, *, is_done: bool = False) -> None:
        """Note that a worker has a request no longer, done or not; it may be gone itself."""
        place = self.places.get(name)
        if place is None:
            return
        place.booked -= 1
        place.booked_s = max(place.booked_s - need.seconds, 0.0) if place.booked else 0.0
        if is_done:
            place.warm |= need.models
            place.adapters = set(need.adapters)
        where, count = self._flights.get(need.plan, ("", 0))
        if where == name:
            if count > 1:
                self._flights[need.plan] = (name, count - 1)
            else:
                del self._flights[need.plan]

    def relieve(
        self, *, least_s: float, group: str = "", waiting: Callable[[str], Iterable[Need]]
    ) -> list[tuple[str, Need]]:
        """Return what should go to another worker, since that one has little to do.

        A worker with nothing to do also takes one that waits until its model is loaded
        elsewhere, where it has the model in memory itself.

        Args:
            least_s: Seconds by which a request has to begin earlier there to be moved.
            group: Deployment that is looked at.
            waiting: Tells what a worker has and has not begun, the latest first.

        Returns:
            The worker that has it now and the request, for :meth:`choose` to place again.
        """
        places = [p for p in self._groups.get(group, ()) if p.is_ready]
        if len(places) < 2:
            return []
        moved: list[tuple[str, Need]] = []
        *others, taker = sorted(places, key=lambda p: (-p.backlog_s, len(p.warm)))
        is_free = not taker.backlog_s
        for giver in others:
            gap = giver.backlog_s - taker.backlog_s - least_s
            if gap <= 0 and not is_free:
                break
            for need in waiting(giver.name):
                if is_free and need.models <= taker.warm and not need.models <= giver.warm:
                    is_free = False  # it begins at once there, whatever loading takes here
                elif need.seconds > gap / 2:
                    continue
                moved.append((giver.name, need))
                gap -= 2 * need.seconds
                if gap <= 0:
                    break
        return moved


def _fits(place: Place, need: Need) -> bool:
    return not (need.is_exact and need.environment) or place.environment == need.environment
