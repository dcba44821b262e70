"""Training at the door: started, stopped, resumed, used; and the pictures it learns from."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.pages import picture
from tests.serving import Door, open_door

from mezzotint.errors import InvalidRequest
from mezzotint.serve.site.datasets import _caption
from mezzotint.service.training import TrainingRuns

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs locks on files")

TRAINER = Path(__file__).resolve().parents[3] / "fake_trainer.py"


def accept(plain):
    if "wrong" in plain:
        raise InvalidRequest("wrong.thing must not be there", field="wrong.thing")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    runs = TrainingRuns(tmp_path / "runs", accept, program=(sys.executable, str(TRAINER)))
    with open_door(home=tmp_path, runs=str(runs.folder)) as opened:
        opened.front.memory["training"] = runs
        yield opened
    runs.stop_all(5.0)


def run_of(door: Door, name: str) -> dict:
    return door.http.get(f"/v1/runs/{name}").json()


def until(door: Door, name: str, status: str, seconds: float = 60.0) -> dict:
    end = time.monotonic() + seconds
    while (found := run_of(door, name))["status"] != status:
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def test_a_run_is_started_seen_and_finished(door):
    made = door.http.post("/v1/runs", json={"name": "digits", "config": "steps = 3\n"})
    assert (made.status_code, made.json()["name"]) == (201, "digits")
    found = until(door, "digits", "finished")
    assert found["curves"] == {
        "loss": [[1, 1.0], [2, 0.5], [3, 1 / 3]], "held_out": [[1, 2.0], [2, 1.0], [3, 2 / 3]],
    }  # fmt: skip
    assert found["data"] == {"kind": "pictures", "count": 7}
    assert door.http.get(found["data_sheet"]).content.endswith(b"data")
    assert "steps = 3" in found["config"]
    listed = door.http.get("/v1/runs").json()
    assert listed["can_start"] is True
    assert [run["name"] for run in listed["runs"]] == ["digits"]
    again = door.http.post("/v1/runs", json={"name": "digits", "config": "steps = 3\n"})
    assert (again.status_code, again.json()["field"]) == (409, "name")


def test_a_run_is_stopped_and_resumed(door):
    door.http.post("/v1/runs", json={"name": "long", "config": "steps = 10000\n"})
    until(door, "long", "running")
    second = door.http.post("/v1/runs", json={"name": "other", "config": "steps = 1\n"})
    assert (second.status_code, second.json()["field"]) == (409, "beside")
    assert "long is training already" in second.json()["detail"]
    beside = {"name": "other", "config": "steps = 1\n", "beside": True}
    assert door.http.post("/v1/runs", json=beside).status_code == 201
    until(door, "other", "finished")
    assert door.http.post("/v1/runs/long/stop").status_code == 200
    assert until(door, "long", "stopped")["can_resume"] is True
    assert door.http.post("/v1/runs/long/stop").status_code == 409
    assert door.http.post("/v1/runs/long/resume").json()["status"] == "running"
    assert door.http.post("/v1/runs/nothing/resume").status_code == 404


def test_a_run_is_deleted_only_when_it_is_over_and_was_started_here(door, tmp_path):
    door.http.post("/v1/runs", json={"name": "long", "config": "steps = 10000\n"})
    until(door, "long", "running")
    assert door.http.delete("/v1/runs/long").status_code == 409
    assert door.http.post("/v1/runs/long/stop").status_code == 200
    until(door, "long", "stopped")
    assert door.http.delete("/v1/runs/long").json() == {"name": "long", "status": "removed"}
    assert not (tmp_path / "runs" / "long").exists()
    assert door.http.delete("/v1/runs/long").status_code == 404
    (tmp_path / "runs" / "theirs").mkdir()
    (tmp_path / "runs" / "theirs" / "metrics.jsonl").write_text("{}")
    assert door.http.delete("/v1/runs/theirs").status_code == 409
    assert (tmp_path / "runs" / "theirs" / "metrics.jsonl").exists()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "runs" / "theirs")
    assert door.http.delete("/v1/runs/link").status_code == 404


def test_what_no_server_started_is_neither_started_nor_deleted(door, tmp_path):
    theirs = tmp_path / "runs" / "precious"
    theirs.mkdir(parents=True)
    (theirs / "notes.txt").write_text("a week of work")
    (theirs / "run.toml").write_text("steps = 7")  # people call theirs so, too
    body = {"name": "precious", "config": "steps = 1", "beside": True}
    answer = door.http.post("/v1/runs", json=body)
    assert (answer.status_code, answer.json()["field"]) == (409, "name")
    assert door.http.post("/v1/runs/precious/resume").status_code == 422
    assert door.http.delete("/v1/runs/precious").status_code == 409
    assert sorted(file.name for file in theirs.iterdir()) == ["notes.txt", "run.toml"]
    assert (theirs / "run.toml").read_text() == "steps = 7"
    (tmp_path / "runs" / "empty").mkdir()
    body = {"name": "empty", "config": "steps = 1"}
    assert door.http.post("/v1/runs", json=body).status_code == 201


@pytest.mark.parametrize("target", ["outside", "nowhere"])
def test_a_link_in_place_of_a_run_leads_nowhere(door, tmp_path, target):
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "lnk").symlink_to(tmp_path / target)
    answer = door.http.post("/v1/runs", json={"name": "lnk", "config": "steps = 1"})
    assert (answer.status_code, answer.json()["field"]) == (409, "name")
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "nowhere").exists()


def test_the_text_of_a_run_that_runs_stays_as_it_is(door, tmp_path):
    door.http.post("/v1/runs", json={"name": "long", "config": "steps = 10000\n"})
    body = {"name": "long", "config": "steps = 1\n", "beside": True}
    answer = door.http.post("/v1/runs", json=body)
    assert (answer.status_code, answer.json()["field"]) == (409, "name")
    assert "steps = 10000" in (tmp_path / "runs" / "long" / "run.toml").read_text()


@pytest.mark.parametrize(
    "config",
    [
        "a = " + "7" * 5000, "a = 0x" + "f" * 5000, "a = 18446744073709551616",
        "a = " + "[" * 50_000, "a = " + "{a=" * 20_000, "a = '" + "x" * 64_000 + "'",
        ".".join("a" * 30_000) + " = 1", "[" + ".".join("a" * 30_000) + "]",
        'b = """\n\'\n"""\n' + ".".join("a" * 34) + " = 1",
        "b = '\\'\n" + ".".join("a" * 34) + " = 1",
        "é" * 40_000,
    ],
    ids=range(11),
)  # fmt: skip
def test_a_text_made_to_hurt_is_refused_at_once(door, config):
    began = time.process_time()
    answer = door.http.post("/v1/runs", json={"name": "x", "config": config})
    assert (answer.status_code, answer.json()["field"]) == (422, "config")
    assert time.process_time() - began < 1.0


