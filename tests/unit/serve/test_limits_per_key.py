"""Every door counts for the key that uses it (mezzotint.serve.front, mezzotint.serve.auth)."""

import asyncio
import base64
import threading
import time

import pytest
from tests.serving import open_door

from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig, FakeService
from mezzotint.service.fake_pictures import draw

ALICE, BOB = (f"the-key-of-{name}-with-16" for name in ("alice", "bob"))
KEYS = f"{ALICE} alice generate\n{BOB} bob generate\n"
PICTURE = base64.b64encode(draw(bytes(32), 16, 16, "png")).decode()


class SlowUpscaler(FakeService):
    """Enlarges when it is told to."""

    def __init__(self, config=None):
        super().__init__(config)
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    async def upscale(self, data, **named):
        self.begun.release()
        await asyncio.to_thread(self.go.wait, 10)
        return await super().upscale(data, **named)


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEYS)
    return str(path)


def by(key):
    return {"x-api-key": key}


def in_background(function, *arguments, **named):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function(*arguments, **named)))
    thread.start()
    return thread, answers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("extra-single-image", {"image": PICTURE, "upscaling_resize": 2}),
        ("extra-batch-images", {"imageList": [{"data": PICTURE}] * 2, "upscaling_resize": 2}),
    ],
)
def test_enlargements_count_as_generations_of_their_key(keys, path, body):
    url, service = f"/sdapi/v1/{path}", SlowUpscaler()
    with open_door(service=service, api_keys=keys, limits={"concurrency": 1}) as door:
        thread, first = in_background(door.http.post, url, json=body, headers=by(ALICE))
        assert service.begun.acquire(timeout=10)
        assert door.front.running == 1
        assert door.http.post(url, json=body, headers=by(ALICE)).status_code == 429
        generate = door.http.post("/v1/generations", json={}, headers=by(ALICE))
        assert generate.status_code == 429
        other, second = in_background(door.http.post, url, json=body, headers=by(BOB))
        assert service.begun.acquire(timeout=10)
        service.go.set()
        thread.join()
        other.join()
        assert [first[0].status_code, second[0].status_code] == [200, 200]
        door.front.draining = True
        assert door.http.post(url, json=body, headers=by(BOB)).status_code == 503


def test_a_batch_of_enlargements_is_held_to_the_number_of_pictures(keys):
    with open_door(api_keys=keys, limits={"images": 2}) as door:
        body = {"imageList": [{"data": PICTURE}] * 3}
        answer = door.http.post("/sdapi/v1/extra-batch-images", json=body, headers=by(BOB))
        assert answer.status_code == 413


def test_an_idempotency_key_is_no_way_round_the_concurrency_of_a_key(keys, tmp_path):
    fake = FakeConfig(step_s=0.1)
    with open_door(tmp_path, fake=fake, api_keys=keys, limits={"concurrency": 1}) as door:

        def ask(number):
            headers = {**by(ALICE), "idempotency-key": f"k{number}"}
            return door.http.post("/v1/generations", json={"seed": number}, headers=headers)

        pairs = [in_background(ask, number) for number in range(3)]
        for thread, _ in pairs:
            thread.join()
        assert sorted(answers[0].status_code for _, answers in pairs) == [200, 429, 429]


def test_event_streams_count_per_key(keys, tmp_path):
    limits = {"streams": 2}
    with open_door(tmp_path, fake=FakeConfig(step_s=0.05), api_keys=keys, limits=limits) as door:
        body = {"num_inference_steps": 20}
        ids = {
            key: door.http.post("/v1/jobs", json=body, headers=by(key)).json()["id"]
            for key in (ALICE, BOB)
        }

        def follow(key):
            return door.http.get(f"/v1/jobs/{ids[key]}/events", headers=by(key)).status_code

        pairs = [in_background(follow, ALICE) for _ in range(2)]
        until = time.monotonic() + 10
        bucket = door.front.meter._bucket
        caller = next(c for c in door.http.app._keys._callers.values() if c.name == "alice")
        while bucket(caller).held["event streams"] < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert follow(ALICE) == 429
        streamed = {**by(ALICE), "accept": "text/event-stream"}
        assert door.http.post("/v1/generations", json={}, headers=streamed).status_code == 429
        assert follow(BOB) == 200
        for thread, answers in pairs:
            thread.join()
            assert answers == [200]
        assert bucket(caller).held.total() == 0


def test_one_key_leaves_a_share_of_the_queue_to_others(keys, tmp_path):
    jobs = JobsConfig(folder=str(tmp_path), max_running=1, max_waiting=8)
    with open_door(tmp_path, fake=FakeConfig(step_s=1.0), jobs=jobs, api_keys=keys) as door:

        def post(key, number):
            return door.http.post("/v1/jobs", json={"seed": number}, headers=by(key)).status_code

        codes = [post(ALICE, number) for number in range(10)]
        assert codes.count(202) in (6, 7)  # one of them may run already
        assert codes[-1] == 429
        assert [post(BOB, number) for number in range(2)] == [202, 202]
