"""Files of models at the door: whole or not at all, and never over what is there."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from tests.serving import Door, open_door

from mezzotint.serve.site.uploads import sweep_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def opened(store: Path, **limits: int):
    return open_door(limits={"body_bytes": 2048, **limits})


def with_store(door: Door, store: Path) -> Door:
    door.front.memory["model_store"] = store
    return door


def test_a_file_larger_than_other_bodies_is_kept_whole_under_its_name(store):
    data = bytes(range(256)) * 400
    with opened(store, model_bytes=1 << 20) as door:
        with_store(door, store)
        assert door.http.get("/v1/operations/files").json() == {"files": [], "limit": 1 << 20}
        made = door.http.put("/v1/operations/files/mine.safetensors", content=data)
        assert made.status_code == 201
        assert made.json() == {
            "source": "mine.safetensors", "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip
        assert (store / "mine.safetensors").read_bytes() == data
        assert [path.name for path in store.iterdir()] == ["mine.safetensors"]
        again = door.http.put("/v1/operations/files/mine.safetensors", content=b"other")
        assert (again.status_code, again.json()["field"]) == (409, "name")
        assert (store / "mine.safetensors").read_bytes() == data
        assert door.http.get("/v1/operations/files").json()["files"] == ["mine.safetensors"]


def test_a_file_that_is_too_large_leaves_nothing_behind(store):
    with opened(store, model_bytes=4096) as door:
        with_store(door, store)
        answer = door.http.put("/v1/operations/files/big.mzt", content=b"x" * 5000)
        assert answer.status_code == 413

        def pieces():
            for _ in range(5):
                yield b"x" * 1000

        assert door.http.put("/v1/operations/files/big.mzt", content=pieces()).status_code == 413
        assert door.http.put("/v1/operations/files/none.mzt", content=b"").status_code == 422
    assert list(store.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "status"),
    [("a.py", 415), ("a.pt", 415), (".hidden.mzt", 415), ("..%2fa.mzt", 404), ("a%00.mzt", 415)],
)
def test_only_files_of_models_are_taken(store, name, status):
    with opened(store, model_bytes=4096) as door:
        with_store(door, store)
        assert door.http.put(f"/v1/operations/files/{name}", content=b"x").status_code == status
    assert list(store.parent.rglob("*.mzt")) == []


def test_a_link_is_not_written_through(store, tmp_path):
    (store / "out.mzt").symlink_to(tmp_path / "outside")
    with opened(store, model_bytes=4096) as door:
        with_store(door, store)
        assert door.http.put("/v1/operations/files/out.mzt", content=b"x").status_code == 409
    assert not (tmp_path / "outside").exists()


def test_without_a_store_or_a_limit_nothing_is_taken(store):
    with opened(store, model_bytes=4096) as door:
        answer = door.http.put("/v1/operations/files/a.mzt", content=b"x")
        assert answer.status_code == 405
        assert "--model-store" in answer.json()["detail"]
        assert door.http.get("/v1/operations/files").json() == {"files": [], "limit": 0}
    with opened(store) as door:
        with_store(door, store)
        assert door.http.put("/v1/operations/files/a.mzt", content=b"x").status_code == 405
    assert list(store.iterdir()) == []


def test_what_a_killed_server_left_is_swept_and_nothing_else(store):
    left, fresh, kept = "." + "0a" * 8 + ".part", "." + "0b" * 8 + ".part", "mine.part"
    for name in (left, fresh, kept):
        (store / name).touch()
    for name in (left, kept):
        os.utime(store / name, times=(time.time() - 7200,) * 2)
    sweep_store(store)
    assert sorted(path.name for path in store.iterdir()) == sorted([fresh, kept])
    sweep_store(store / "nowhere")
