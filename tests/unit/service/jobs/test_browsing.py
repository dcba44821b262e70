"""Finding jobs among many, and deleting them, on the tables themselves."""

import json
import time

import sqlalchemy as sa

from mezzotint.service.jobs.store import JobStore, StoredEvent


def fill(store: JobStore, count: int) -> None:
    rows = [
        {
            "id": f"job-{k}", "client": "", "status": "queued", "priority": 0, "runs": 0,
            "request": json.dumps({"prompt": f"picture {k} of a {'fox' if k % 1000 == 0 else 'hen'}"}),
            "body_digest": "0", "use_cache": True, "created": float(k), "cancel": False,
            "outcome": "{}",
        }
        for k in range(count)
    ]  # fmt: skip
    engine = sa.create_engine(store._engine.url)
    table = sa.Table("jobs", sa.MetaData(), autoload_with=engine)
    with engine.begin() as db:
        db.execute(sa.insert(table), rows)
    engine.dispose()


def browse(store: JobStore, *words: str, limit: int = 60, after: str | None = None) -> list[str]:
    jobs = store.browse(
        client=None, statuses=("queued",), words=words, limit=limit, after=after
    )  # fmt: skip
    return [job.id for job in jobs]


def test_rare_words_are_found_below_many_others(tmp_path):
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3", "me")
    fill(store, 2100)
    try:
        assert browse(store, "fox") == ["job-2000", "job-1000", "job-0"]
        assert browse(store, "FOX", "picture", limit=2) == ["job-2000", "job-1000"]
        assert browse(store, "fox", after="job-2000") == ["job-1000", "job-0"]
        assert browse(store, limit=2) == ["job-2099", "job-2098"]
        began = time.monotonic()
        assert browse(store, "absent") == []
        assert time.monotonic() - began < 1.0  # a look at everything, on a loaded machine
    finally:
        store.close()


def test_only_what_has_ended_is_deleted(tmp_path):
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3", "me")
    fill(store, 2)
    try:
        assert store.delete("job-0") is None
        store.finish("job-0", "cancelled", {}, StoredEvent(id=2, kind="cancelled", data={}))
        assert store.delete("job-0") == []
        assert store.events("job-0", 0) == []
        assert browse(store) == ["job-1"]
    finally:
        store.close()
