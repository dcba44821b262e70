"""Training runs at the door: listed, live, and nothing beside them."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import Door, open_door

PNG = b"\x89PNG\r\n\x1a\n"


def write_run(root: Path, name: str, *, step: int = 5, finished: bool = False) -> Path:
    folder = root / name / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.png").write_bytes(PNG + f"{name} {step}".encode())
    (folder / f"grid-{step:08d}.png").write_bytes(PNG + f"{name} {step}".encode())
    lines = [
        {"event": "started", "step": 0, "steps": 10},
        {"event": "step", "step": step, "steps": 10, "loss": 0.25, "eta_s": 90.0},
    ]
    lines += [{"event": "finished", "step": step, "loss": 0.2}] if finished else []
    text = "\n".join(map(json.dumps, lines)) + '\n{"event": "st'
    (root / name / "metrics.jsonl").write_text(text)
    return root / name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    write_run(folder, "first", finished=True)
    write_run(folder, "second")
    (folder / "no-run").mkdir()
    (folder / ".hidden").mkdir()
    outside = write_run(tmp_path, "outside")
    os.symlink(outside, folder / "linked")
    (folder / "leaky" / "samples").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(PNG + b"secret")
    os.symlink(tmp_path / "secret.png", folder / "leaky" / "samples" / "grid.png")
    return folder


@pytest.fixture
def door(root: Path) -> Iterator[Door]:
    with open_door(runs=str(root)) as opened:
        yield opened


def test_runs_are_listed_with_what_they_say_of_themselves(door, root):
    found = {run["name"]: run for run in door.http.get("/v1/runs").json()["runs"]}
    assert set(found) == {"first", "second", "leaky"}
    assert found["first"]["status"] == "finished"
    second = found["second"]
    assert (second["status"], second["step"], second["steps"]) == ("running", 5, 10)
    assert (second["loss"], second["eta_s"], second["history"]) == (0.25, 90.0, [5])
    old = time.time() - 3600
    os.utime(root / "second" / "metrics.jsonl", (old, old))
    assert door.http.get("/v1/runs").json()["runs"][-1]["status"] == "silent"


def test_a_grid_is_answered_again_only_when_it_changed(door, root):
    first = door.http.get("/v1/runs/second/grid")
    assert first.content == PNG + b"second 5"
    assert first.headers["content-type"] == "image/png"
    same = door.http.get("/v1/runs/second/grid", headers={"if-none-match": first.headers["etag"]})
    assert same.status_code == 304
    write_run(root, "second", step=7)
    fresh = door.http.get("/v1/runs/second/grid", headers={"if-none-match": first.headers["etag"]})
    assert (fresh.status_code, fresh.content) == (200, PNG + b"second 7")
    assert door.http.get("/v1/runs/second/grid?step=5").content == PNG + b"second 5"
    assert door.http.get("/v1/runs/second/grid?step=6").status_code == 404
    assert door.http.get("/v1/runs/second/grid?step=-1").status_code == 422


@pytest.mark.parametrize(
    "name",
    ["leaky", "linked", "no-run", ".hidden", "..", "%2e%2e", "..%2foutside", "a%00b", "x" * 300],
)
def test_nothing_beside_the_runs_can_be_reached(door, name):
    answer = door.http.get(f"/v1/runs/{name}/grid")
    assert answer.status_code == 404
    assert b"secret" not in answer.content


def test_without_a_folder_there_are_none():
    with open_door() as door:
        assert door.http.get("/v1/runs").json() == {"runs": [], "can_start": False}
        assert door.http.get("/v1/runs/x/grid").status_code == 404


def test_runs_need_the_scope_manage(tmp_path, root):
    keys = tmp_path / "keys"
    keys.write_text("k" * 20 + " drawer generate\n" + "m" * 20 + " boss manage\n")
    with open_door(runs=str(root), api_keys=str(keys)) as door:
        assert door.http.get("/v1/runs").status_code == 401
        drawer = {"authorization": "Bearer " + "k" * 20}
        assert door.http.get("/v1/runs", headers=drawer).status_code == 403
        assert door.http.get("/v1/runs/first/grid", headers=drawer).status_code == 403
        boss = {"authorization": "Bearer " + "m" * 20}
        assert door.http.get("/v1/runs/first/grid", headers=boss).status_code == 200
