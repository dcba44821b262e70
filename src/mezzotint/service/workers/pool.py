"""Pool: several workers behind one service port, wherever they run.

A request goes to the worker that :mod:`mezzotint.service.workers.routing` chooses. When a
worker dies, what it had goes to the others at once and comes to the same bytes; what
nobody can have now waits in the lobby, a ledger that is never up. A worker that has little
to do takes over what another has not begun. What changes the list of models is told to all.
"""

import asyncio
import contextlib
import re
import zlib
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mezzotint.errors import MezzotintError, NotReady
from mezzotint.observe import log
from mezzotint.request import GenerationRequest
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.workers.entries import Question, events_of, make_stream, with_seed
from mezzotint.service.workers.ledger import Ledger, Stream
from mezzotint.service.workers.remote_calls import RemoteCalls
from mezzotint.service.workers.routing import Estimates, Need, Place, Router, need_of
from mezzotint.types import Event, Finished, Started

__all__ = ["Pool", "PoolWorker", "labelled", "warm_models"]

_WORTH_MOVING_S = 1.0  # earlier that a request has to begin elsewhere
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.*)$")


class PoolWorker(Protocol):
    """What a pool needs of a worker."""

    @property
    def ledger(self) -> Ledger:
        """What it has under way."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests and shows no sign of hanging."""
        ...


class _Given:
    """A request, what it needs, and which worker has it."""

    __slots__ = ("name", "need", "stream")

    def __init__(self, stream: Stream, need: Need) -> None:
        self.stream = stream
        self.need = need
        self.name = ""  # "" is the lobby


