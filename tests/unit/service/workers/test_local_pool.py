"""Several workers behind one port: who gets what, and what a death costs the others."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mezzotint.errors import InvalidRequest, MezzotintError, UnknownName
from mezzotint.request import GenerationRequest
from mezzotint.service.config import WorkerConfig
from mezzotint.service.fake import FakeService
from mezzotint.service.workers.local_pool import WorkerPool, create_workers, shares
from mezzotint.service.workers.supervisor import WorkerSupervisor
from mezzotint.types import Finished, GenerationResult, Stepped

FAKE = "mezzotint.service.fake:create_fake"


def using(body: Callable[[WorkerPool], Awaitable[None]], count: int = 2, **options: Any) -> None:
    async def main() -> None:
        config = WorkerConfig(factory=FAKE, backoff_s=0.02, count=count, options=options)
        pool = create_workers(config)
        assert isinstance(pool, WorkerPool)
        await pool.start()
        try:
            await body(pool)
        finally:
            await pool.close()

    asyncio.run(main())


def alone(request: GenerationRequest) -> bytes:
    return asyncio.run(FakeService().generate(request, request_id="x")).images[0].data


def given(pool: WorkerPool) -> list[int]:
    return [place.booked for place in pool._router.places.values()]


async def ask(pool: WorkerPool, seed: int, **fields: Any) -> GenerationResult:
    request = GenerationRequest(prompt="p", seed=seed, **fields)
    return await pool.generate(request, request_id=f"r{seed}", use_cache=False)


def test_cores_are_shared_evenly_and_never_left_empty():
    assert shares(range(8), 2) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert shares(range(5), 2) == [(0, 1), (2, 3)]
    assert shares([3, 7], 3) == [(3, 7)] * 3


def test_one_worker_is_no_pool_and_devices_are_checked():
    assert isinstance(create_workers(WorkerConfig(factory=FAKE)), WorkerSupervisor)
    with pytest.raises(InvalidRequest, match="cuda:N"):
        WorkerConfig(devices=("gpu",))
    with pytest.raises(InvalidRequest, match="twice"):
        WorkerConfig(devices=("cuda:0", "cuda:0"))


def test_each_device_has_a_worker_of_its_own():
    pool = create_workers(WorkerConfig(factory=FAKE, devices=("cpu", "cuda:1"), count=2))
    assert isinstance(pool, WorkerPool)
    made = [w._config.options["models"]["placement"]["device"] for w in pool._supervisors]
    assert made == ["cpu", "cpu", "cuda:1", "cuda:1"]
    (one,) = [create_workers(WorkerConfig(factory=FAKE, devices=("cuda:1",)))]
    assert one._config.options["models"]["placement"]["device"] == "cuda:1"


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)


async def all_ready(pool: WorkerPool, restarts: list[int]) -> bool:
    workers = (await pool.health())["workers"]
    return all(w["ready"] for w in workers) and [w["restarts"] for w in workers] == restarts


def test_a_pool_is_not_ready_before_it_takes_work():
    async def main() -> None:
        pool = WorkerPool(WorkerConfig(factory=FAKE, backoff_s=0.02, count=2))
        starting = asyncio.create_task(pool.start())
        while not starting.done():
            if (await pool.health())["ready"]:
                await ask(pool, 1)  # refused with NotReady where readiness came too early
            await asyncio.sleep(0.01)
        await starting
        assert (await pool.health())["ready"]
        await pool.close()

    asyncio.run(main())


def test_work_is_spread_and_a_death_costs_the_others_nothing():
    """Each worker has its share of the cores; bytes depend neither on it nor on a death."""
    seeds = range(6)
    wanted = {seed: alone(GenerationRequest(prompt="p", seed=seed)) for seed in seeds}

    async def body(pool: WorkerPool) -> None:
        starts: dict[int, int] = dict.fromkeys(seeds, 0)
        begun: set[int] = set()

        async def follow(seed: int) -> tuple[int, bytes]:
            request = GenerationRequest(prompt="p", seed=seed)
            events = pool.stream(request, request_id=f"r{seed}", use_cache=False)
            async for event in events:
                begun.add(seed)
                if isinstance(event, Stepped):
                    starts[seed] += event.step == 1
                if isinstance(event, Finished):
                    return seed, event.result.images[0].data
            raise AssertionError("no ending")

        tasks = [asyncio.create_task(follow(seed)) for seed in seeds]
        await until(lambda: _true(len(begun) == len(seeds) and all(starts.values())))
        assert sorted(given(pool)) == [3, 3]
        health = await pool.health()
        pids = [w["pid"] for w in health["workers"]]
        own = [sorted(os.sched_getaffinity(pid)) for pid in pids]
        assert own == [list(c) for c in shares(sorted(os.sched_getaffinity(0)), 2)]
        os.kill(pids[0], signal.SIGKILL)
        for seed, task in zip(seeds, tasks, strict=True):
            assert (await task)[1] == wanted[seed]
        assert sorted(starts.values()) == [1, 1, 1, 2, 2, 2]  # the others were not disturbed
        await until(lambda: all_ready(pool, [1, 0]))
        await until(lambda: _true(sum(given(pool)) == 0))
        for seed in seeds:
            assert (await ask(pool, seed)).images[0].data == wanted[seed]

    using(body, step_s=0.4, slots=8)


async def _true(value: bool) -> bool:
    return value


def test_models_are_registered_everywhere_and_survive_a_death(tmp_path):
    (tmp_path / "m").mkdir()

    async def body(pool: WorkerPool) -> None:
        await pool.register(str(tmp_path / "m"), name="extra")
        for worker in (await pool.health())["workers"]:
            os.kill(worker["pid"], signal.SIGKILL)
        await until(lambda: all_ready(pool, [1, 1]))
        for worker in pool._supervisors:
            assert "extra" in [m["name"] for m in await worker.models()]
        await pool.unregister("extra")
        for worker in pool._supervisors:
            assert "extra" not in [m["name"] for m in await worker.models()]

    using(body)


def test_cancel_finds_the_worker_metrics_name_it_and_equal_requests_meet():
    async def body(pool: WorkerPool) -> None:
        tasks = [asyncio.create_task(ask(pool, seed, num_inference_steps=100)) for seed in range(4)]
        await until(lambda: _queued(pool, 4))
        assert await pool.cancel("r3")
        assert not await pool.cancel("nobody")
        with pytest.raises(MezzotintError, match="cancelled"):
            await tasks[3]
        for task in tasks[:3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        text = (await pool.health())["metrics_text"]
        samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
        assert {s.labels["worker"] for s in samples} <= {"0", "1"}
        request = GenerationRequest(prompt="p", seed=3)
        same = [
            asyncio.create_task(pool.generate(request, request_id=f"same{k}")) for k in range(4)
        ]
        await until(lambda: _true(sum(given(pool)) == 4))
        assert max(given(pool)) == 4
        assert len({(await task).images[0].data for task in same}) == 1

    using(body, step_s=0.2)


async def _queued(pool: WorkerPool, count: int) -> bool:
    return sum(len(worker.ledger) for worker in pool._supervisors) == count


def test_models_are_loaded_and_unloaded_at_every_worker():
    async def body(pool: WorkerPool) -> None:
        assert (await pool.unload("plate"))["ready"] is False
        for worker in pool._supervisors:
            assert [m["ready"] for m in await worker.models()] == [False, True]
        assert all("plate" not in place.warm for place in pool._router.places.values())
        assert (await pool.load("plate"))["ready"] is True
        for worker in pool._supervisors:
            assert [m["ready"] for m in await worker.models()] == [True, True]
        assert all("plate" in place.warm for place in pool._router.places.values())
        with pytest.raises(UnknownName):
            await pool.load("nobody")

    using(body)
