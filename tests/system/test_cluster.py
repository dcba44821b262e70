"""A real Ray on this machine: the same bytes as alone, also when a replica is killed."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

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
    """A Ray of one node with room for two replicas of a deployment, which stay, and another."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()


def using(head: str, body: Callable[[WorkerSupervisor], Awaitable[None]], **cluster: Any) -> None:
    async def main() -> None:
        cluster_ = ClusterConfig(**{"min_replicas": 2, "max_replicas": 2, **cluster})
        config = WorkerConfig(factory=FAKE, options={"step_s": 0.01}, ray=head, cluster=cluster_)
        service = create_workers(config)
        assert isinstance(service, WorkerSupervisor)
        await service.start()
        try:
            await body(service)
        finally:
            await service.close()

    asyncio.run(main())


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_head_without_a_token_is_refused_by_a_machine_that_has_one(head, tmp_path, mode):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("a" * 64)
    program = "from mezzotint.cli.main import main; main()"
    environment = {**os.environ, "HOME": str(tmp_path), "MEZZOTINT_HOME": str(tmp_path / "home")}
    environment |= {"RAY_AUTH_MODE": "disabled"} if mode == "disabled" else {}
    done = subprocess.run(
        [sys.executable, "-c", program, "cluster", "status", "--address", head],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if mode == "disabled":
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert "was started without a token, and this machine has one" in done.stderr
        assert "RAY_AUTH_MODE=disabled" in done.stderr


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


def test_a_deployment_that_nobody_asks_sleeps_and_the_first_request_wakes_it(head):
    async def body(service: WorkerSupervisor) -> None:
        async def replicas() -> list[dict[str, Any]]:
            told = (await service.health())["cluster"]["replicas"]
            return [r for r in told if r["deployment"] == "rare"]

        async with asyncio.timeout(300):
            while await replicas():
                await asyncio.sleep(0.2)
            assert (await service.health())["ready"]
            request = GenerationRequest(prompt="a", seed=1, num_inference_steps=3)
            result = await service.generate(request, request_id="wakes")
        assert result.images[0].data == await alone(request)
        async with asyncio.timeout(60):  # the front is told of replicas once a second
            while True:
                health = await service.health()
                told = [r for r in health["cluster"]["replicas"] if r["deployment"] == "rare"]
                if any(r["status"] == "ready" for r in told):
                    break
                await asyncio.sleep(0.05)
        (replica,), text = told, health["metrics_text"]
        labels = f'node="{replica["host"]}",replica="{replica["name"]}"'
        assert f"mezzotint_replica_up{{{labels}}} 1" in text
        assert any(labels in line for line in text.splitlines() if "_up" not in line)

    using(head, body, deployment="rare", min_replicas=0, max_replicas=1, idle_s=3.0)
