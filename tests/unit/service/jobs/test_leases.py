"""Leases: of several servers on one database only the one that has a job writes it."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from mezzotint.service.jobs.cluster import OtherCluster
from mezzotint.service.jobs.leases import LeaseLost, PutBack
from mezzotint.service.jobs.rows import Job, JobImage, Lease, Progress, StoredEvent
from mezzotint.service.jobs.schema import JOBS, NewerSchema
from mezzotint.service.jobs.store import JobStore

Open = Callable[[str], JobStore]


@pytest.fixture
def servers(url: str, tmp_path: Path) -> Iterator[Open]:
    """Opens the store of another server on the same database."""
    opened: list[JobStore] = []

    def open_store(name: str, **more: str) -> JobStore:
        opened.append(JobStore(url or f"sqlite:///{tmp_path / 'j.sqlite3'}", name, **more))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


def add(store: JobStore, id_: str = "j", **values: object) -> None:
    row = {
        "id": id_, "client": "", "priority": 0, "request": "{}", "body_digest": "",
        "idempotency_key": None, "use_cache": True, **values,
    }  # fmt: skip
    store.add(row, StoredEvent(id=1, kind="queued", data={}))


def ending(run: int, kind: str = "finished") -> StoredEvent:
    return StoredEvent(id=run * 1_000_000 + 9, kind=kind, data={})


def lose(store: JobStore, lease: Lease) -> None:
    """Let a lease run out."""
    with store._engine.begin() as db:
        db.execute(sa.update(JOBS).where(JOBS.c.id == lease.job).values(lease=1.0))


def taken(store: JobStore, **more: str) -> Job:
    job = store.claim(30.0, **more)
    assert job is not None
    return job


def test_a_server_that_lost_a_job_neither_puts_it_back_nor_ends_it(servers):
    a, b, c = servers("a"), servers("b"), servers("c")
    add(a)
    first = taken(a).lease
    lose(a, first)
    assert b.reclaim(everything=False) == PutBack(queued=("j",))
    second = taken(b).lease
    assert (first.run, second.run) == (1, 2)
    with pytest.raises(LeaseLost, match="run 1 of job j"):
        a.put_back(first)
    assert (b.get("j").status, b.get("j").runs) == ("running", 2)
    lose(b, second)
    c.reclaim(everything=False)
    third = taken(c).lease
    for store, lease in ((a, first), (b, second)):
        with pytest.raises(LeaseLost):
            store.finish("j", "failed", {}, ending(lease.run, "failed"), lease=lease)
    assert c.get("j").status == "running"
    assert c.finish("j", "succeeded", {}, ending(3), lease=third)
    assert [e.kind for e in c.events("j", 0)] == ["queued", "finished"]


def test_nothing_that_is_written_with_a_lost_lease_stays(servers):
    a, b = servers("a"), servers("b")
    add(a)
    old = taken(a).lease
    lose(a, old)
    b.reclaim(everything=False)
    new = taken(b).lease
    image = JobImage(index=0, digest="ab" * 32, bytes=3)
    with pytest.raises(LeaseLost):
        a.keep_event(old, ending(1, "image"), image, lease_s=30.0)
    a.report([Progress(job="j", run=1, event=5, image=0, step=9, steps=10)])
    assert b.progress("j") is None
    b.report([Progress(job="j", run=2, event=6, image=0, step=1, steps=10, preview=b"p")])
    assert a.progress("j").preview == b"p"
    assert (a.get("j").progress, a.get("j").images) == ((1, 10), ())
    held, _ = a.renew([old], 30.0)
    assert held == set()
    assert b.renew([new], 30.0) == ({new}, set())
    assert [e.kind for e in b.events("j", 0)] == ["queued"]


def test_the_same_run_number_of_another_owner_is_no_lease(servers):
    a, b = servers("a"), servers("b")
    add(a)
    lease = taken(a).lease
    with pytest.raises(LeaseLost):
        b.put_back(lease)
    with pytest.raises(LeaseLost):
        b.finish("j", "failed", {}, ending(1, "failed"), lease=lease)


def test_an_ending_whose_answer_was_lost_is_written_again_without_harm(servers):
    a = servers("a")
    add(a)
    lease = taken(a).lease
    assert a.finish("j", "succeeded", {"cache": "miss"}, ending(1), lease=lease)
    assert a.finish("j", "succeeded", {"cache": "miss"}, ending(1), lease=lease)
    with pytest.raises(LeaseLost):
        a.finish("j", "failed", {}, ending(1, "failed"), lease=lease)
    assert [e.kind for e in a.events("j", 0)] == ["queued", "finished"]


def test_what_was_to_be_cancelled_ends_when_its_server_falls_silent_or_puts_it_back(servers):
    a, b = servers("a"), servers("b")
    add(a, "j1")
    add(a, "j2")
    first, second = taken(a).lease, taken(a).lease
    for lease in (first, second):
        b.ask_cancel(lease.job)
    assert a.to_cancel([first, second]) == {"j1", "j2"}
    assert a.put_back(first) == PutBack(cancelled=("j1",))
    lose(a, second)
    assert b.reclaim(everything=False) == PutBack(cancelled=("j2",))
    assert [b.get(id_).status for id_ in ("j1", "j2")] == ["cancelled", "cancelled"]
    assert [e.kind for e in b.events("j2", 0)] == ["queued", "cancelled"]


def test_a_servers_own_clock_changes_nothing(servers, monkeypatch):
    a, b = servers("a"), servers("b")
    add(a, "j1")
    lease = taken(a).lease
    right = time.time()
    for wrong_s in (-60.0, 60.0):
        monkeypatch.setattr(time, "time", lambda s=wrong_s: right + s)
        assert b.reclaim(everything=False) == PutBack()
        assert a.renew([lease], 30.0)[0] == {lease}
        assert b.expire(max_age_s=1.0, max_bytes=1 << 30) == []
    job = a.get("j1")
    assert abs(job.created - right) < 5.0
    assert abs(job.started - right) < 5.0


def test_no_job_is_taken_twice_by_servers_that_hurry(servers):
    stores = [servers(name) for name in "abc"]
    for k in range(24):
        add(stores[0], f"j{k}", client=f"c{k % 3}")

    def take_all(store: JobStore) -> list[str]:
        got: list[str] = []
        while (job := store.claim(30.0)) is not None:
            got.append(job.id)
        return got

    with ThreadPoolExecutor(3) as pool:
        got = [id_ for ids in pool.map(take_all, stores) for id_ in ids]
    assert sorted(got) == sorted(f"j{k}" for k in range(24))


def test_a_loser_of_a_claim_takes_the_next_job_and_does_not_wait(fresh_postgres):
    a, b = JobStore(fresh_postgres, "a"), JobStore(fresh_postgres, "b")
    try:
        add(a, "j1")
        add(a, "j2")
        with a._engine.begin() as db:  # as if another server were just taking the first
            db.execute(sa.select(JOBS.c.seq).where(JOBS.c.id == "j1").with_for_update())
            began = time.monotonic()
            assert taken(b).id == "j2"
            assert time.monotonic() - began < 1.0
    finally:
        a.close()
        b.close()


def test_an_exact_job_goes_on_where_the_environment_is_equal_and_others_anywhere(servers):
    a, b = servers("a"), servers("b")
    add(a, "exact", exact=True)
    add(a, "stable", exact=False)
    leases = [taken(a, environment="cpu").lease, taken(a, environment="cpu").lease]
    for lease in leases:
        a.put_back(lease)
    moved = taken(b, environment="gpu")
    assert (moved.id, moved.environment) == ("stable", "cpu")
    assert b.claim(30.0, environment="gpu") is None
    b.renew([], 30.0, "gpu")
    a.renew([], 30.0, "cpu")
    assert b.stranded(alive_s=60.0, wait_s=0.0) == []
    a.leave()
    assert b.stranded(alive_s=60.0, wait_s=0.0) == ["exact"]
    assert b.stranded(alive_s=60.0, wait_s=60.0) == []
    assert taken(a, environment="cpu").id == "exact"


def test_a_database_of_another_cluster_is_refused(servers):
    named = servers("a", cluster="north")
    assert servers("b").cluster == named.cluster
    with pytest.raises(OtherCluster, match=r"belongs to the cluster 'north'.*is 'south'"):
        servers("c", cluster="south")


def test_a_server_learns_that_a_newer_program_changed_the_tables(servers):
    a = servers("a")
    a.renew([], 30.0)
    with a._engine.begin() as db:
        db.execute(sa.text("update schema_version set version = 99"))
    with pytest.raises(NewerSchema, match="version 99"):
        a.renew([], 30.0)
