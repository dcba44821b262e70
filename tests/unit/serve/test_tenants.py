"""No key sees, guesses or changes what another key asks for (mezzotint.serve.auth, .front)."""

import pytest
from tests.serving import open_door

from mezzotint.errors import InvalidRequest
from mezzotint.serve.auth import KeyRing, read_keys
from mezzotint.serve.config import Limits

ALICE, BOB, OPS = (f"the-key-of-{name}-with-16" for name in ("alice", "bob", "ops"))
KEYS = f"{ALICE} alice generate\n{BOB} bob generate\n{OPS} ops generate,manage\n"
SECRET = {"prompt": "a secret meeting", "negative_prompt": "witnesses", "seed": 41}


def by(key):
    return {"x-api-key": key}


@pytest.fixture
def door(tmp_path):
    (tmp_path / "keys").write_text(KEYS)
    with open_door(tmp_path / "jobs", api_keys=str(tmp_path / "keys")) as opened:
        yield opened


@pytest.mark.parametrize("path", ["/v1/generations", "/predictions/plate"])
def test_results_are_kept_for_their_owner_alone(door, path):
    asked = [
        door.http.post(path, json=SECRET, headers=by(key)).headers["x-cache"]
        for key in (ALICE, BOB, ALICE, OPS, BOB)
    ]
    assert asked == ["miss", "miss", "hit", "miss", "hit"]


def test_a_plan_speaks_of_the_callers_own_pictures_only(door):
    door.http.post("/v1/generations", json=SECRET, headers=by(ALICE))
    plans = {
        key: door.http.post("/v1/plan", json=SECRET, headers=by(key)).json()["cache"]
        for key in (ALICE, BOB)
    }
    assert plans == {ALICE: "it is kept", BOB: "nothing is kept yet"}


def test_jobs_take_the_pictures_of_their_owner(door):
    door.http.post("/v1/generations", json=SECRET, headers=by(ALICE))
    for key, cache in ((BOB, "miss"), (ALICE, "hit")):
        id_ = door.http.post("/v1/jobs", json=SECRET, headers=by(key)).json()["id"]
        door.do(door.front.jobs.wait, id_)
        assert door.http.get(f"/v1/jobs/{id_}", headers=by(key)).json()["cache"] == cache


class TestA1111Options:
    OPTIONS = "/sdapi/v1/options"

    def checkpoint(self, door, key):
        return door.http.get(self.OPTIONS, headers=by(key)).json()["sd_model_checkpoint"]

    def test_options_of_one_key_change_no_picture_of_another(self, door):
        wanted = {"sd_model_checkpoint": "plate-gan"}
        assert door.http.post(self.OPTIONS, json=wanted, headers=by(ALICE)).status_code == 200
        assert self.checkpoint(door, ALICE) == "plate-gan"
        assert self.checkpoint(door, BOB).startswith("plate [")
        for key in (ALICE, BOB):
            door.http.post("/sdapi/v1/txt2img", json={"steps": 1}, headers=by(key))
        assert [r.model for r in door.service.requests] == ["plate-gan", "plate"]

    def test_everybodys_options_need_the_scope_manage_and_stand_behind_ones_own(self, door):
        wanted = {"sd_model_checkpoint": "plate-gan"}
        url = f"{self.OPTIONS}?global=true"
        refused = door.http.post(url, json=wanted, headers=by(ALICE))
        assert refused.status_code == 403
        assert "manage" in refused.json()["detail"]
        assert door.http.post(url, json=wanted, headers=by(OPS)).status_code == 200
        assert self.checkpoint(door, BOB) == "plate-gan"
        door.http.post(self.OPTIONS, json={"sd_model_checkpoint": "plate"}, headers=by(BOB))
        assert self.checkpoint(door, BOB) == "plate"
        assert self.checkpoint(door, ALICE) == "plate-gan"

    def test_options_are_bounded(self, door):
        many = {f"option-{k}": k for k in range(101)}
        assert door.http.post(self.OPTIONS, json=many, headers=by(BOB)).status_code == 422


class TestNames:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (f"{ALICE} alice\n{BOB} alice\n", "line 2: the name 'alice' stands in line 1 too"),
            (f"{ALICE} alice\n{ALICE} bob\n", "line 2: this key stands in the file twice"),
            (f"{ALICE}\n{ALICE}\n", "twice"),
        ],
    )
    def test_two_keys_of_one_name_are_refused_at_start(self, text, message):
        with pytest.raises(InvalidRequest, match=message) as caught:
            read_keys(text, Limits())
        assert ALICE not in str(caught.value)

    def test_two_keys_of_one_name_leave_the_keys_as_they_were(self, tmp_path, monkeypatch):
        path = tmp_path / "keys"
        path.write_text(f"{ALICE} alice\n{BOB} bob\n")
        monkeypatch.setattr("mezzotint.serve.auth._RELOAD_S", 0.0)
        ring = KeyRing(path, Limits())
        path.write_text(f"{ALICE} bob\n{BOB} bob\n# longer\n")
        assert ring.identify(by(ALICE), "").name == "alice"
        assert ring.identify(by(BOB), "").name == "bob"
