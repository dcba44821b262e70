"""Worker pool: several workers behind one service port, one for each device or share of cores.

A request goes to the worker with the least to do that has its model warm; an equal
one that is under way draws it to the same worker, so that both share one flight.
When a worker dies, what it had goes to the others at once and comes to the same
bytes; the dead one is started again beside them. What changes the list of models
is told to all.
"""

import asyncio
import contextlib
import os
import re
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mezzotint.errors import MezzotintError
from mezzotint.observe import log
from mezzotint.observe.config import LogConfig
from mezzotint.request import GenerationRequest, Output
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.config import WorkerConfig, device_in, on_device
from mezzotint.service.endings import follow
from mezzotint.service.workers.supervisor import WorkerSupervisor
from mezzotint.types import Event, Finished, GenerationResult, ImageOutput

__all__ = ["WorkerPool", "create_workers", "shares"]

_COLD = 4
"""Requests that a worker without the model may be behind before it is worth loading."""
_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (.*)$")


def create_workers(
    config: WorkerConfig, log_config: LogConfig | None = None
) -> "WorkerSupervisor | WorkerPool":
    """Return what serves this configuration: one worker, or a pool of them."""
    devices = config.devices or ("",)
    if len(devices) * config.count == 1:
        own = config if not config.devices else _on_device(config, config.devices[0])
        return WorkerSupervisor(own, log_config)
    return WorkerPool(config, log_config)


