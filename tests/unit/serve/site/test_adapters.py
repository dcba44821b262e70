"""LoRAs over HTTP: brought along, listed and dropped, each for its own key."""

import json
import struct
import time

import pytest
import torch
from safetensors.torch import save
from tests.serving import open_door

from mezzotint.serve.auth import read_keys
from mezzotint.serve.config import Limits
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig
from mezzotint.service.provision import own_adapters

ALICE, BOB, OPS = (f"the-key-of-{name}-with-16" for name in ("alice", "bob", "ops"))
KEYS = f"{ALICE} alice generate\n{BOB} bob generate\n{OPS} ops generate,manage\n"
LORA = save(
    {
        "unet.mid_block.proj.lora_A.weight": torch.zeros(2, 8),
        "unet.mid_block.proj.lora_B.weight": torch.zeros(8, 2),
    }
)
ONE = "/v1/adapters/loras/"


def by(key):
    return {"x-api-key": key}


@pytest.fixture(autouse=True)
def nothing_ships(monkeypatch):
    """LoRAs of the package are looked at in test_shipped_loras.py."""
    monkeypatch.setattr(own_adapters, "shipped", lambda kind: {})


@pytest.fixture
def door(tmp_path):
    (tmp_path / "keys").write_text(KEYS)
    limits = Limits(body_bytes=1024, adapter_bytes=4096, adapters=2)
    with open_door(home=tmp_path, api_keys=str(tmp_path / "keys"), limits=limits) as opened:
        yield opened


def upload(door, name, key, *, data=LORA, headers=None, **query):
    return door.http.put(ONE + name, content=data, headers=by(key) | (headers or {}), params=query)


def names(door, key):
    answer = door.http.get("/v1/adapters", headers=by(key))
    assert answer.status_code == 200
    return {one["name"]: one["owner"] for one in answer.json()["adapters"]}


def test_who_brings_a_lora_along_sees_it_and_who_manages(door, tmp_path):
    answer = upload(door, "style", ALICE)
    assert answer.status_code == 201
    told = answer.json()
    assert (told["owner"], told["ranks"], told["layers"]) == ("alice", [2], 1)
    assert str(tmp_path) not in answer.text
    assert (tmp_path / "loras" / "style.safetensors").read_bytes() == LORA
    assert (names(door, ALICE), names(door, BOB)) == ({"style": "alice"}, {})
    assert names(door, OPS) == {"style": "alice"}
    seen = {key: door.http.get(ONE + "style", headers=by(key)).status_code for key in (ALICE, BOB)}
    assert seen == {ALICE: 200, BOB: 404}


