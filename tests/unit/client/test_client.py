"""The client against a server process; what it says in process is the measure."""

import os
import signal
import socket
import threading

import httpx
import pytest
from tests.serving import running_server

import mezzotint as mz
from mezzotint.serve.errors import Conflict, Unauthorized

KEY = "alice-has-a-long-key"
SMALL = {"width": 64, "height": 32, "seed": 5}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    keys = folder / "keys"
    keys.write_text(f"{KEY} alice\n")
    fake = {"step_s": 0.01, "failures": {"a plum": "GateRejected"}}
    with running_server(folder, serve={"api_keys": str(keys)}, fake=fake) as running:
        yield running


@pytest.fixture
def client(server):
    with mz.Client(server.url, KEY) as made:
        yield made


def test_generate_answers_what_the_door_answers(server, client):
    made = client.generate("a pear", num_images=2, **SMALL)
    headers = {"authorization": f"Bearer {KEY}", "accept": "image/png"}
    body = {"prompt": "a pear", **SMALL}
    raw = httpx.post(f"{server.url}/v1/generations", json=body, headers=headers)
    assert made.images[0].bytes == raw.content
    assert [image.seed for image in made.images] == [5, 6]
    assert made.images[0].pixels.shape == (32, 64, 3)
    assert made.images[0].recipe_digest == raw.headers["x-recipe-digest"]
    assert made.plan
    again = client.generate(mz.GenerationRequest(prompt="a pear", num_images=2, **SMALL))
    assert [i.bytes for i in again.images] == [i.bytes for i in made.images]


def test_stream_yields_the_events_of_a_run(client):
    events = list(client.stream("a pear", num_inference_steps=4, use_cache=False, **SMALL))
    kinds = [type(event).__name__ for event in events]
    assert kinds == ["Queued", "Started", *["Stepped"] * 4, "ImageFinished", "Finished"]
    assert [e.step for e in events if isinstance(e, mz.Stepped)] == [1, 2, 3, 4]
    assert len({event.id for event in events}) == 1
    assert events[-1].result.images[0].bytes == events[-2].image.bytes


def test_a_job_is_followed_found_again_and_resumed(client):
    job = client.submit("a pear", num_inference_steps=30, **SMALL)
    seen = []
    for event in job.events():
        seen.append(event)
        if isinstance(event, mz.Stepped):
            break
    other = client.job(job.id)
    rest = list(other.events(after=job.last_event_id))
    assert not any(isinstance(event, mz.Queued | mz.Started) for event in rest)
    assert isinstance(rest[-1], mz.Finished)
    assert other.is_done
    assert job.refresh().status == "succeeded"
    own = client.generate("a pear", num_inference_steps=30, **SMALL)
    assert job.result().images[0].bytes == own.images[0].bytes
    assert rest[-1].result.images[0].bytes == own.images[0].bytes
    assert job.id in [one.id for one in client.jobs(status="succeeded")]
    assert job.cancel() is False


def test_a_job_is_cancelled_and_says_so(client):
    job = client.submit("a pear", num_inference_steps=150, **SMALL)
    with pytest.raises(mz.DeadlineExceeded, match="it goes on"):
        job.result(timeout_s=0.1)
    assert job.cancel() is True
    assert isinstance(list(job.events())[-1], mz.Cancelled)
    with pytest.raises(mz.MezzotintError, match="cancelled"):
        job.refresh().result()


def test_an_idempotency_key_finds_its_job(client):
    job = client.submit("a pear", idempotency_key="one", **SMALL)
    assert client.submit("a pear", idempotency_key="one", **SMALL).id == job.id
    with pytest.raises(Conflict):
        client.submit("a plum", idempotency_key="one", **SMALL)


def test_plan_models_and_verify(client):
    assert client.plan("a pear", **SMALL)["plan"]
    assert "plate" in [model["name"] for model in client.models()]
    with pytest.raises(mz.ImageError):
        client.verify(b"no picture")


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"scheduler": "eulr"}, mz.UnknownName, "did you mean 'euler'"),
        ({"model": "none"}, mz.UnknownName, "unknown model 'none'"),
    ],
)
def test_what_only_the_server_can_tell_comes_back_as_its_class(client, fields, error, text):
    with pytest.raises(mz.MezzotintError, match=text) as caught:
        client.generate("a pear", **fields)
    assert type(caught.value) is error
    assert caught.value.field == next(iter(fields))


def test_a_failure_is_the_same_class_however_it_is_waited_for(client):
    with pytest.raises(mz.GateRejected):
        client.generate("a plum", **SMALL)
    assert isinstance(list(client.stream("a plum", **SMALL))[-1].error, mz.GateRejected)
    job = client.submit("a plum", **SMALL)
    assert isinstance(list(job.events())[-1].error, mz.GateRejected)
    with pytest.raises(mz.GateRejected):
        job.refresh().result()


def test_a_wrong_field_is_refused_before_anything_is_sent():
    with mz.Client("http://127.0.0.1:1") as nowhere, pytest.raises(mz.InvalidField):
        nowhere.generate("a pear", width=0)


def test_a_server_out_of_reach_is_not_ready_and_a_silent_one_is_late():
    with mz.Client("http://127.0.0.1:1") as nowhere, pytest.raises(mz.NotReady, match="running"):
        nowhere.models()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with mz.Client(url, timeout_s=0.1) as late, pytest.raises(mz.DeadlineExceeded):
            late.models()


def test_keys_and_jobs_that_are_not_there(server, client):
    with mz.Client(server.url) as nobody, pytest.raises(Unauthorized):
        nobody.models()
    with pytest.raises(mz.UnknownName, match="unknown job 'none'"):
        client.job("none")


def test_events_go_on_over_a_restart_of_the_server(tmp_path):
    """The port is taken again by a second server on the same folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = {"serve": {"port": port}, "fake": {"step_s": 0.02}}
    with running_server(tmp_path, **given) as first, mz.Client(first.url) as client:
        job = client.submit("a pear", num_inference_steps=60, **SMALL)
        seen, started = [], threading.Event()

        def follow():
            for event in job.events():
                seen.append(event)
                started.set()

        following = threading.Thread(target=follow)
        following.start()
        assert started.wait(20)
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        with running_server(tmp_path, **given):
            following.join(40)
            assert isinstance(seen[-1], mz.Finished)
            own = client.generate("a pear", num_inference_steps=60, **SMALL)
            assert seen[-1].result.images[0].bytes == own.images[0].bytes
