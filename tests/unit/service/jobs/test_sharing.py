"""Two servers on one PostgreSQL: what one does, the other shows and can stop.

Tests :mod:`mezzotint.service.jobs.runner` and :mod:`mezzotint.service.jobs.notices`.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import sqlalchemy as sa

from mezzotint.request import GenerationRequest
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig, FakeService
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.jobs.schema import JOBS


class Elsewhere(FakeService):
    """A service whose arithmetic depends on something else."""

    async def capabilities(self):
        return {**await super().capabilities(), "environment": {"device": "another"}}


def together(
    folder: Path,
    url: str,
    body: Callable[[Jobs, Jobs], Awaitable[None]],
    *,
    second: FakeService | None = None,
    **config: object,
) -> None:
    """Run a test body on two queues that share a database; the first alone runs jobs at first."""

    async def main() -> None:
        both = [
            Jobs(service, JobsConfig(folder=str(folder), url=url, **config))
            for service in (FakeService(FakeConfig(step_s=0.05)), second or FakeService())
        ]
        both[1]._runner.refusal = "" if second else "it runs nothing in this test"
        for jobs in both:
            await jobs.start()
        try:
            await body(*both)
        finally:
            for jobs in both:
                await jobs.stop()

    asyncio.run(main())


def test_steps_and_previews_arrive_through_the_other_server(tmp_path, fresh_postgres):
    async def body(here: Jobs, there: Jobs) -> None:
        job = await here.submit(GenerationRequest(num_inference_steps=40, seed=1))
        events = [event async for event in there.events(job.id)]
        kinds = [event.kind for event in events]
        assert [k for k in kinds if k != "step"] == ["queued", "started", "image", "finished"]
        steps = [event for event in events if event.kind == "step"]
        assert len(steps) >= 3
        assert any(event.preview for event in steps)
        assert [e.id for e in events] == sorted({e.id for e in events})
        assert [s.data["step"] for s in steps] == sorted(s.data["step"] for s in steps)
        ended = await there.get(job.id)
        assert await there.image(ended, 0) == await here.image(ended, 0)

    together(tmp_path, fresh_postgres, body)


def test_progress_is_shown_and_a_cancel_takes_effect_through_the_other_server_in_a_second(
    tmp_path, fresh_postgres
):
    async def body(here: Jobs, there: Jobs) -> None:
        job = await here.submit(GenerationRequest(num_inference_steps=900))
        async for event in there.events(job.id):
            if event.kind == "step":
                break
        seen = await there.get(job.id)
        assert there.progress(seen)[1] == 900
        began = time.monotonic()
        cancelled = await there.cancel(job.id)
        assert cancelled.status == "cancelled"
        assert time.monotonic() - began < 1.0

    together(tmp_path, fresh_postgres, body)


def test_a_job_that_another_server_took_over_is_let_go_and_ends_once(tmp_path, fresh_postgres):
    async def body(here: Jobs, there: Jobs) -> None:
        job = await here.submit(GenerationRequest(num_inference_steps=200, seed=3))
        async for event in there.events(job.id):
            if event.kind == "step":
                break
        here._runner.refusal, there._runner.refusal = "it is lost to the others", ""
        with here._store._engine.begin() as db:  # as if `here` had stood still for a while
            db.execute(sa.update(JOBS).values(lease=1.0))
        await there._runner._take_over()
        ended = await asyncio.wait_for(there.wait(job.id), 20)
        assert (ended.status, ended.runs) == ("succeeded", 2)
        while here._running:
            await asyncio.sleep(0.02)
        kinds = [e.kind for e in here._store.events(job.id, 0)]
        assert kinds.count("finished") == 1
        assert (await here.get(job.id)).outcome == ended.outcome

    together(tmp_path, fresh_postgres, body, lease_s=30.0)


def test_an_exact_job_fails_plainly_and_a_stable_one_moves_with_a_warning(tmp_path, fresh_postgres):
    async def body(here: Jobs, there: Jobs) -> None:
        there._runner.refusal = "not yet in this test"
        jobs = [
            await here.submit(GenerationRequest(num_inference_steps=200, reproducibility=kind))
            for kind in ("exact", "stable")
        ]
        for job in jobs:
            while (await here.get(job.id)).status != "running":
                await asyncio.sleep(0.02)
        await here._runner.stop(0.0)
        there._runner.refusal = ""
        await there._runner._take_over()
        exact, stable = [await asyncio.wait_for(there.wait(job.id), 20) for job in jobs]
        assert (exact.status, stable.status) == ("failed", "succeeded")
        assert "environment no server has any more" in exact.outcome["error"]["message"]
        assert "began on a server with another environment" in stable.outcome["warnings"][-1]

    together(tmp_path, fresh_postgres, body, second=Elsewhere(), environment_wait_s=0.0)
