"""Durable jobs, on SQLite and, where Debian's PostgreSQL is installed, on that."""

import asyncio
import contextlib
import errno
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from mezzotint import errors
from mezzotint.request import GenerationRequest
from mezzotint.service import objects
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig, FakeService
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.jobs.leases import LeaseLost, PutBack
from mezzotint.service.jobs.ownership import FolderTaken
from mezzotint.service.jobs.refusals import IdempotencyConflict
from mezzotint.service.jobs.results import PictureGone
from mezzotint.service.jobs.rows import Job, Lease
from mezzotint.service.jobs.schema import JOBS
from mezzotint.service.jobs.store import JobStore, StoredEvent


def using(
    folder: Path,
    body: Callable[[Jobs, FakeService], Awaitable[None]],
    *,
    fake: FakeConfig | None = None,
    **config: object,
) -> None:
    """Run a test body on a started queue."""

    async def main() -> None:
        service = FakeService(fake)
        jobs = Jobs(service, JobsConfig(folder=str(folder), **config))
        await jobs.start()
        try:
            await body(jobs, service)
        finally:
            await jobs.stop()

    asyncio.run(main())


def test_a_job_runs_once_and_keeps_pictures_and_events(tmp_path, url):
    async def body(jobs: Jobs, service: FakeService) -> None:
        job = await jobs.submit(GenerationRequest(prompt="a", seed=1, num_images=2), client="c")
        assert (job.status, job.client) == ("queued", "c")
        ended = await jobs.wait(job.id)
        assert ended.status == "succeeded"
        assert [i.index for i in ended.images] == [0, 1]
        direct = await service.generate(
            GenerationRequest(prompt="a", seed=1, num_images=2), request_id="x"
        )
        for image in direct.images:
            assert await jobs.image(ended, image.index) == image.data
        kinds = [e.kind async for e in jobs.events(job.id)]
        assert kinds == ["queued", "started", "image", "image", "finished"]

    using(tmp_path, body, url=url)


def test_idempotency_keys_belong_to_a_client_and_a_body(tmp_path, url):
    async def body(jobs: Jobs, service: FakeService) -> None:
        request = GenerationRequest(prompt="a")
        first = await jobs.submit(request, client="c", idempotency_key="k")
        again = await jobs.submit(request, client="c", idempotency_key="k")
        other = await jobs.submit(request, client="d", idempotency_key="k")
        assert first.id == again.id != other.id
        with pytest.raises(IdempotencyConflict):
            await jobs.submit(GenerationRequest(prompt="b"), client="c", idempotency_key="k")
        both = await asyncio.gather(
            *(jobs.submit(request, client="e", idempotency_key="k") for _ in range(8))
        )
        assert len({j.id for j in both}) == 1

    using(tmp_path, body, url=url)


def test_running_jobs_are_queued_again_when_a_server_starts(tmp_path, url):
    seeds: list[str] = []

    async def die(jobs: Jobs, service: FakeService) -> None:
        job = await jobs.submit(GenerationRequest(prompt="a", num_inference_steps=100))
        while job.status != "running":
            job = await jobs.get(job.id)
            await asyncio.sleep(0.01)
        seeds.append(job.request)
        for task in [*jobs._runner._tasks, *(job.task for job in jobs._running.values())]:
            task.cancel()  # as if the power went: nothing is written any more
        jobs._store.put_back = lambda lease: None  # type: ignore[method-assign]

    using(tmp_path, die, fake=FakeConfig(step_s=0.02), url=url, lease_s=1.0)

    async def live(jobs: Jobs, service: FakeService) -> None:
        (job,) = await jobs.page()
        ended = await asyncio.wait_for(jobs.wait(job.id), 20)
        assert (ended.status, ended.runs) == ("succeeded", 2)
        assert ended.request == seeds[0]
        ids = [e.id async for e in jobs.events(job.id)]
        assert ids == sorted(set(ids))

    using(tmp_path, live, url=url, lease_s=1.0)


def test_cancel_of_a_waiting_job_is_final_and_of_a_running_one_comes_at_the_next_step(
    tmp_path, url
):
    async def body(jobs: Jobs, service: FakeService) -> None:
        running = await jobs.submit(GenerationRequest(prompt="a", num_inference_steps=900))
        waiting = await jobs.submit(GenerationRequest(prompt="b"))
        async for event in jobs.events(running.id):
            if event.kind == "step":
                break
        assert (await jobs.cancel(waiting.id)).status == "cancelled"
        assert (await jobs.cancel(running.id)).status == "cancelled"
        kinds = [e.kind async for e in jobs.events(waiting.id)]
        assert kinds == ["queued", "cancelled"]

    using(tmp_path, body, fake=FakeConfig(step_s=0.01), url=url, max_running=1)


