"""What operates the server: measurements, clients, answers, models; for keys that manage."""

import socket
import time

import pytest
from tests.serving import open_door

import mezzotint
from mezzotint.service.fake import FakeConfig

MODELS = "/v1/operations/models"


def test_measurements_are_those_of_the_metrics_listener(tmp_path):
    with open_door(tmp_path) as door:
        door.http.post("/v1/generations", json={"prompt": "a"})
        text = door.http.get("/v1/operations/metrics").text
        assert 'mezzotint_requests_total{door="native",status="200"}' in text
        names = {line.split(" ")[2] for line in text.splitlines() if line.startswith("# HELP")}
        listener = door.metrics.get("/metrics").text.splitlines()
        assert names == {line.split(" ")[2] for line in listener if line.startswith("# HELP")}


def test_answers_are_found_by_id_path_and_status_and_hold_no_prompt(tmp_path):
    with open_door(tmp_path) as door:
        sent = {"x-request-id": "mine-0001"}
        door.http.post("/v1/generations", json={"prompt": "secret words"}, headers=sent)
        door.http.get("/v1/nothing")
        found = door.http.get("/v1/operations/answers?q=MINE-0001").json()["answers"]
        assert [(a["id"], a["status"], a["path"]) for a in found] == [
            ("mine-0001", 200, "/v1/generations")
        ]
        assert "secret" not in door.http.get("/v1/operations/answers").text
        newest = door.http.get("/v1/operations/answers?q=404").json()["answers"]
        # an id is random, and may hold these digits as well
        assert [a["path"] for a in newest if a["status"] == 404] == ["/v1/nothing"]


def test_nodes_of_one_machine_are_itself_and_its_worker(tmp_path):
    with open_door(tmp_path) as door:
        while not (found := door.http.get("/v1/operations/nodes").json())["servers"]:
            time.sleep(0.01)  # it says that it lives a moment after it takes requests
        (node,), (replica,), (server,) = found["nodes"], found["replicas"], found["servers"]
        assert node["host"] == replica["host"] == server["host"] == socket.gethostname()
        assert (replica["status"], server["is_this"]) == ("ready", True)
        assert server["version"] == mezzotint.__version__


def test_models_are_added_made_the_default_and_removed(tmp_path):
    with open_door(tmp_path) as door:
        added = door.http.post(MODELS, json={"source": "tulip.mzt", "version": "2.0"})
        assert (added.status_code, added.json()["name"]) == (201, "tulip")
        again = door.http.post(MODELS, json={"source": "tulip.mzt", "version": "2.0"})
        assert (again.status_code, again.json()["field"]) == (409, "name")
        assert door.http.post(MODELS, json={"source": "missing"}).status_code == 404
        for source in ("", 3, "../etc", "https://example.org/a.mar", "/etc/passwd"):
            refused = door.http.post(MODELS, json={"source": source})
            assert refused.status_code in {403, 404, 422}, source
        door.http.post(MODELS, json={"source": "tulip.mzt", "version": "1.0"})
        assert door.http.put(f"{MODELS}/tulip/1.0/default").status_code == 200
        models = door.http.get("/v1/capabilities").json()["models"]
        assert {m["version"]: m["default"] for m in models if m["name"] == "tulip"} == {
            "1.0": True, "2.0": False,
        }  # fmt: skip
        for version in ("1.0", "2.0"):
            assert door.http.delete(f"{MODELS}/tulip/{version}").status_code == 200
        assert door.http.delete(f"{MODELS}/tulip/2.0").status_code == 404


def test_models_stay_as_they_are_where_they_may_not_be_changed(tmp_path):
    with open_door(tmp_path, model_api=False) as door:
        assert door.http.post(MODELS, json={"source": "tulip.mzt"}).status_code == 405
        assert door.http.delete(f"{MODELS}/plate/1.0").status_code == 405


