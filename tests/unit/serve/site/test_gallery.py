"""The gallery's calls: jobs with what was asked, searched, deleted, by whose they are."""

import base64
import time

import pytest
from tests.serving import open_door

from mezzotint.service.fake import FakeConfig
from mezzotint.service.fake_pictures import draw

PICTURE = base64.b64encode(draw(b"\x01" * 32, 8, 8, "png")).decode()


def finish(door, body, **headers):
    id_ = door.http.post("/v1/jobs", json=body, headers=headers).json()["id"]
    until = time.monotonic() + 20
    while (job := door.http.get(f"/v1/jobs/{id_}", headers=headers).json())["finished"] is None:
        assert time.monotonic() < until, job
        time.sleep(0.01)
    return id_


def ids(door, query="", **headers):
    answer = door.http.get(f"/v1/gallery?{query}", headers=headers)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["jobs"]]


def test_a_job_says_what_was_asked_and_keeps_its_pictures_for_a_call_of_their_own(tmp_path):
    with open_door(tmp_path) as door:
        id_ = finish(door, {"prompt": "a boat", "seed": "18446744073709551615", "image": PICTURE})
        (job,) = door.http.get("/v1/gallery").json()["jobs"]
        assert job["request"] == {
            "prompt": "a boat", "seed": 2**64 - 1, "image": "(a picture)",
        }  # fmt: skip
        assert job["status"] == "succeeded"
        assert job["images"][0]["url"] == f"/v1/jobs/{id_}/images/0"
        whole = door.http.get(f"/v1/jobs/{id_}/request").json()
        assert whole == {"prompt": "a boat", "seed": 2**64 - 1, "image": PICTURE}


def test_open_and_ended_jobs_are_told_apart(tmp_path):
    with open_door(tmp_path, fake=FakeConfig(step_s=0.2)) as door:
        running = door.http.post("/v1/jobs", json={"num_inference_steps": 100}).json()["id"]
        assert ids(door, "which=open") == [running]
        assert ids(door, "which=ended") == []
        refused = door.http.delete(f"/v1/gallery/{running}")
        assert refused.status_code == 409
        assert "cancel it first" in refused.json()["detail"]
        door.http.delete(f"/v1/jobs/{running}")
        assert ids(door, "which=open") == []
        assert ids(door, "which=ended") == [running]


def test_a_search_finds_every_word_anywhere_in_what_was_asked(tmp_path):
    with open_door(tmp_path) as door:
        apple = finish(door, {"prompt": "a Red apple", "seed": 11})
        boat = finish(door, {"prompt": "a boat", "negative_prompt": "red", "seed": 4712})
        shape = finish(door, {"model": "plate-gan", "seed": 5})
        image = finish(door, {"prompt": "plain", "seed": 6, "image": PICTURE})
        assert ids(door) == [image, shape, boat, apple]
        assert ids(door, "q=red") == [boat, apple]
        assert ids(door, "q=RED+apple") == [apple]
        assert ids(door, "q=4712") == [boat]
        assert ids(door, "q=gan") == [shape]
        assert ids(door, f"q={PICTURE[:12]}") == []  # nobody looks for letters of a picture
        assert ids(door, "q=nothing") == []


def test_pages_follow_each_other(tmp_path):
    with open_door(tmp_path) as door:
        made = [finish(door, {"prompt": f"n{k} both", "seed": k}) for k in range(5)][::-1]
        for query in ("", "q=both&"):
            first = door.http.get(f"/v1/gallery?{query}limit=2").json()
            second = door.http.get(f"/v1/gallery?{query}limit=2&after={first['next']}").json()
            third = door.http.get(f"/v1/gallery?{query}limit=2&after={second['next']}").json()
            pages = [[j["id"] for j in page["jobs"]] for page in (first, second, third)]
            assert pages == [made[:2], made[2:4], made[4:]]
            assert third["next"] is None


def test_a_deleted_job_is_gone_with_its_picture_but_not_with_that_of_another(tmp_path):
    with open_door(tmp_path) as door:
        first = finish(door, {"prompt": "same", "seed": 1})
        second = finish(door, {"prompt": "same", "seed": 1})  # the same bytes, kept once
        assert door.http.delete(f"/v1/gallery/{first}").json() == {"id": first, "status": "deleted"}
        assert ids(door) == [second]
        assert door.http.get(f"/v1/jobs/{first}").status_code == 404
        assert door.http.get(f"/v1/jobs/{second}/images/0").status_code == 200
        files = lambda: [p for p in (tmp_path / "results").rglob("*") if len(p.name) == 64]  # noqa: E731
        assert len(files()) == 1
        door.http.delete(f"/v1/gallery/{second}")
        assert files() == []
        assert door.http.delete(f"/v1/gallery/{second}").status_code == 404


@pytest.mark.parametrize("query", ["which=some", "limit=0", "limit=201", "limit=a"])
def test_a_query_that_means_nothing_is_refused(tmp_path, query):
    with open_door(tmp_path) as door:
        answer = door.http.get(f"/v1/gallery?{query}")
        assert answer.status_code == 422
        assert answer.json()["field"] == query.partition("=")[0]


def test_nobody_sees_or_deletes_the_jobs_of_another_key(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a" * 20 + " ann generate\n" + "b" * 20 + " bob generate\n" + "c" * 20 + "\n")
    keys.chmod(0o600)
    ann, bob, all_ = ({"authorization": f"Bearer {c * 20}"} for c in "abc")
    with open_door(tmp_path / "jobs", api_keys=str(keys)) as door:
        id_ = finish(door, {"prompt": "mine", "seed": 1}, **ann)
        assert ids(door, **ann) == ids(door, **all_) == [id_]
        assert ids(door, **bob) == ids(door, "q=mine", **bob) == []
        assert door.http.get(f"/v1/jobs/{id_}/request", headers=bob).status_code == 404
        assert door.http.delete(f"/v1/gallery/{id_}", headers=bob).status_code == 404
        assert door.http.get("/v1/gallery").status_code == 401
        assert ids(door, **ann) == [id_]


def test_without_a_durable_queue_there_is_no_gallery():
    with open_door() as door:
        assert door.http.get("/v1/gallery").status_code == 404
