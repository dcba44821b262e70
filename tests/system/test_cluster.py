"""A real Ray on this machine: the same bytes as alone, also when a replica is killed."""

import asyncio
import importlib.util
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest

from mezzotint.request import GenerationRequest
from mezzotint.service.cluster.config import ClusterConfig
from mezzotint.service.config import WorkerConfig
from mezzotint.service.fake import FakeService
from mezzotint.service.workers.local_pool import create_workers
from mezzotint.service.workers.supervisor import WorkerSupervisor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
FAKE = "mezzotint.service.fake:create_fake"


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A Ray of one node with two CPUs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()


def using(head: str, body: Callable[[WorkerSupervisor], Awaitable[None]]) -> None:
    async def main() -> None:
        config = WorkerConfig(
            factory=FAKE, options={"step_s": 0.01}, ray=head,
            cluster=ClusterConfig(min_replicas=2, max_replicas=2),
        )  # fmt: skip
        service = create_workers(config)
        assert isinstance(service, WorkerSupervisor)
        await service.start()
        try:
            await body(service)
        finally:
            await service.close()

    asyncio.run(main())


async def ready_pids(service: WorkerSupervisor) -> list[int]:
    """Return the processes of both replicas, as soon as both are ready."""
    while True:
        replicas = (await service.health())["cluster"]["replicas"]
        pids = [r["pid"] for r in replicas if r["status"] == "ready"]
        if len(pids) == 2:
            return pids
        await asyncio.sleep(0.2)


async def alone(request: GenerationRequest) -> bytes:
    return (await FakeService().generate(request, request_id="alone")).images[0].data


def test_replicas_draw_the_bytes_of_one_machine_also_when_one_is_killed(head):
    async def body(service: WorkerSupervisor) -> None:
        pids = await asyncio.wait_for(ready_pids(service), 300)
        requests = [
            GenerationRequest(prompt=f"p{k}", seed=k, num_inference_steps=5 + k % 50)
            for k in range(60)
        ]
        tasks = [
            asyncio.create_task(service.generate(r, request_id=r.prompt, use_cache=False))
            for r in requests
        ]
        await asyncio.sleep(0.5)
        os.kill(pids[0], signal.SIGKILL)
        results = await asyncio.wait_for(asyncio.gather(*tasks), 300)
        assert [r.images[0].data for r in results] == [await alone(r) for r in requests]
        assert service.restarts == 0
        again = await asyncio.wait_for(ready_pids(service), 300)
        assert pids[0] not in again

    using(head, body)