@pytest.mark.parametrize("path", ["metrics", "clients", "answers", "nodes"])
def test_keys_that_do_not_manage_see_nothing_of_it(tmp_path, path):
    keys = tmp_path / "keys"
    keys.write_text(f"{'a' * 24} ann generate\n{'b' * 24} bob generate,manage\n")
    keys.chmod(0o600)
    with open_door(tmp_path / "jobs", api_keys=str(keys)) as door:
        ann, bob = ({"authorization": f"Bearer {k * 24}"} for k in "ab")
        assert door.http.get(f"/v1/operations/{path}", headers=ann).status_code == 403
        answer = door.http.get(f"/v1/operations/{path}", headers=bob)
        assert answer.status_code == 200
        assert "aaaaaaaa" not in answer.text
        if path == "clients":
            clients = {c["name"]: c["scopes"] for c in answer.json()["clients"]}
            assert clients == {"ann": ["generate"], "bob": ["generate", "manage"]}


def ready(door):
    return {m["name"]: m["ready"] for m in door.http.get("/v1/capabilities").json()["models"]}


def test_models_are_brought_into_memory_and_let_go(tmp_path):
    with open_door(tmp_path) as door:
        gone = door.http.post(f"{MODELS}/plate/unload")
        assert (gone.status_code, gone.json()["ready"]) == (200, False)
        assert door.http.post(f"{MODELS}/plate/unload").status_code == 200  # it is out already
        assert ready(door) == {"plate": False, "plate-gan": True}
        back = door.http.post(f"{MODELS}/plate@1.0/load")
        assert (back.status_code, back.json()["ready"]) == (200, True)
        assert ready(door)["plate"] is True
        for name in ("nobody", "plate@9.9", "..", "."):
            assert door.http.post(f"{MODELS}/{name}/load").status_code in {404, 405}, name


def test_a_model_in_use_stays_in_memory(tmp_path):
    with open_door(tmp_path, fake=FakeConfig(step_s=0.05)) as door:
        job = door.http.post("/v1/jobs", json={"prompt": "a", "num_inference_steps": 40}).json()
        while door.http.get(f"/v1/jobs/{job['id']}").json()["status"] != "running":
            time.sleep(0.01)
        refused = door.http.post(f"{MODELS}/plate/unload")
        assert (refused.status_code, refused.json()["error"]) == (409, "InUse")
        assert "in use" in refused.json()["detail"]
        door.http.delete(f"/v1/jobs/{job['id']}")


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_who_does_not_manage_moves_no_model(tmp_path, verb):
    keys = tmp_path / "keys"
    keys.write_text(f"{'a' * 24} ann generate\n")
    keys.chmod(0o600)
    with open_door(tmp_path / "jobs", api_keys=str(keys)) as door:
        ann = {"authorization": f"Bearer {'a' * 24}"}
        assert door.http.post(f"{MODELS}/plate/{verb}", headers=ann).status_code == 403
        for path in ("unload-checkpoint", "reload-checkpoint"):
            (warning,) = door.http.post(f"/sdapi/v1/{path}", headers=ann).json()["warnings"]
            assert "manage" in warning
        asked = {"unload_models": True}
        assert door.http.post("/free", json=asked, headers=ann).status_code == 200
        assert all(ready_for(door, ann).values())


def ready_for(door, headers):
    models = door.http.get("/v1/capabilities", headers=headers).json()["models"]
    return {m["name"]: m["ready"] for m in models}


def test_the_words_of_other_programs_for_it_do_it(tmp_path):
    with open_door(tmp_path) as door:
        assert door.http.post("/sdapi/v1/unload-checkpoint").json() == {"warnings": []}
        assert not any(ready(door).values())
        assert door.http.post("/sdapi/v1/reload-checkpoint").json() == {"warnings": []}
        assert ready(door) == {"plate": True, "plate-gan": False}
        assert door.http.post("/free", json={"unload_models": False}).status_code == 200
        assert ready(door)["plate"] is True
        assert door.http.post("/free", json={"unload_models": True}).status_code == 200
        assert not any(ready(door).values())
