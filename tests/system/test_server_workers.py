"""Two real workers on one CPU: the same bytes from each, also after a death."""

import asyncio
import os
import signal

import pytest

from mezzotint.request import GenerationRequest
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.local_pool import WorkerPool
from mezzotint.types import Finished, Stepped


@pytest.mark.slow
def test_the_same_bytes_from_either_worker_and_after_a_death(tmp_path):
    options = {
        "models": {"home": str(tmp_path), "placement": {"device": "cpu"}},
        "engine": {"buckets": [2, 4]},
    }
    request = GenerationRequest(
        prompt="a red apple", seed=7, num_inference_steps=3, width=64, height=64
    )

    async def main() -> None:
        pool = WorkerPool(WorkerConfig(options=options, count=2))
        await pool.start()
        try:
            async with asyncio.timeout(500):
                made = [
                    await worker.generate(request, request_id=f"w{k}", use_cache=False)
                    for k, worker in enumerate(pool._supervisors)
                ]
                both = await asyncio.gather(
                    *(pool.generate(request, request_id=f"c{k}", use_cache=False) for k in range(4))
                )
                os.kill((await pool.health())["workers"][0]["pid"], signal.SIGKILL)
                after = await pool.generate(request, request_id="after", use_cache=False)
        finally:
            await pool.close()
        assert len({r.images[0].data for r in (*made, *both, after)}) == 1

    asyncio.run(main())


@pytest.mark.slow
def test_the_same_bytes_though_the_worker_hung_in_the_middle(tmp_path):
    """The whole process is stopped at its third step: found, replaced, and drawn again."""
    options = {
        "models": {"home": str(tmp_path), "placement": {"device": "cpu"}},
        "engine": {"buckets": [2]},
    }
    request = GenerationRequest(
        prompt="a red apple", seed=7, num_inference_steps=12, width=128, height=128
    )

    async def main() -> None:
        config = WorkerConfig(options=options, hang_s=3.0)
        supervisor = WorkerPool(config)
        await supervisor.start()
        stopped = 0
        try:
            async with asyncio.timeout(500):
                plain = await supervisor.generate(request, request_id="plain", use_cache=False)
                first = (await supervisor.health())["workers"][0]["pid"]
                images = []
                async for event in supervisor.stream(
                    request, request_id="hung", use_cache=False, preview_every=0
                ):
                    if isinstance(event, Stepped) and event.step == 3 and not stopped:
                        os.kill(first, signal.SIGSTOP)
                        stopped = first
                    if isinstance(event, Finished):
                        images = [image.data for image in event.result.images]
                then = (await supervisor.health())["workers"][0]["pid"]
        finally:
            await supervisor.close()
        assert stopped != then
        assert images == [image.data for image in plain.images]

    asyncio.run(main())