def test_dots_and_brackets_in_words_are_no_nesting(door):
    words = "[{." * 100
    text = (
        f'''a = "{words}"\nb = """{words}\n\\""" {words}"""\nc = \'{words}\' # {words}\nsteps = 1'''
    )
    assert door.http.post("/v1/runs", json={"name": "x", "config": text}).status_code == 201


def test_a_run_that_fails_says_why_and_can_be_asked_for_again(door):
    config = 'fails = "data.path /nowhere does not exist"\n'
    assert door.http.post("/v1/runs", json={"name": "bad", "config": config}).status_code == 201
    assert until(door, "bad", "failed")["error"] == "data.path /nowhere does not exist"
    assert (
        door.http.post("/v1/runs", json={"name": "bad", "config": "steps = 1"}).status_code == 201
    )
    until(door, "bad", "finished")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "../x", "config": "a = 1"}, "name"),
        ({"name": "datasets", "config": "a = 1"}, "name"),
        ({"name": "x", "config": ""}, "config"),
        ({"name": "x", "config": "a = "}, "config"),
        ({"name": "x", "config": "wrong = 1"}, "wrong.thing"),
        ({"name": "x", "config": "a = 1", "beside": 1}, "beside"),
    ],
)
def test_a_wrong_body_is_refused_by_its_field(door, body, field):
    answer = door.http.post("/v1/runs", json=body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert door.http.get("/v1/runs").json()["runs"] == []


def test_pictures_and_captions_are_kept_as_a_data_set(door, tmp_path):
    for file, data in (("0001.png", b"one"), ("0002.jpg", b"two"), ("0001.txt", b"an apple")):
        kept = door.http.put(f"/v1/datasets/apples/{file}", content=data)
        assert kept.json() == {"dataset": "apples", "file": file, "bytes": len(data)}
    found = door.http.get("/v1/datasets").json()
    folder = tmp_path / "runs" / "datasets"
    assert found["folder"] == str(folder)
    about = {"name": "apples", "path": str(folder / "apples"), "pictures": 2, "captions": 1}
    assert found["datasets"] == [about]
    assert (folder / "apples" / "0001.txt").read_bytes() == b"an apple"
    assert door.http.get("/v1/runs").json()["runs"] == []  # a data set is no run


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("apples/a.py", 415), ("apples/.png", 415), ("apples/..%2f..%2fx.png", 404),
        ("..%2f..%2fapples/a.png", 404), (".hidden/a.png", 404),
    ],
)  # fmt: skip
def test_nothing_else_can_be_kept(door, tmp_path, path, status):
    assert door.http.put(f"/v1/datasets/{path}", content=b"x").status_code == status
    assert door.http.put("/v1/datasets/apples/a.png", content=b"").status_code == 422
    assert not (tmp_path / "runs" / "datasets").exists()


