"""A worker that dies while requests with large pictures are sent to it, on either loop.

A write to a connection that is gone is silence in asyncio and a RuntimeError in uvloop.

Tests mezzotint.service.workers.supervisor.
"""

import asyncio
import io

import numpy as np
import pytest
from PIL import Image

from mezzotint.request import GenerationRequest
from mezzotint.service.config import WorkerConfig
from mezzotint.service.fake import MODELS
from mezzotint.service.workers.supervisor import WorkerSupervisor
from mezzotint.types import ImageInput

uvloop = pytest.importorskip("uvloop")
FACTORY = "mezzotint.service.fake:create_fake"


def noise(side_px=1000):
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return ImageInput(stream.getvalue())


@pytest.mark.parametrize("loop", [None, uvloop.new_event_loop])
def test_requests_with_pictures_outlive_two_deaths(tmp_path, loop):
    crashes = {name: str(tmp_path / name) for name in ("first", "second")}
    picture = noise()

    async def main():
        config = WorkerConfig(factory=FACTORY, options={"crashes": crashes}, backoff_s=0.05)
        service = WorkerSupervisor(config)
        await service.start()
        prompts = [*crashes, "third", "fourth"]
        requests = [
            GenerationRequest(model=MODELS[0]["name"], prompt=prompt, seed=1, image=picture)
            for prompt in prompts
        ]
        async with asyncio.timeout(20):
            results = await asyncio.gather(
                *(service.generate(r, request_id=r.prompt) for r in requests)
            )
            await service.close()
        assert [len(result.images) for result in results] == [1] * 4
        assert service.restarts >= 1

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())
