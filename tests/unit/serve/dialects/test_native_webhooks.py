"""Webhooks of jobs: told once the job has ended, again where they were not taken."""

import asyncio
import base64
import hashlib
import hmac
import json

import pytest
from tests.serving import open_door

from mezzotint.serve.dialects import native_webhooks
from mezzotint.serve.dialects.native_webhooks import deliver
from mezzotint.serve.webhooks import secret_of, signed_headers

URL = "http://hooks.example/told"


@pytest.fixture
def told(monkeypatch):
    """What was sent, as (url, body, secret, id); it is taken where ``answers`` says so."""
    sent, answers = [], []

    async def send(url, body, secret, *, id_):
        sent.append((url, json.loads(body), secret, id_))
        return answers.pop(0) if answers else True

    monkeypatch.setattr(native_webhooks, "send", send)
    monkeypatch.setattr(native_webhooks, "_LOOK_S", 0.02)
    monkeypatch.setattr(native_webhooks, "_PAUSES_S", (0.05, 0.05))
    return sent, answers


def run_until(door, done):
    """Deliver until ``done()``."""

    async def run():
        task = asyncio.create_task(deliver(door.front))
        while not done():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # nothing else comes
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    door.do(lambda: asyncio.wait_for(run(), 20))


def post(door, url=URL):
    return door.http.post("/v1/jobs", params={"webhook": url}, json={"prompt": "a", "seed": 1})


def test_the_ending_of_a_job_is_told_to_its_address_signed(tmp_path, told):
    sent, _ = told
    with open_door(tmp_path, webhook_hosts=("hooks.example",)) as door:
        made = post(door)
        assert made.status_code == 202
        run_until(door, lambda: sent)
        ((url, body, secret, id_),) = sent
        shown = door.http.get(made.headers["location"]).json()
        linked = door.http.get(body["images"][0]["link"])
        assert linked.content == door.http.get(shown["images"][0]["url"]).content
        key = door.front.jobs.signing_key()
        client = door.do(door.front.jobs.get, shown["id"]).client
    assert (url, body["id"], body["status"]) == (URL, shown["id"], "succeeded")
    assert body["images"][0]["url"] == shown["images"][0]["url"]
    assert id_ == "msg_" + shown["id"].removeprefix("job-")
    assert secret == secret_of(key, client)
    headers = signed_headers(secret, id_, b"{}")
    signed = f"{id_}.{headers['webhook-timestamp']}.{{}}".encode()
    own = base64.b64decode(secret.removeprefix("whsec_"))
    expected = base64.b64encode(hmac.digest(own, signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_what_is_not_taken_is_told_again_with_the_same_id_and_given_up_in_the_end(tmp_path, told):
    sent, answers = told
    answers += [False, False, False]
    with open_door(tmp_path, webhook_hosts=("hooks.example",)) as door:
        post(door)
        run_until(door, lambda: len(sent) == 3)
    assert len({id_ for _, _, _, id_ in sent}) == 1
    assert len(sent) == 3


def test_what_could_not_be_told_before_the_server_stopped_is_told_after_it(tmp_path, told):
    sent, _ = told
    with open_door(tmp_path, webhook_hosts=("hooks.example",)) as door:
        id_ = post(door).json()["id"]
        door.do(door.front.jobs.wait, id_)
    assert sent == []
    with open_door(tmp_path, webhook_hosts=("hooks.example",)) as door:
        run_until(door, lambda: sent)
    assert sent[0][1]["id"] == id_


def test_only_allowed_addresses_are_called(tmp_path, told):
    sent, _ = told
    with open_door(tmp_path, webhook_hosts=("hooks.example",)) as door:
        for url in ("http://169.254.169.254/latest", "http://evil.example/", "file:///etc", ""):
            refused = post(door, url)
            assert refused.status_code == 422, url
            assert refused.json()["field"] == "webhook"
        assert door.http.get("/v1/jobs").json()["jobs"] == []
    assert sent == []