def shares(cores: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Divide cores evenly: shares of one size, since the number of threads changes bits.

    More workers than cores have to share them: then each may use all.
    """
    size = len(cores) // count
    if not size:
        return [tuple(cores)] * count
    return [tuple(cores[k * size : (k + 1) * size]) for k in range(count)]


def _on_device(config: WorkerConfig, device: str) -> WorkerConfig:
    return replace(config, options=on_device(config.options, device)) if device else config


class WorkerPool:
    """The service port over several supervised processes.

    Args:
        config: ``devices`` and ``count`` say how many, the rest holds for each.
        log_config: How the processes log.

    Use it between :meth:`start` and :meth:`close`.
    """

    def __init__(self, config: WorkerConfig, log_config: LogConfig | None = None) -> None:
        devices = config.devices or (device_in(config.options),)
        places = [device for device in devices for _ in range(config.count)]
        here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        on_cpu = [not place.startswith(("cuda", "mps")) for place in places]
        each = shares(here, max(sum(on_cpu), 1))
        self._places = places
        self._workers: list[WorkerSupervisor] = []
        for place, is_cpu in zip(places, on_cpu, strict=True):
            cores = each[sum(on_cpu[: len(self._workers)])] if is_cpu else ()
            self._workers.append(
                WorkerSupervisor(
                    _on_device(config, place),
                    log_config,
                    cores=cores if len(cores) < len(here) else (),
                    on_death=self._take_over,
                )
            )
        self._warm: list[set[str]] = [set() for _ in self._workers]
        self._flights: dict[str, tuple[int, int]] = {}  # digest -> worker, requests
        self._loads: Counter[int] = Counter()
        self._turn = 0
        self._shares = bool(dict(config.options.get("engine", {})).get("share_results"))

    async def start(self) -> None:
        """Start the first worker, then the others with the caches that it has filled.

        Raises:
            MezzotintError: If a worker refuses, or is not ready in time.
        """
        await self._workers[0].start()
        await asyncio.gather(*(worker.start() for worker in self._workers[1:]))
        kinds = {
            str(dict(await worker.capabilities()).get("environment")) for worker in self._workers
        }
        if len(kinds) > 1:
            log.warning("pool.workers_differ", environments=sorted(kinds))

    async def generate(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
    ) -> GenerationResult:
        """Run one request to its end.

        Raises:
            MezzotintError: The one way in which the request ended, if not well.
        """
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
        """Run one request on the worker that suits it and yield its events."""
        owner = "" if self._shares else client
        digest = f"{owner} {request.digest}" if request.seed is not None and use_cache else ""
        index = self._choose(request, digest)
        weight = request.walk.frames if request.walk else request.num_images
        self._loads[index] += weight
        if digest:
            self._flights[digest] = (index, self._flights.get(digest, (index, 0))[1] + 1)
        events = self._workers[index].stream(
            request,
            request_id=request_id,
            client=client,
            use_cache=use_cache,
            preview_every=preview_every,
            quiet=quiet,
        )
        try:
            async for event in events:
                if isinstance(event, Finished):
                    self._warm[index].add(request.model)
                yield event
        finally:
            self._loads[index] -= weight
            if digest and digest in self._flights:
                where, count = self._flights.pop(digest)
                if count > 1:
                    self._flights[digest] = (where, count - 1)
            await events.aclose()  # type: ignore[attr-defined]

    def _choose(self, request: GenerationRequest, digest: str) -> int:
        """Return the worker for a request: same flight, then warm, then least loaded."""
        able = [k for k, worker in enumerate(self._workers) if worker.is_ready]
        if digest in self._flights and self._flights[digest][0] in able:
            return self._flights[digest][0]
        self._turn += 1
        names = {request.model, *(member.model for member in request.ensemble)}
        return min(
            able or range(len(self._workers)),
            key=lambda k: (
                self._loads[k] + (0 if names <= self._warm[k] else _COLD),
                (k - self._turn) % len(self._workers),
            ),
        )

    async def _take_over(self, dead: WorkerSupervisor) -> None:
        """Let the others go on with what a dead worker had."""
        here = self._workers.index(dead)
        self._warm[here].clear()
        others = [k for k, w in enumerate(self._workers) if w is not dead and w.is_ready]
        if others and dead.num_streams:
            heir = min(others, key=lambda k: self._loads[k])
            count = await dead.hand_over(self._workers[heir])
            log.warning("pool.taken_over", requests=count, worker=heir)

    def _any(self) -> WorkerSupervisor:
        """Return the ready worker with least to do."""
        able = [w for w in self._workers if w.is_ready] or self._workers
        return min(able, key=lambda worker: worker.num_streams)

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; False if there is no such running request."""
        for worker in self._workers:
            if await worker.cancel(request_id):
                return True
        return False

    async def plan(self, request: GenerationRequest, *, client: str = "") -> Mapping[str, Any]:
        """Resolve a request without running it."""
        return await self._any().plan(request, client=client)

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models; one is ready where any worker has it in memory."""
        able = [w for w in self._workers if w.is_ready] or self._workers[:1]
        lists = await asyncio.gather(*(worker.models() for worker in able))
        ready = {(m["name"], m["version"]) for models in lists for m in models if m["ready"]}
        return tuple({**m, "ready": (m["name"], m["version"]) in ready} for m in lists[0])

    async def capabilities(self) -> Mapping[str, Any]:
        """List every name a request may use."""
        return await self._any().capabilities()

    async def health(self) -> Mapping[str, Any]:
        """Tell how the pool is: ready if any worker is, and each worker on its own."""
        each = [dict(await worker.health()) for worker in self._workers]
        first = next((h for h in each if h["ready"]), each[0])
        return {
            **first,
            "live": all(h["live"] for h in each),
            "queue": sum(int(h["queue"]) for h in each),
            "backlog_s": sum(float(h.get("backlog_s", 0.0)) for h in each),
            "restarts": sum(int(h["restarts"]) for h in each),
            "metrics_text": "".join(
                _labelled(str(h.get("metrics_text") or ""), number) for number, h in enumerate(each)
            ),
            "workers": [
                {
                    "device": place or h.get("device", ""),
                    **{name: h[name] for name in ("pid", "ready", "restarts", "queue")},
                }
                for place, h in zip(self._places, each, strict=True)
            ],
        }

    async def register(
        self, source: str, *, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model to every worker."""
        first, *others = self._workers
        model = await first.register(source, name=name, version=version)
        for worker in others:
            await worker.register(source, name=model["name"], version=model["version"])
        return model

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove one version of a model from every worker."""
        for worker in self._workers:
            await worker.unregister(name, version)

    async def set_default(self, name: str, version: str) -> None:
        """Make the bare name mean this version, at every worker."""
        for worker in self._workers:
            await worker.set_default(name, version)

    async def inspect(self, data: bytes, *, client: str = "") -> Mapping[str, Any]:
        """Read the recipe inside a picture."""
        return await self._any().inspect(data, client=client)

    async def preprocess(self, data: bytes, how: str, *, client: str = "") -> bytes:
        """Prepare a control picture."""
        return await self._any().preprocess(data, how, client=client)

    async def upscale(
        self,
        data: bytes,
        *,
        factor: float,
        model: str | None = None,
        output: Output,
        client: str = "",
        cover: tuple[int, int] | None = None,
        crop: bool = False,
    ) -> ImageOutput:
        """Enlarge a picture."""
        return await self._any().upscale(
            data,
            factor=factor,
            model=model,
            output=output,
            client=client,
            cover=cover,
            crop=crop,
        )

    async def grid(
        self, images: Sequence[bytes], *, columns: int, padding_px: int = 2, output: Output,
        raw: bool = False,
    ) -> bytes:  # fmt: skip
        """Lay pictures out in a grid."""
        how = {"columns": columns, "padding_px": padding_px, "raw": raw}
        return await self._any().grid(images, output=output, **how)

    async def handle(
        self, model: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Give requests to handler code: always at the same worker, which has it loaded."""
        able = [w for w in self._workers if w.is_ready] or self._workers
        return await able[zlib.crc32(model.encode()) % len(able)].handle(model, rows)

    async def close(self) -> None:
        """Let every worker finish what is being stepped, then end it."""
        with contextlib.suppress(MezzotintError):
            await asyncio.gather(*(worker.close() for worker in self._workers))


def _labelled(text: str, number: int) -> str:
    """Add the worker's number to every sample of a Prometheus text."""
    lines: list[str] = []
    for line in text.splitlines():
        found = None if line.startswith("#") else _SAMPLE.match(line)
        if found is None:
            lines.append(line)
            continue
        labels = f'worker="{number}"' + (f",{found[2]}" if found[2] else "")
        lines.append(f"{found[1]}{{{labels}}} {found[3]}")
    return "\n".join([*lines, ""])