def test_a_link_in_place_of_a_data_set_leads_nowhere(door, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "runs" / "datasets").mkdir(parents=True)
    (tmp_path / "runs" / "datasets" / "linked").symlink_to(tmp_path / "outside")
    assert door.http.put("/v1/datasets/linked/a.png", content=b"x").status_code == 404
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_run_becomes_a_model_under_its_name(door):
    door.http.post("/v1/runs", json={"name": "mine", "config": "steps = 1\n"})
    until(door, "mine", "finished")
    assert run_of(door, "mine")["uses"] == ["model"]
    used = door.http.post("/v1/runs/mine/use").json()
    assert (used["as"], used["name"]) == ("model", "mine")
    names = [model["name"] for model in door.http.get("/v1/capabilities").json()["models"]]
    assert "mine" in names
    assert door.http.post("/v1/runs/mine/use").status_code == 409


def learned(door: Door, name: str, rank: int, *, base: str = "plate", merged: bool = False) -> Path:
    """Make a run of a LoRA that is over, as the trainer leaves it."""
    folder = Path(door.front.config.runs) / name
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"unet.a.lora_A.weight": torch.zeros(rank, 8)}
    save_file(
        {**weights, "unet.a.lora_B.weight": torch.zeros(8, rank)},
        folder / "pytorch_lora_weights.safetensors",
    )
    (folder / "train_config.json").write_text(json.dumps({"kind": "lora", "base": base}))
    (folder / "metrics.jsonl").write_text('{"event": "finished", "step": 3}\n')
    if merged:
        (folder / "model_index.json").write_text("{}")
    return folder


def own_adapters(door) -> list[str]:
    """Return the names of adapters that came with no package."""
    listed = door.http.get("/v1/adapters").json()["adapters"]
    return [one["name"] for one in listed if one["name"] not in {"plate-ink", "plate-pastel"}]


def test_a_run_that_learnt_a_lora_is_worn_at_once(door, tmp_path):
    folder = learned(door, "ink-9", 2)
    assert run_of(door, "ink-9")["uses"] == ["lora"]
    used = door.http.post("/v1/runs/ink-9/use")
    assert used.status_code == 201
    told = used.json()
    assert (told["as"], told["name"], told["ranks"], told["base"], told["owner"]) == (
        "lora", "ink-9", [2], "plate", "",
    )  # fmt: skip
    assert own_adapters(door) == ["ink-9"]
    kept = tmp_path / "loras" / "ink-9.safetensors"
    assert kept.read_bytes() == (folder / "pytorch_lora_weights.safetensors").read_bytes()
    assert door.http.post("/v1/runs/ink-9/use", json={}).status_code == 201  # the same again
    refused = door.http.post("/v1/runs/ink-9/use", json={"as": "model"})
    assert (refused.status_code, refused.json()["field"]) == (422, "as")
    assert door.http.post("/v1/runs/ink-9/use", json={"replace": 1}).status_code == 422


def test_what_a_run_learnt_further_takes_the_place_of_its_lora_where_that_is_asked(door):
    learned(door, "style", 2)
    door.http.post("/v1/runs/style/use")
    learned(door, "style", 4)
    taken = door.http.post("/v1/runs/style/use")
    assert (taken.status_code, taken.json()["field"]) == (409, "name")
    assert door.http.get("/v1/adapters/loras/style").json()["ranks"] == [2]
    assert door.http.post("/v1/runs/style/use", json={"replace": True}).json()["ranks"] == [4]
    assert door.http.get("/v1/adapters/loras/style").json()["ranks"] == [4]


def test_a_lora_merged_into_its_base_can_be_a_model_too(door):
    learned(door, "both", 2, merged=True)
    assert run_of(door, "both")["uses"] == ["lora", "model"]
    assert door.http.post("/v1/runs/both/use").json()["as"] == "lora"
    assert door.http.post("/v1/runs/both/use", json={"as": "model"}).json()["as"] == "model"