def test_priority_goes_first_and_clients_take_turns(tmp_path, url):
    async def body(jobs: Jobs, service: FakeService) -> None:
        first = await jobs.submit(GenerationRequest(prompt="block", num_inference_steps=30))
        while (await jobs.get(first.id)).status != "running":
            await asyncio.sleep(0.01)
        for name, client, priority in (
            ("a1", "a", 0), ("a2", "a", 0), ("b1", "b", 0), ("urgent", "a", 5),
        ):  # fmt: skip
            request = GenerationRequest(prompt=name, priority=priority, num_inference_steps=1)
            last = await jobs.submit(request, client=client)
        del last
        for job in await jobs.page():
            await jobs.wait(job.id)
        order = [r.prompt for r in service.requests]
        assert order[:2] == ["block", "urgent"]

    using(tmp_path, body, fake=FakeConfig(step_s=0.01), url=url, max_running=1)


def test_a_full_queue_and_a_stopping_server_refuse(tmp_path):
    async def body(jobs: Jobs, service: FakeService) -> None:
        slow = GenerationRequest(num_inference_steps=900)
        for _ in range(2):
            await jobs.submit(slow)
            await asyncio.sleep(0.05)
        await jobs.submit(slow)
        with pytest.raises(errors.QueueFull) as full:
            await jobs.submit(slow)
        assert full.value.retry_after_s >= 1
        jobs._runner.is_stopping = True
        with pytest.raises(errors.NotReady):
            await jobs.submit(slow)

    using(tmp_path, body, fake=FakeConfig(step_s=0.05), max_running=2, max_waiting=1)


def test_stop_puts_what_it_cannot_finish_back_on_the_queue(tmp_path):
    async def body(jobs: Jobs, service: FakeService) -> None:
        job = await jobs.submit(GenerationRequest(num_inference_steps=900))
        while (await jobs.get(job.id)).status != "running":
            await asyncio.sleep(0.01)

    using(tmp_path, body, fake=FakeConfig(step_s=0.05))
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", "other")
    assert store.counts() == {"queued": 1}
    store.close()


def test_a_deadline_that_passed_in_the_queue_fails_the_job(tmp_path):
    async def body(jobs: Jobs, service: FakeService) -> None:
        await jobs.submit(GenerationRequest(num_inference_steps=40))
        late = await jobs.submit(GenerationRequest(prompt="late", deadline_s=0.05))
        ended = await jobs.wait(late.id)
        assert (ended.status, ended.outcome["error"]["type"]) == ("failed", "DeadlineExceeded")

    using(tmp_path, body, fake=FakeConfig(step_s=0.01), max_running=1)


def test_old_results_expire_and_shared_pictures_stay(tmp_path, url):
    async def body(jobs: Jobs, service: FakeService) -> None:
        request = GenerationRequest(prompt="same", seed=1)
        first, second = await jobs.submit(request), await jobs.submit(request)
        other = await jobs.submit(GenerationRequest(prompt="other", seed=1))
        for job in (first, second, other):
            await jobs.wait(job.id)
        size = (await jobs.get(other.id)).images[0].bytes
        expired = await jobs._access.do(
            lambda: jobs._store.expire(max_age_s=1e6, max_bytes=size + 100)
        )
        left = [j for j in await jobs.page() if j.status == "succeeded"]
        assert len(left) == 1
        assert await jobs.image(left[0], 0)
        assert len(expired) == 1
        gone = await jobs.get(first.id)
        assert (gone.status, gone.images) == ("expired", ())
        assert [e async for e in jobs.events(first.id)] == []
        with pytest.raises(errors.UnknownName):
            await jobs.image(gone, 0)

    using(tmp_path, body, url=url)


def test_a_job_ends_once_whoever_tries(tmp_path, url):
    async def body(jobs: Jobs, service: FakeService) -> None:
        job = await jobs.submit(GenerationRequest())
        await jobs.wait(job.id)
        event = StoredEvent(id=9_999_999, kind="failed", data={})
        assert jobs._store.finish(job.id, "failed", {}, event) is False
        with pytest.raises(LeaseLost):
            jobs._store.finish(job.id, "failed", {}, event, lease=Lease(job.id, 1))
        assert (await jobs.get(job.id)).status == "succeeded"

    using(tmp_path, body, url=url)


