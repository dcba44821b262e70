"""Local pool: supervised processes on this machine, one for each device or share of cores.

The dead one is started again beside the others, which go on with what it had.
"""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mezzotint.errors import MezzotintError
from mezzotint.observe import log
from mezzotint.observe.config import LogConfig
from mezzotint.plain import write
from mezzotint.service.cluster.config import ClusterConfig
from mezzotint.service.config import WorkerConfig, device_in, on_device
from mezzotint.service.workers.pool import Pool, PoolWorker, labelled, warm_models
from mezzotint.service.workers.routing import Place
from mezzotint.service.workers.supervisor import WorkerSupervisor

__all__ = ["WorkerPool", "create_workers", "shares"]

_TEND_S = 1.0


def create_workers(
    config: WorkerConfig, log_config: LogConfig | None = None
) -> "WorkerSupervisor | WorkerPool":
    """Return what serves this configuration: a worker, a pool of them, or a way to a cluster."""
    if config.ray:
        return WorkerSupervisor(_to_cluster(config, log_config), log_config)
    devices = config.devices or ("",)
    if len(devices) * config.count == 1:
        own = config if not config.devices else _on_device(config, config.devices[0])
        return WorkerSupervisor(own, log_config)
    return WorkerPool(config, log_config)


def _to_cluster(config: WorkerConfig, log_config: LogConfig | None) -> WorkerConfig:
    """Return the configuration of the process that speaks to a cluster."""
    asked = {name: value for name, value in write(config).items() if name != "options"}
    return replace(
        config,
        factory="mezzotint.service.cluster.service:create_service",
        options={
            "worker": asked,
            "service": dict(config.options),
            "log": write(log_config or LogConfig()),
        },
        ray="",
        cluster=ClusterConfig(),
    )


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


class WorkerPool(Pool):
    """The service port over several supervised processes.

    Args:
        config: ``devices`` and ``count`` say how many, the rest holds for each.
        log_config: How the processes log.

    Use it between :meth:`start` and :meth:`close`.
    """

    def __init__(self, config: WorkerConfig, log_config: LogConfig | None = None) -> None:
        is_shared = bool(dict(config.options.get("engine", {})).get("share_results"))
        super().__init__(max_crashes=config.max_crashes, shares=is_shared)
        devices = config.devices or (device_in(config.options),)
        self._devices = [device for device in devices for _ in range(config.count)]
        here = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        on_cpu = [not device.startswith(("cuda", "mps")) for device in self._devices]
        each = shares(here, max(sum(on_cpu), 1))
        self._supervisors: list[WorkerSupervisor] = []
        self._names: dict[WorkerSupervisor, str] = {}
        self._tending: asyncio.Task[None] | None = None
        for number, (device, is_cpu) in enumerate(zip(self._devices, on_cpu, strict=True)):
            cores = each[sum(on_cpu[:number])] if is_cpu else ()
            worker = WorkerSupervisor(
                _on_device(config, device),
                log_config,
                cores=cores if len(cores) < len(here) else (),
                on_death=self._take_over,
                on_ready=lambda _: self._place_waiting(),
            )
            self._supervisors.append(worker)
            self._names[worker] = str(number)
            self._admit(Place(name=str(number)), worker)

    async def start(self) -> None:
        """Start the first worker, then the others with the caches that it has filled.

        Raises:
            MezzotintError: If a worker refuses, or is not ready in time.
        """
        first, *others = self._supervisors
        await first.start()
        await asyncio.gather(*(worker.start() for worker in others))
        for worker in self._supervisors:
            place = self._router.places[self._names[worker]]
            place.environment = str(dict(await worker.capabilities()).get("environment"))
            place.warm = await warm_models(worker)
        kinds = {place.environment for place in self._router.places.values()}
        if len(kinds) > 1:
            log.warning("pool.workers_differ", environments=sorted(kinds))
        self._was_ready = True
        self._tending = asyncio.create_task(self._tend())

    async def _tend(self) -> None:
        """Even out what has not begun, once a second."""
        while True:
            await asyncio.sleep(_TEND_S)
            self._place_waiting()
            self._relieve()

    def _take_over(self, dead: WorkerSupervisor) -> None:
        """Let the others go on with what a dead worker had."""
        name = self._names[dead]
        self._rescue(dead, name)  # first, so that the books of the dead close with it
        place = self._router.places[name]
        self._router.join(Place(name=name, environment=place.environment))

    async def _any(self) -> PoolWorker:
        """Return the ready worker with least to do, or one that will be ready again."""
        return self._able()[0]

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models; one is ready where any worker has it in memory."""
        able = [w for w in self._supervisors if w.is_ready] or self._supervisors[:1]
        lists = await asyncio.gather(*(worker.models() for worker in able))
        ready = {(m["name"], m["version"]) for models in lists for m in models if m["ready"]}
        return tuple({**m, "ready": (m["name"], m["version"]) in ready} for m in lists[0])

    async def health(self) -> Mapping[str, Any]:
        """Tell how the pool is: ready if any worker is, and each worker on its own."""
        each = [dict(await worker.health()) for worker in self._supervisors]
        first = next((h for h in each if h["ready"]), each[0])
        return {
            **first,
            "ready": bool(first["ready"]) and self._was_ready,  # till then work is refused
            "live": all(h["live"] for h in each),
            "queue": sum(int(h["queue"]) for h in each) + len(self._lobby),
            "backlog_s": sum(float(h.get("backlog_s", 0.0)) for h in each),
            "restarts": sum(int(h["restarts"]) for h in each),
            "metrics_text": "".join(
                labelled(str(h.get("metrics_text") or ""), worker=str(number))
                for number, h in enumerate(each)
            ),
            "workers": [
                {
                    "device": device or h.get("device", ""),
                    **{name: h[name] for name in ("pid", "ready", "restarts", "queue")},
                }
                for device, h in zip(self._devices, each, strict=True)
            ],
        }

    async def register(
        self, source: str, *, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model to every worker."""
        first, *others = self._supervisors
        model = await first.register(source, name=name, version=version)
        for worker in others:
            await worker.register(source, name=model["name"], version=model["version"])
        return model

    async def change(self, method: str, **arguments: Any) -> Any:
        """Change the list of models at every worker."""
        for worker in self._supervisors:
            await worker.change(method, **arguments)

    async def close(self) -> None:
        """Let every worker finish what is being stepped, then end it."""
        self._closing = True
        if self._tending is not None:
            self._tending.cancel()
        with contextlib.suppress(MezzotintError):
            await asyncio.gather(*(worker.close() for worker in self._supervisors))
        self._lobby.refuse("the server is shutting down")
