"""Links to pictures of jobs: for whoever has no key, for a while, and for that picture alone."""

import re
import time

import pytest
from tests.serving import open_door

from mezzotint.serve.auth import new_key
from mezzotint.serve.dialects import native_jobs
from mezzotint.service.jobs.store import JobStore


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    key, line = new_key("ann", ["generate"])
    (folder / "keys").write_text(line + "\n")
    with open_door(folder / "jobs", api_keys=str(folder / "keys")) as opened:
        opened.key = {"Authorization": f"Bearer {key}"}
        yield opened


@pytest.fixture(scope="module")
def job(door):
    made = door.http.post(
        "/v1/jobs", json={"prompt": "a", "seed": 3, "num_images": 2}, headers=door.key
    )
    while True:
        job = door.http.get(made.headers["location"], headers=door.key).json()
        if job["finished"] is not None:
            return job
        time.sleep(0.01)


def links(door, job, **query):
    answer = door.http.get(f"/v1/jobs/{job['id']}/links", params=query, headers=door.key)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_link_shows_its_picture_without_a_key(door, job):
    told = links(door, job, seconds=60)
    assert (told["seconds"], [image["index"] for image in told["images"]]) == (60, [0, 1])
    for image, link in zip(job["images"], told["images"], strict=True):
        assert door.http.get(image["url"]).status_code == 401
        shown = door.http.get(link["url"])
        own = door.http.get(image["url"], headers=door.key)
        assert (shown.status_code, shown.content) == (200, own.content)
        assert shown.headers["content-type"] == own.headers["content-type"]
        assert 50 <= int(re.findall(r"max-age=(\d+)", shown.headers["cache-control"])[0]) <= 60
        assert shown.headers["cross-origin-resource-policy"] == "cross-origin"  # in other pages
        assert own.headers["cross-origin-resource-policy"] == "same-origin"
        etag = {"if-none-match": shown.headers["etag"]}
        assert door.http.get(link["url"], headers=etag).status_code == 304


def test_a_link_is_for_one_picture_and_as_long_as_it_says(door, job, monkeypatch):
    reads = []
    ask = JobStore._many
    monkeypatch.setattr(JobStore, "_many", lambda self, ids: reads.append(ids) or ask(self, ids))
    first, second = (image["url"] for image in links(door, job)["images"])
    until = int(re.findall(r"until=(\d+)", first)[0])
    assert 3590 <= until - time.time() <= 3601
    reads.clear()
    for forged in (
        first.replace(f"until={until}", f"until={until + 9}"),
        first[:-1] + ("0" if first[-1] != "0" else "1"),
        second.replace("/1?", "/0?"),
        first.replace("/0?", "/7?"),
        first.replace(job["id"], "job-000000000000000000000000"),
        first.partition("?")[0],
        first.replace("signature=", "signature=%C3%A9"),
    ):
        assert forged != first
        answer = door.http.get(forged)
        assert answer.status_code == 404, forged
        assert "no picture is at this link" in answer.json()["detail"]
    assert not reads  # whoever guesses costs no look into the database
    assert door.http.get(first).status_code == 200
    assert reads


def test_a_link_that_has_ended_says_so(door, job, monkeypatch):
    url = links(door, job, seconds=1)["images"][0]["url"]
    now = time.time()
    monkeypatch.setattr(native_jobs.time, "time", lambda: now + 5)
    answer = door.http.get(url)
    assert (answer.status_code, "has ended" in answer.json()["detail"]) == (410, True)


@pytest.mark.parametrize("seconds", ["0", "604801", "-1", "x", ""])
def test_seconds_of_a_link_are_bounded(door, job, seconds):
    answer = door.http.get(
        f"/v1/jobs/{job['id']}/links", params={"seconds": seconds}, headers=door.key
    )
    assert (answer.status_code, "seconds must be 1 to 604800" in answer.text) == (422, True)


def test_an_id_that_postgresql_cannot_hold_is_unknown(door, job, monkeypatch):
    ask = JobStore._many

    def strict(self, ids):
        assert "\0" not in "".join(ids)  # psycopg raises DataError
        return ask(self, ids)

    monkeypatch.setattr(JobStore, "_many", strict)
    link = {"until": "1", "signature": "a"}
    assert door.http.get("/v1/links/a%00b/0", params=link).status_code == 404
    assert door.http.get("/v1/jobs/a%00b", headers=door.key).status_code == 404


def test_links_are_made_by_who_may_see_the_job(door, job):
    assert door.http.get(f"/v1/jobs/{job['id']}/links").status_code == 401
    assert door.http.get("/v1/jobs/job-x/links", headers=door.key).status_code == 404
