"""The client for asyncio against a server process."""

import asyncio

import pytest
from tests.serving import running_server

import mezzotint as mz

SMALL = {"width": 64, "height": 32, "seed": 5, "num_inference_steps": 4}
LONG = {**SMALL, "num_inference_steps": 150}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asynchronous")
    with running_server(folder, fake={"step_s": 0.05, "slots": 1}) as running:
        yield running


def test_every_name_of_the_client_that_waits_is_there():
    def public(cls):
        return {name for name in vars(cls) if not name.startswith("_")}

    assert public(mz.AsyncClient) == public(mz.Client)
    assert public(mz.AsyncClientJob) == public(mz.ClientJob)


def test_pictures_events_and_jobs_are_those_of_the_client_that_waits(server):
    async def talk():
        async with mz.AsyncClient(server.url) as client:
            made, other = await asyncio.gather(
                client.generate("a pear", **SMALL), client.generate("a plum", **SMALL)
            )
            streamed = [e async for e in client.stream("a pear", use_cache=False, **SMALL)]
            job = await client.submit("a pear", **SMALL)
            result = await job.result()
            followed = [e async for e in job.events(after=0)]
            listed = [one.id for one in await client.jobs()]
            models = await client.models()
            plan = await client.plan("a pear", **SMALL)
            ended = await job.cancel()
            with pytest.raises(mz.UnknownName, match="unknown model"):
                await client.generate("a pear", model="none")
        return made, other, streamed, job.id, result, followed, listed, models, plan, ended

    made, other, streamed, id_, result, followed, listed, models, plan, ended = asyncio.run(talk())
    with mz.Client(server.url) as client:
        own = client.generate("a pear", **SMALL).images[0].bytes
    assert made.images[0].bytes == own != other.images[0].bytes
    assert streamed[-1].result.images[0].bytes == own
    assert result.images[0].bytes == own
    assert followed[-1].result.images[0].bytes == own
    assert listed == [id_]
    assert models
    assert plan["plan"]
    assert ended is False


def test_closing_a_stream_early_cancels_its_request(server):
    async def talk():
        async with mz.AsyncClient(server.url) as client:
            async for event in client.stream("a pear", **LONG):
                if isinstance(event, mz.Stepped):
                    break
            return await client.generate("a plum", **SMALL)

    assert asyncio.run(asyncio.wait_for(talk(), 5)).images


def test_a_job_that_takes_too_long_goes_on(server):
    async def talk():
        async with mz.AsyncClient(server.url) as client:
            job = await client.submit("a pear", **LONG)
            with pytest.raises(mz.DeadlineExceeded, match="it goes on"):
                await job.result(timeout_s=0.1)
            assert await job.cancel()
            assert isinstance([e async for e in job.events()][-1], mz.Cancelled)

    asyncio.run(talk())