def test_a_lora_that_is_shared_is_everybodys_and_needs_manage(door):
    assert upload(door, "house", ALICE, shared="true").status_code == 403
    assert upload(door, "house", OPS, shared="true").status_code == 201
    assert names(door, BOB) == {"house": ""}
    assert door.http.delete(ONE + "house", headers=by(BOB)).status_code == 403
    assert upload(door, "more", OPS, shared="perhaps").status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a pear", "loras": [{"name": "ink"}]},
        {"prompt": "a pear <lora:ink:0.5>", "prompt_dialect": "a1111"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/generations", "/v1/plan"])
def test_nobody_wears_the_lora_of_another(door, path, body):
    assert upload(door, "ink", ALICE).status_code == 201  # a name that the fake service has
    answers = {key: door.http.post(path, json=body, headers=by(key)) for key in (ALICE, BOB, OPS)}
    assert [answers[key].status_code for key in (ALICE, OPS)] == [200, 200]
    refused = answers[BOB]
    assert (refused.status_code, refused.json()["error"]) == (422, "UnknownName")
    assert "alice" not in refused.text


def test_a_job_that_waited_does_not_wear_what_became_anothers(tmp_path, monkeypatch):
    monkeypatch.setattr(own_adapters, "HELD_S", 0.0)  # a job waits for longer
    (tmp_path / "keys").write_text(KEYS)
    with open_door(
        tmp_path / "jobs", home=tmp_path, api_keys=str(tmp_path / "keys"),
        fake=FakeConfig(step_s=0.05),
        jobs=JobsConfig(folder=str(tmp_path / "jobs"), max_running=1),
    ) as door:  # fmt: skip

        def send(key, **body):
            answer = door.http.post("/v1/jobs", json={"prompt": "a", **body}, headers=by(key))
            assert answer.status_code == 202
            return answer.json()["id"]

        def ended(key, job):
            until = time.monotonic() + 60
            while time.monotonic() < until:
                told = door.http.get(f"/v1/jobs/{job}", headers=by(key)).json()
                if told["status"] in ("succeeded", "failed"):
                    return told
                time.sleep(0.05)
            raise AssertionError("it never ended")

        upload(door, "ink", OPS, shared="true")
        worn = {"loras": [{"name": "ink"}], "num_inference_steps": 2}
        send(ALICE, num_inference_steps=40)
        waits, managers = send(BOB, **worn), send(OPS, **worn)
        assert door.http.delete(ONE + "ink", headers=by(OPS)).status_code == 200
        assert upload(door, "ink", ALICE).status_code == 201
        told = ended(BOB, waits)
        assert (told["status"], told["error"]["error"]) == ("failed", "UnknownName")
        assert ended(OPS, managers)["status"] == "succeeded"


@pytest.mark.parametrize("path", ["/v1/generations", "/v1/plan"])
@pytest.mark.parametrize("place", ["loras/ink.safetensors", "loras/../loras/ink.safetensors"])
def test_nobody_wears_the_lora_of_another_by_its_path(door, tmp_path, path, place):
    assert upload(door, "ink", ALICE).status_code == 201
    worn = str(tmp_path / place)
    for body in (
        {"prompt": "a pear", "loras": [{"name": worn}]},
        {"prompt": f"a pear <lora:{worn}:1>", "prompt_dialect": "a1111"},
        {"prompt": "a pear", "embeddings": [{"name": worn}]},
        {"prompt": "a pear", "model": worn},
    ):
        refused = door.http.post(path, json=body, headers=by(BOB))
        assert (refused.status_code, refused.json()["error"]) == (403, "ModelNotAllowed")
        assert "those that may manage" in refused.text


@pytest.mark.parametrize("path", ["/v1/capabilities", "/sdapi/v1/loras", "/object_info"])
def test_lists_of_other_dialects_leave_out_what_is_anothers(door, path):
    assert upload(door, "ink", ALICE).status_code == 201
    told = {key: door.http.get(path, headers=by(key)).text for key in (ALICE, BOB)}
    assert '"ink"' in told[ALICE]
    assert '"ink"' not in told[BOB]


def test_one_drops_ones_own_and_its_name_is_free_for_oneself(door):
    upload(door, "style", ALICE)
    assert door.http.delete(ONE + "style", headers=by(BOB)).status_code == 404
    assert upload(door, "style", BOB).status_code == 409
    assert door.http.delete(ONE + "style", headers=by(ALICE)).status_code == 200
    assert upload(door, "style", BOB).status_code == 409  # who asked by that name a moment ago?
    assert upload(door, "style", ALICE).status_code == 201
    assert names(door, BOB) == {}
    assert door.http.delete(ONE + "style", headers=by(OPS)).status_code == 200


def test_a_key_has_as_many_as_it_may(door):
    assert [upload(door, f"n{k}", ALICE).status_code for k in range(3)] == [201, 201, 403]
    assert upload(door, "mine", BOB).status_code == 201


def test_what_cannot_be_taken_is_refused_before_any_of_it_is_asked_for(door):
    waits = {"expect": "100-continue"}

    def body():
        pytest.fail("the body was asked for")
        yield b""

    assert upload(door, "n0", ALICE).status_code == 201
    assert upload(door, "n0", BOB, data=body(), headers=waits).status_code == 409
    assert upload(door, "n1", ALICE).status_code == 201
    assert upload(door, "n2", ALICE, data=body(), headers=waits).status_code == 403


def test_a_key_sends_two_at_once(door):
    caller = next(c for c in read_keys(KEYS, Limits()).values() if c.name == "alice")
    for _ in range(2):
        door.front.meter.take(caller, "uploads of LoRAs", 2)
    answer = upload(door, "third", ALICE)
    assert (answer.status_code, "at most 2 uploads" in answer.text) == (429, True)
    door.front.meter.give(caller, "uploads of LoRAs")
    assert [upload(door, f"n{k}", ALICE).status_code for k in range(2)] == [201, 201]
    assert upload(door, "mine", BOB).status_code == 201


def crooked(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 422),
        (b"\x80\x04pickle", 422),
        (LORA[:-1], 422),
        (save({"unet.conv.weight": torch.zeros(2)}), 422),
        (crooked({"__metadata__": [1]}), 422),
        (crooked({"lora_A": {"dtype": 1, "shape": ["x"], "data_offsets": [0, 0]}}), 422),
        (
            crooked(
                {"x.lora_A.weight": {"dtype": "F32", "shape": [1 << 64, 0], "data_offsets": [0, 0]}}
            ),
            422,
        ),
        (
            crooked(
                {
                    "__metadata__": {"modelspec.title": "\ud800"},
                    "x.lora_A.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
                }
            ),
            422,
        ),
        (struct.pack("<Q", 3900) + b'{"a":' + b"[" * 3895, 422),
        (LORA + bytes(5000), 413),
    ],
)
def test_what_is_no_lora_is_refused_and_leaves_nothing(door, tmp_path, data, status):
    answer = upload(door, "style", ALICE, data=data)
    assert answer.status_code == status, answer.text
    assert str(tmp_path) not in answer.text
    assert list((tmp_path / "loras").iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".hidden", "a b", "x" * 101, "%2e%2e%2fx"])