@pytest.mark.parametrize(
    ("limits", "left"),
    [({}, "succeeded"), ({"max_bytes": 0}, "expired"), ({"max_age_s": 1.0}, "expired")],
    ids=["usual", "bytes", "age"],
)
def test_a_sweep_keeps_what_the_settings_say(tmp_path, limits, left):
    async def body(jobs: Jobs, service: FakeService) -> None:
        job = await jobs.wait((await jobs.submit(GenerationRequest(seed=1))).id)
        await asyncio.sleep(1.1 if "max_age_s" in limits else 0)
        await jobs._runner.sweep()
        assert (await jobs.get(job.id)).status == left

    using(tmp_path, body, **limits)


@pytest.mark.parametrize(("every", "seen"), [(0, []), (1, [1, 2, 3, 4]), (3, [3])])
def test_steps_have_previews_as_often_as_the_settings_say(tmp_path, every, seen):
    async def body(jobs: Jobs, service: FakeService) -> None:
        published, found = jobs._runner._feed.publish, []

        def publish(id_, running, kind, data, preview=None):
            if kind == "step" and preview is not None:
                found.append(data["step"])
            return published(id_, running, kind, data, preview)

        jobs._runner._feed.publish = publish
        request = GenerationRequest(seed=1, num_inference_steps=4)
        await jobs.wait((await jobs.submit(request)).id)
        assert found == seen

    using(tmp_path, body, preview_every=every)


