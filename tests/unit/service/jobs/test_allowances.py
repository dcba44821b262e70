"""What one key may ask holds over all servers on one PostgreSQL together.

Tests :mod:`mezzotint.service.jobs.allowances` and
:class:`mezzotint.serve.auth.SharedMeter`.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from mezzotint.serve.auth import Caller, Meter, SharedMeter
from mezzotint.serve.errors import TooManyRequests
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeService
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.jobs.schema import SERVERS

ADA = Caller(name="ada", requests_per_minute=6, concurrency=3)


def together(
    folder: Path, url: str, body: Callable[[SharedMeter, SharedMeter, Jobs], Awaitable[None]]
) -> None:
    """Run a test body on the meters of two servers; the clock of the second is a minute off."""

    async def main() -> None:
        config = JobsConfig(folder=str(folder), url=url)
        both = [Jobs(FakeService(), config) for _ in range(2)]
        for jobs in both:
            await jobs.start()
        try:
            while len(both[0]._store.others(60.0)) + len(both[1]._store.others(60.0)) < 2:
                await asyncio.sleep(0.02)
            clocks = (time.monotonic, lambda: time.monotonic() + 60.0)
            here, there = [SharedMeter(Meter(clock), jobs)
                           for clock, jobs in zip(clocks, both, strict=True)]  # fmt: skip
            await body(here, there, both[0])
        finally:
            for jobs in both:
                await jobs.stop()

    asyncio.run(main())


def test_a_keys_requests_of_a_minute_are_counted_over_both_servers(tmp_path, fresh_postgres):
    async def body(here: SharedMeter, there: SharedMeter, _: Jobs) -> None:
        for meter in (here, there, here, there, here, there):
            await meter.count(ADA)
        for meter in (here, there):
            with pytest.raises(TooManyRequests, match="at most 6 requests a minute") as refused:
                await meter.count(ADA)
            assert 5.0 < refused.value.retry_after_s <= 10.0
        await here.count(Caller(name="bob", requests_per_minute=6))

    together(tmp_path, fresh_postgres, body)


def test_a_keys_generations_at_once_are_counted_over_both_servers(tmp_path, fresh_postgres):
    async def body(here: SharedMeter, there: SharedMeter, jobs: Jobs) -> None:
        async with here.generation(ADA), there.generation(ADA):
            last = contextlib.AsyncExitStack()
            await last.enter_async_context(here.generation(ADA))
            for meter in (here, there):
                with pytest.raises(TooManyRequests, match="at most 3 generations at once"):
                    async with meter.generation(ADA):
                        pass
            await last.aclose()
            while True:  # what ended is told at once, beside the answer
                with contextlib.suppress(TooManyRequests):
                    async with there.generation(ADA):
                        break
            with jobs._store._engine.begin() as db:  # as if both had long been silent
                db.execute(sa.update(SERVERS).values(seen=1.0))
            async with there.generation(ADA), there.generation(ADA):
                pass

    together(tmp_path, fresh_postgres, body)


def test_no_more_than_the_limit_come_in_however_they_hurry(tmp_path, fresh_postgres):
    async def body(here: SharedMeter, there: SharedMeter, _: Jobs) -> None:
        inside = most = refused = 0

        async def generate(meter: SharedMeter) -> None:
            nonlocal inside, most, refused
            try:
                async with meter.generation(ADA):
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0.2)
                    inside -= 1
            except TooManyRequests:
                refused += 1

        await asyncio.gather(*(generate(meter) for meter in (here, there) * 6))
        assert (most, refused) == (3, 9)

    together(tmp_path, fresh_postgres, body)


def test_while_the_database_is_away_each_server_counts_for_itself(tmp_path, fresh_postgres):
    async def body(here: SharedMeter, there: SharedMeter, jobs: Jobs) -> None:
        def away(*_: object) -> None:
            raise sa.exc.OperationalError("", {}, Exception("away"))

        jobs._store.spend = jobs._store.hold = away  # type: ignore[method-assign]
        for _ in range(6):
            await here.count(ADA)
        async with here.generation(ADA), here.generation(ADA), here.generation(ADA):
            with pytest.raises(TooManyRequests):
                async with here.generation(ADA):
                    pass
        with pytest.raises(TooManyRequests):
            await here.count(ADA)

    together(tmp_path, fresh_postgres, body)