def test_a_name_leads_nowhere(door, name):
    assert upload(door, name, ALICE).status_code in (404, 405, 422)


def test_an_upload_may_be_larger_than_other_bodies_and_only_it(door):
    data = save({"unet.a.lora_A.weight": torch.zeros(2, 200)})
    assert len(data) > 1024
    assert upload(door, "large", ALICE, data=data).status_code == 201
    beyond = save({"unet.a.lora_A.weight": torch.zeros(2, 600)})
    assert upload(door, "beyond", ALICE, data=beyond).status_code == 413
    answer = door.http.post("/v1/generations", content=data, headers=by(ALICE))
    assert answer.status_code == 413
    wrong = by(ALICE) | {"content-type": "application/json"}
    assert door.http.put(ONE + "x", content=b"{}", headers=wrong).status_code == 415


def test_without_keys_everybody_is_one(tmp_path):
    with open_door(home=tmp_path) as door:
        assert door.http.put(ONE + "style", content=LORA).json()["owner"] == ""
        assert door.http.get("/v1/adapters").json()["adapters"][0]["name"] == "style"
        assert door.http.delete(ONE + "style").json()["status"] == "removed"


def test_a_server_may_take_none_or_have_no_place_for_any(tmp_path):
    with open_door(home=tmp_path, adapter_api=False) as door:
        assert door.http.put(ONE + "style", content=LORA).status_code == 405
        assert door.http.delete(ONE + "style").status_code == 405
        assert door.http.get("/v1/adapters").json() == {"adapters": []}
    with open_door() as door:
        assert door.http.get("/v1/adapters").status_code == 404


def bring(door, key=None, **body):
    headers = by(key) if key else {}
    return door.http.post("/v1/adapters/loras", json=body, headers=headers)


def test_a_manager_names_a_lora_by_path_where_the_operator_allows_it(tmp_path):
    (tmp_path / "keys").write_text(KEYS)
    file = tmp_path / "elsewhere" / "old.safetensors"
    file.parent.mkdir()
    file.write_bytes(LORA)
    (tmp_path / "no.safetensors").write_bytes(save({"weight": torch.zeros(2)}))
    asked = {"name": "ink", "source": str(file)}
    keys = {"home": tmp_path, "api_keys": str(tmp_path / "keys")}
    with open_door(**keys) as door:
        refused = bring(door, OPS, **asked)
        assert refused.status_code == 403
        assert "serve.register_paths" in refused.text
    with open_door(**keys, register_paths=True) as door:
        assert bring(door, ALICE, **asked).status_code == 403
        told = bring(door, OPS, **asked)
        assert told.status_code == 201
        assert (told.json()["owner"], told.json()["ranks"]) == ("", [2])
        assert names(door, BOB) == {"ink": ""}
        assert (tmp_path / "loras" / "ink.safetensors").read_bytes() == LORA
        assert bring(door, OPS, **asked).status_code == 409
        nothing = bring(door, OPS, name="x", source=str(tmp_path / "nothing.safetensors"))
        assert (nothing.status_code, "neither a file here" in nothing.text) == (422, True)
        wrong = bring(door, OPS, name="x", source=str(tmp_path / "no.safetensors"))
        assert (wrong.status_code, wrong.json()["field"]) == (422, "source")
        assert bring(door, OPS, name="a/b", source=str(file)).status_code == 422
        assert bring(door, OPS, name="x").status_code == 422
        assert file.exists()
        assert door.http.delete(ONE + "ink", headers=by(OPS)).status_code == 200
        assert file.exists()


@pytest.mark.parametrize("source", ["me/ink", "me/ink/ink.safetensors"])
def test_a_lora_of_the_hub_is_taken_from_its_cache(tmp_path, monkeypatch, source):
    from huggingface_hub import constants

    folder = tmp_path / "hub" / "models--me--ink"
    commit = "0123456789" * 4
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "ink.safetensors").write_bytes(LORA)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with open_door(home=tmp_path / "home", register_paths=True) as door:
        assert bring(door, name="ink", source=source).status_code == 201
        assert door.http.get("/v1/adapters").json()["adapters"][0]["name"] == "ink"
        other = bring(door, name="x", source="me/other/x.safetensors")
        assert (other.status_code, "not on this machine" in other.text) == (422, True)