def test_a_store_that_cannot_be_opened_is_said(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")

    async def main() -> None:
        with pytest.raises(errors.NotReady, match="job store"):
            await Jobs(FakeService(), JobsConfig(folder=str(blocked))).start()

    asyncio.run(main())


def test_a_wrong_password_of_the_database_is_said_in_its_own_words(tmp_path, postgres):
    folder = Path(postgres.partition("host=")[2])
    rules = folder / "data" / "pg_hba.conf"
    rules.write_text(f"local all locked scram-sha-256\n{rules.read_text()}")
    engine = sa.create_engine(postgres)
    with engine.begin() as db:
        db.exec_driver_sql("create role locked login password 'right'")
        db.exec_driver_sql("select pg_reload_conf()")
    engine.dispose()
    url = f"postgresql+psycopg://locked:hunter2@/postgres?host={folder}"

    async def main() -> None:
        with pytest.raises(
            errors.NotReady, match=r"job store cannot be opened.*password auth"
        ) as no:
            await Jobs(FakeService(), JobsConfig(folder=str(tmp_path), url=url)).start()
        assert "hunter2" not in str(no.value)

    asyncio.run(main())


def test_job_rows_survive_a_second_store_on_the_same_file(tmp_path):
    with contextlib.closing(JobStore(f"sqlite:///{tmp_path / 'j.sqlite3'}", "a")) as first:
        values = {
            "id": "j1", "client": "", "priority": 0, "request": "{}", "body_digest": "",
            "idempotency_key": None, "use_cache": True, "created": 0.0,
        }  # fmt: skip
        first.add(values, StoredEvent(id=1, kind="queued", data={}))
        with contextlib.closing(JobStore(f"sqlite:///{tmp_path / 'j.sqlite3'}", "b")) as second:
            assert second.claim(30).id == "j1"
            assert first.claim(30) is None
            assert first.reclaim(everything=False) == PutBack()
            assert first.get("j1").status == "running"


def test_eta_begins_with_the_planners_prediction_and_learns_from_what_ran(tmp_path):
    async def body(jobs: Jobs, service: FakeService) -> None:
        jobs.expect(40.0)
        slow = GenerationRequest(num_inference_steps=900)
        running = await jobs.submit(slow)
        waiting = await jobs.submit(slow)
        while (await jobs.get(running.id)).status != "running":
            await asyncio.sleep(0.01)
        assert await jobs.place(waiting) == (0, 40.0)
        await jobs.cancel(running.id)
        await jobs.cancel(waiting.id)
        await jobs.wait((await jobs.submit(GenerationRequest(num_inference_steps=1))).id)
        jobs.expect(40.0)
        assert jobs._runner.seconds < 10

    using(tmp_path, body, fake=FakeConfig(step_s=0.01), max_running=1)


def test_a_lack_of_file_descriptors_delays_a_job_as_a_full_disk_does(tmp_path, monkeypatch):
    monkeypatch.setattr("mezzotint.service.jobs.retry._PAUSE_S", 0.05)
    refused: list[str] = []
    write = objects.write_atomically

    def busy(path: Path, data: bytes) -> Path:
        if len(refused) < 3:
            refused.append(path.name)
            raise OSError(errno.EMFILE, "Too many open files")
        return write(path, data)

    async def body(jobs: Jobs, service: FakeService) -> None:
        monkeypatch.setattr(objects, "write_atomically", busy)
        job = await jobs.submit(GenerationRequest(prompt="a", seed=1))
        ended = await jobs.wait(job.id)
        assert ended.status == "succeeded"
        assert len(refused) == 3
        assert await jobs.image(ended, 0)
        monkeypatch.setattr(Path, "read_bytes", lambda _: raise_busy())
        with pytest.raises(errors.NotReady, match="Too many open files"):
            await jobs.image(ended, 0)

    using(tmp_path, body)


def picture_path(jobs: Jobs, job: Job) -> Path:
    digest = job.images[0].digest
    return jobs.results.objects.path(f"{digest[:2]}/{digest}")


def raise_busy() -> bytes:
    raise OSError(errno.EMFILE, "Too many open files")


def test_one_client_leaves_a_share_of_the_queue_to_others(tmp_path, url):
    async def body(jobs: Jobs, service: FakeService) -> None:
        slow = GenerationRequest(num_inference_steps=900)
        await jobs.submit(slow, client="first")
        await asyncio.sleep(0.2)
        for _ in range(3):
            await jobs.submit(slow, client="greedy")
        with pytest.raises(errors.QueueFull, match="3 jobs of this key wait already"):
            await jobs.submit(slow, client="greedy")
        await jobs.submit(slow, client="other")
        with pytest.raises(errors.QueueFull, match="4 jobs wait already"):
            await jobs.submit(slow, client="third")

    using(tmp_path, body, fake=FakeConfig(step_s=0.05), url=url, max_running=1, max_waiting=4)


def test_more_old_jobs_than_a_statement_has_parameters_expire(tmp_path):
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite3'}", "me")
    count = 260_000
    row = {
        "client": "", "status": "succeeded", "priority": 0, "request": "{}", "body_digest": "",
        "use_cache": True, "created": 0.0, "finished": time.time() - 150, "runs": 1,
        "cancel": False, "outcome": "{}",
    }  # fmt: skip
    with store._engine.begin() as db:
        db.execute(sa.insert(JOBS), [{**row, "id": f"job-{k}"} for k in range(count)])
    assert store.expire(max_age_s=100, max_bytes=0) == []
    assert store.counts() == {"expired": count}
    store.close()


def test_a_picture_whose_file_is_damaged_is_said_to_be_gone(tmp_path):
    async def body(jobs: Jobs, service: FakeService) -> None:
        job = await jobs.wait((await jobs.submit(GenerationRequest(prompt="a", seed=1))).id)
        picture_path(jobs, job).write_bytes(b"damaged")
        with pytest.raises(PictureGone, match=f"{job.images[0].digest} is not kept any more"):
            await jobs.image(job, 0)
        with pytest.raises(errors.UnknownName):
            await jobs.image(job, 1)

    using(tmp_path, body)


def test_a_second_server_on_one_folder_is_refused_and_takes_no_job(tmp_path):
    async def body(jobs: Jobs, service: FakeService) -> None:
        job = await jobs.submit(GenerationRequest(prompt="a", num_inference_steps=20))
        second = Jobs(FakeService(), JobsConfig(folder=str(tmp_path)))
        with pytest.raises(FolderTaken, match="belong to another server, process"):
            await second.start()
        ended = await asyncio.wait_for(jobs.wait(job.id), 20)
        assert (ended.status, ended.runs) == ("succeeded", 1)

    using(tmp_path, body, fake=FakeConfig(step_s=0.02))


def test_a_client_is_not_told_where_the_database_is(tmp_path):
    async def body(jobs: Jobs, service: FakeService) -> None:
        def away() -> None:
            raise sa.exc.OperationalError("", {}, Exception("db.internal:5432 refused"))

        jobs._store.is_sqlite = False
        with pytest.raises(errors.NotReady) as caught:
            await jobs._access.do(away)
        assert str(caught.value) == "the job store cannot be used: the database does not answer"

    using(tmp_path, body)