def test_a_link_in_place_of_a_lora_is_none(door, tmp_path):
    folder = learned(door, "theirs", 2)
    (folder / "pytorch_lora_weights.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "pytorch_lora_weights.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    assert run_of(door, "theirs")["uses"] == ["model"]
    assert door.http.post("/v1/runs/theirs/use", json={"as": "lora"}).status_code == 422
    assert own_adapters(door) == []


@pytest.mark.parametrize(("setting", "asked"), [("adapter_api", "lora"), ("model_api", "model")])
def test_where_loras_or_models_may_not_change_no_run_is_used(tmp_path, setting, asked):
    with open_door(home=tmp_path, runs=str(tmp_path / "runs"), **{setting: False}) as door:
        learned(door, "both", 2, merged=True)
        answer = door.http.post("/v1/runs/both/use", json={"as": asked})
        assert (answer.status_code, setting in answer.json()["detail"]) == (405, True)


def test_another_clients_lora_is_not_taken_away_by_a_run(tmp_path):
    alice, ops = "the-key-of-alice-with-16", "the-key-of-ops-with-16"
    (tmp_path / "keys").write_text(f"{alice} alice generate\n{ops} ops generate,manage\n")
    with open_door(
        home=tmp_path, runs=str(tmp_path / "runs"), api_keys=str(tmp_path / "keys")
    ) as door:
        folder = learned(door, "style", 2)
        data = (folder / "pytorch_lora_weights.safetensors").read_bytes()
        path, by = "/v1/adapters/loras/style", {"x-api-key": alice}
        assert door.http.put(path, content=data, headers=by).status_code == 201
        use = "/v1/runs/style/use"
        assert door.http.post(use, json={}, headers=by).status_code == 403
        answer = door.http.post(use, json={"replace": True}, headers={"x-api-key": ops})
        assert answer.status_code == 409
        assert door.http.get(path, headers=by).json()["owner"] == "alice"


def test_where_the_operator_has_not_allowed_it_nothing_starts(tmp_path):
    with open_door(runs=str(tmp_path)) as door:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "metrics.jsonl").write_text(json.dumps({"event": "step", "step": 1}))
        assert door.http.get("/v1/runs").json()["can_start"] is False
        for method, path in (
            ("POST", "/v1/runs"), ("POST", "/v1/runs/x/resume"), ("POST", "/v1/runs/x/stop"),
            ("DELETE", "/v1/runs/x"),
            ("GET", "/v1/datasets"), ("PUT", "/v1/datasets/a/a.png"),
        ):  # fmt: skip
            answer = door.http.request(method, path, json={"name": "a", "config": "b = 1"})
            assert answer.status_code == 405, path
            assert "serve.training" in answer.json()["detail"]


def test_captions_are_read_mended_and_taken_away(door, tmp_path):
    red = picture("red")
    for file, data in (("0001.png", red), ("0002.png", red), ("0001.txt", b" an apple\n")):
        door.http.put(f"/v1/datasets/apples/{file}", content=data)
    about = door.http.get("/v1/datasets/apples").json()
    assert about["pictures"] == [
        {"file": "0001.png", "caption": "an apple"}, {"file": "0002.png", "caption": ""},
    ]  # fmt: skip
    small = door.http.get("/v1/datasets/apples/0001.png/small")
    assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
    door.http.put("/v1/datasets/apples/0002.txt", content="zwölf".encode())
    door.http.delete("/v1/datasets/apples/0001.txt")
    captions = [p["caption"] for p in door.http.get("/v1/datasets/apples").json()["pictures"]]
    assert captions == ["", "zwölf"]
    assert door.http.delete("/v1/datasets/apples/0002.png").json()["status"] == "removed"
    folder = tmp_path / "runs" / "datasets" / "apples"
    assert [path.name for path in folder.iterdir()] == ["0001.png"]  # its caption went with it
    for file in ("0001.jpg", "0001.txt"):
        door.http.put(f"/v1/datasets/apples/{file}", content=red)
    door.http.delete("/v1/datasets/apples/0001.jpg")
    assert (folder / "0001.txt").is_file()  # it is the other picture's too
    assert _caption(folder / "0002.txt", {"0002.txt"}) == ""  # also while the list is made


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "pears", 404), ("GET", ".hidden", 404), ("GET", "apples/0001.png/small", 404),
        ("DELETE", "apples/0001.png", 404), ("DELETE", "apples/a.py", 415),
        ("GET", "apples/..%2fx.png/small", 404), ("GET", "linked", 404),
        ("GET", "linked/a.png/small", 404), ("DELETE", "linked/a.png", 404),
    ],
)  # fmt: skip
def test_nothing_else_of_a_data_set_is_read_or_removed(door, tmp_path, method, path, status):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.png").write_bytes(picture("red"))
    root = tmp_path / "runs" / "datasets"
    (root / "apples").mkdir(parents=True)
    (root / "linked").symlink_to(tmp_path / "outside")
    assert door.http.request(method, f"/v1/datasets/{path}").status_code == status
    assert (tmp_path / "outside" / "a.png").is_file()
