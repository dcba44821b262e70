"""A cluster with devices that sleep: throughput by replicas, and latency beside one machine's.

A real Ray on this machine; each replica is the fake engine, whose steps are sleeps, so that
a few cores do not bound what many devices do.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from bench._report import ratios

from mezzotint.request import GenerationRequest
from mezzotint.service.cluster.config import ClusterConfig
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.local_pool import create_workers

__all__ = ["measure"]

_FAKE = "mezzotint.service.fake:create_fake"
_STEP_S, _STEPS, _SLOTS = 0.1, 10, 2
_EACH = 16  # pictures that each replica draws in a round
_ASKED = 20  # requests of a round of latency


def measure(counts: Sequence[int], *, rounds: int = 3) -> dict[str, Any]:
    """Start Ray, measure, stop Ray.

    Args:
        counts: Numbers of replicas; the first is what the others are compared with.
        rounds: Rounds of each.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray.cluster_utils import Cluster

    most = max(counts)
    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": most, "include_dashboard": False}
    )
    try:
        return asyncio.run(_measure(str(nodes.address), counts, rounds))
    finally:
        ray.shutdown()  # what ended the deployments made this process a part of the cluster
        nodes.shutdown()


async def _measure(head: str, counts: Sequence[int], rounds: int) -> dict[str, Any]:
    found: dict[int, list[float]] = {}
    latency: dict[str, Any] = {}
    for count in counts:
        service = _service(head, count)
        await service.start()
        try:
            await _until_ready(service, count)
            await _throughput(service, count)  # connections are made, not counted
            found[count] = [await _throughput(service, count) for _ in range(rounds)]
            print(f"{count} replicas: {found[count]} pictures a second", flush=True)
            if count == counts[0]:
                latency = await _latency(service, rounds)
        finally:
            await service.close()
            await asyncio.to_thread(_remove, head)
    first = counts[0]
    linear = {
        str(count): {
            "pictures_per_s": [round(value, 3) for value in found[count]],
            "of_linear": ratios([v * count / first for v in found[first]], found[count]),
        }
        for count in counts
    }
    return {"throughput": linear, "latency": latency}


def _service(head: str, count: int) -> Any:
    """Return a front of a deployment with so many replicas; without a head, one process here."""
    options = {"step_s": _STEP_S, "slots": _SLOTS, "max_waiting": 10_000}
    cluster = ClusterConfig(deployment=f"sleeping-{count}", min_replicas=count, max_replicas=count)
    return create_workers(WorkerConfig(factory=_FAKE, options=options, ray=head, cluster=cluster))


async def _until_ready(service: Any, count: int) -> None:
    """Return when every replica is ready."""
    while True:
        replicas = (await service.health()).get("cluster", {}).get("replicas", [])
        if sum(r["status"] == "ready" for r in replicas) == count:
            return
        await asyncio.sleep(0.2)


def _request(number: int, steps: int = _STEPS) -> GenerationRequest:
    return GenerationRequest(
        prompt=str(number), seed=number, num_inference_steps=steps, width=64, height=64
    )


async def _ask(service: Any, number: int, steps: int = _STEPS) -> None:
    await service.generate(
        _request(number, steps), request_id=f"{number}-{time.monotonic_ns()}", use_cache=False
    )


async def _throughput(service: Any, count: int) -> float:
    """Return pictures a second with every device full."""
    total = _EACH * count
    began = time.perf_counter()
    await asyncio.gather(*(_ask(service, number) for number in range(total)))
    return total / (time.perf_counter() - began)


async def _latency(service: Any, rounds: int) -> dict[str, Any]:
    """Compare one request at a time through the cluster and through one process here."""
    local = _service("", 1)
    await local.start()
    seconds: dict[str, list[float]] = {"cluster": [], "local": []}
    try:
        for which in (service, local):
            await _ask(which, 0)
        for _ in range(rounds):
            for name, which in (("cluster", service), ("local", local)):
                began = time.perf_counter()
                for number in range(_ASKED):
                    await _ask(which, number, 2)
                seconds[name].append((time.perf_counter() - began) / _ASKED)
    finally:
        await local.close()
    added = [a - b for a, b in zip(seconds["cluster"], seconds["local"], strict=True)]
    return {
        "request_s": 2 * _STEP_S,
        "cluster_over_local": ratios(seconds["local"], seconds["cluster"]),
        "added_ms": [round(1000 * value, 2) for value in added],
    }


def _remove(head: str) -> None:
    """End every deployment, so that the next one has its place."""
    from mezzotint.service.cluster import calls

    calls.remove(head, "")