class Pool(RemoteCalls):
    """The service port over several workers.

    Args:
        max_crashes: Deaths after which a request that was there fails.
        shares: Whether equal requests of different clients may share a drawing.
    """

    def __init__(self, *, max_crashes: int, shares: bool) -> None:
        self._router = Router()
        self._estimates = Estimates()
        self._workers: dict[str, PoolWorker] = {}
        self._given: dict[Stream, _Given] = {}
        self._lobby = Ledger(lambda _: None, max_crashes=max_crashes)
        self._shares = shares
        self._was_ready = False
        self._closing = False

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
        """Run one request on the worker that suits it and yield its events."""
        self._check()
        owner = ("" if self._shares else client) if request.seed is not None and use_cache else None
        request = with_seed(request)
        stream, events = make_stream(
            request,
            request_id=request_id,
            client=client,
            use_cache=use_cache,
            preview_every=preview_every,
            quiet=quiet,
        )
        seconds = self._estimates.seconds(request)
        need = need_of(request, seconds=seconds, owner=owner, group=self._group_of(request.model))
        given = self._given[stream] = _Given(stream, need)
        is_done = False
        self._place(given)
        try:
            async with contextlib.aclosing(events_of(stream, events)) as told:
                async for event in told:
                    if isinstance(event, Started):
                        self._begin(given)
                    elif isinstance(event, Finished):
                        is_done = True
                        self._estimates.learn(request, event.result)
                    yield event
        finally:
            self._router.settle(given.name, given.need, is_done=is_done)
            del self._given[stream]

    def _begin(self, given: _Given) -> None:
        """Hold a request that has begun to the environment in which it did."""
        place = self._router.places.get(given.name)
        if place is not None and not given.need.environment:
            given.need = replace(given.need, environment=place.environment)

    def _place(self, given: _Given) -> None:
        """Give a request to the worker that suits it now, or let it wait in the lobby."""
        for name, worker in self._workers.items():
            self._router.places[name].is_ready = worker.is_ready
        name = self._router.choose(self._bound(given.need))
        ledger = self._workers[name].ledger if name is not None else self._lobby
        given.name = name or ""
        if name is not None:
            self._router.book(name, given.need)
        if given.stream.ledger is None:
            ledger.open(given.stream)
        elif given.stream.ledger is not ledger:
            given.stream.ledger.move(given.stream, ledger)

    def _place_again(self, given: Iterable[_Given]) -> int:
        """Place requests once more; return how many there were."""
        count = 0
        for one in list(given):
            self._router.settle(one.name, one.need)
            self._place(one)
            count += 1
        return count

    def _place_waiting(self) -> None:
        """Place what waits in the lobby."""
        self._place_again([g for g in self._given.values() if not g.name])

    def _relieve(self, group: str = "") -> None:
        """Let a worker with little to do take over what others have not begun."""

        def waiting(name: str) -> list[Need]:
            held = self._workers[name].ledger
            open_ = [self._given[s] for s in held if s in self._given and not s.is_started]
            return [by_need.setdefault(id(g.need), g).need for g in reversed(open_)]

        by_need: dict[int, _Given] = {}
        for _, need in self._router.relieve(
            least_s=_WORTH_MOVING_S, group=group, waiting=waiting
        ):  # fmt: skip
            self._place_again([by_need[id(need)]])

    def _admit(self, place: Place, worker: PoolWorker) -> None:
        """Take a worker in."""
        self._router.join(place)
        self._workers[place.name] = worker

    def _dismiss(self, name: str) -> None:
        """Forget a worker; what it had goes to others."""
        worker = self._workers.pop(name)
        self._router.leave(name)
        self._rescue(worker, name)

    def _rescue(self, worker: PoolWorker, name: str) -> None:
        """Give what a dead worker had to others, or to the lobby until one is ready."""
        lost = [self._given[s] for s in worker.ledger.release() if s in self._given]
        if lost:
            count = self._place_again(lost)
            log.warning("pool.taken_over", requests=count, worker=name)

    def _bound(self, need: Need) -> Need:
        """Return a need with what only the subclass knows of it."""
        return need

    def _group_of(self, model: str) -> str:
        """Return the deployment that serves a model."""
        return ""

    def _check(self) -> None:
        """Refuse work before the first start and after the close."""
        if self._closing:
            raise NotReady("the server is shutting down")
        if not self._was_ready:
            raise NotReady("the models are still loading")

    def _able(self) -> list[PoolWorker]:
        """Return the workers that are ready, least to do first; all if none is."""
        ready = [w for w in self._workers.values() if w.is_ready]
        return sorted(ready or self._workers.values(), key=lambda w: len(w.ledger))

    @abstractmethod
    async def _any(self) -> PoolWorker:
        """Return the worker for a plain question, least to do first; may wait for one."""

    async def _ask(self, method: str, **arguments: Any) -> Any:
        """Ask the worker with least to do."""
        self._check()
        return await self._ask_at(await self._any(), method, **arguments)

    async def _ask_at(self, worker: PoolWorker, method: str, **arguments: Any) -> Any:
        return await Question(worker.ledger, method, arguments).wait()

    async def load(self, name: str) -> Mapping[str, Any]:
        """Bring a model into the memory of every worker that serves it."""
        return await self._tell_all("load", name)

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Let a model's weights go from the memory of every worker; each that is idle does."""
        return await self._tell_all("unload", name)

    async def _tell_all(self, method: str, name: str) -> Mapping[str, Any]:
        """Have a model loaded or unloaded everywhere; the first fault is raised in the end."""
        self._check()
        await self._any()  # there is one
        group = self._group_of(name)
        places = [p for n, p in self._router.places.items()
                  if p.group == group and self._workers[n].is_ready]  # fmt: skip
        if not places:
            raise NotReady(f"no worker that serves {name} is ready")
        asked = (self._ask_at(self._workers[p.name], method, name=name) for p in places)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        told: list[Mapping[str, Any]] = []
        for place, answer in zip(places, answers, strict=True):
            if not isinstance(answer, BaseException):
                names = {name, answer["name"]} if answer["default"] else {name}
                place.warm = place.warm | names if answer["ready"] else place.warm - names
                told.append(answer)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return told[0]

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; False if there is no such running request."""
        for given in list(self._given.values()):
            if given.stream.request_id != request_id or given.stream.ledger is None:
                continue
            done = given.stream.ledger.cancel(request_id)
            if done is None:
                worker = self._workers[given.name]
                done = bool(await self._ask_at(worker, "cancel", request_id=request_id))
            return done
        return False

    async def handle(
        self, model: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Give requests to handler code: always at the same worker, which has it loaded."""
        self._check()
        await self._any()  # there is one
        names = sorted(n for n, w in self._workers.items() if w.is_ready) or sorted(self._workers)
        worker = self._workers[names[zlib.crc32(model.encode()) % len(names)]]
        answers = await self._ask_at(worker, "handle", model=model, rows=[dict(r) for r in rows])
        return tuple(HandlerAnswer(**answer) for answer in answers)


async def warm_models(worker: PoolWorker) -> set[str]:
    """Return the models that a worker has in memory; none if it cannot say."""
    with contextlib.suppress(MezzotintError, asyncio.TimeoutError):
        models = await asyncio.wait_for(Question(worker.ledger, "models", {}).wait(), 10.0)
        return {m["name"] for m in models if m["ready"]}
    return set()


def labelled(text: str, **labels: str) -> str:
    """Add labels to every sample of a Prometheus text."""
    added = ",".join(f'{name}="{value}"' for name, value in labels.items())
    lines: list[str] = []
    for line in text.splitlines():
        found = None if line.startswith("#") else _SAMPLE.match(line)
        if found is None:
            lines.append(line)
            continue
        lines.append(f"{found[1]}{{{added}{f',{found[2]}' if found[2] else ''}}} {found[3]}")
    return "\n".join([*lines, ""])
