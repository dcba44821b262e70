"""The job database: every layout that was released opens, a newer one is refused by name."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from mezzotint.service.jobs.schema import META, VERSION, NewerSchema
from mezzotint.service.jobs.store import JobStore

LAYOUTS = Path(__file__).parent / "layouts"


def open_layout(tmp_path: Path, version: int) -> str:
    path = tmp_path / "jobs.sqlite3"
    with sqlite3.connect(path) as db:
        db.executescript((LAYOUTS / f"{version}.sql").read_text())
    return f"sqlite:///{path}"


def version_of(url: str) -> int:
    with sa.create_engine(url).connect() as db:
        return int(db.execute(sa.text("select version from schema_version")).scalar_one())


def test_there_is_a_layout_for_every_version_before_this_one():
    assert [p.stem for p in sorted(LAYOUTS.iterdir())] == [str(v) for v in range(1, VERSION)]


@pytest.mark.parametrize("version", range(1, VERSION))
def test_a_database_of_an_earlier_version_keeps_its_jobs_and_becomes_this_one(tmp_path, version):
    url = open_layout(tmp_path, version)
    for _ in range(2):  # the second time there is nothing left to do
        store = JobStore(url, "me")
        done, waits = store.get("job-0"), store.get("job-1")
        assert (done.status, waits.status) == ("succeeded", "queued")
        assert (done.images[0].digest, done.images[0].about["seed"]) == ("ab" * 32, 7)
        assert [e.kind for e in store.events("job-0", 0)] == ["queued", "image", "finished"]
        assert store.by_key("ada", "key-1").id == "job-1"
        store.close()
    assert version_of(url) == VERSION
    inspector = sa.inspect(sa.create_engine(url))
    assert {
        name: {c["name"] for c in inspector.get_columns(name)}
        for name in inspector.get_table_names()
    } == {name: set(table.columns.keys()) for name, table in META.tables.items()}


def test_a_database_of_version_1_that_has_notes_keeps_them(tmp_path):
    url = open_layout(tmp_path, 1)
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as db:
        db.execute("create table notes (job varchar(64) primary key, note text not null)")
        db.execute("""insert into notes values ('job-0', '{"door": "here"}')""")
    store = JobStore(url, "me")
    assert store.get("job-0").note == {"door": "here"}
    store.close()


def test_a_new_database_says_its_version_and_one_of_a_newer_program_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
    JobStore(url, "me").close()
    assert version_of(url) == VERSION
    with sqlite3.connect(tmp_path / "jobs.sqlite3") as db:
        db.execute("update schema_version set version = 99")
    with pytest.raises(NewerSchema, match=f"version 99.*knows versions up to {VERSION}"):
        JobStore(url, "me")
    assert version_of(url) == 99
