"""Replicate's own package against a running server, and what only bodies can show."""

import base64
import hashlib
import http.server
import json
import threading
import time

import httpx
import pytest
import replicate
from replicate.exceptions import ModelError, ReplicateError
from replicate.webhook import Webhooks, WebhookSigningSecret
from tests.serving import open_door, running_server

from mezzotint.serve.dialects.hosted.replicate import to_request
from mezzotint.service.fake import FakeConfig

INPUT = {"prompt": "a pear", "num_outputs": 2, "width": 64, "height": 32, "seed": 5}
PICTURE = "data:image/png;base64," + base64.b64encode(b"\x89PNG not really").decode()


class Receiver:
    """An address that keeps what it is sent."""

    def __init__(self, status=200):
        self.messages = []
        messages = self.messages

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                messages.append((dict(self.headers), body.decode()))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def receiver():
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory, receiver):
    folder = tmp_path_factory.mktemp("replicate")
    keys = folder / "keys"
    keys.write_text("alice-has-a-long-key alice\nbob-has-a-long-key-2 bob\n")
    serve = {"api_keys": str(keys), "webhook_hosts": [f"127.0.0.1:{receiver.port}"]}
    with running_server(folder, serve=serve, fake={"step_s": 0.02}) as running:
        yield running


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.05")
    made = replicate.Client(api_token="alice-has-a-long-key", base_url=server.url)
    yield made
    made._client.close()


def test_run_returns_the_pictures_that_the_native_door_returns(server, client):
    made = client.run("mezzotint/plate", input=INPUT)  # addresses: files come over https only
    headers = {"authorization": "Bearer alice-has-a-long-key"}
    body = {"prompt": "a pear", "num_images": 2, "width": 64, "height": 32, "seed": 5}
    native = httpx.post(f"{server.url}/v1/generations", json=body, headers=headers).json()
    own = [base64.b64decode(image["b64"]) for image in native["images"]]
    assert [httpx.get(url, headers=headers).content for url in made] == own


def test_a_prediction_has_its_input_output_and_times(client):
    made = client.predictions.create(version="plate", input=INPUT)
    made.wait()
    assert (made.status, made.model, made.input) == ("succeeded", "mezzotint/plate", INPUT)
    assert [url.rpartition("/")[2] for url in made.output] == ["0.png", "1.png"]
    assert made.progress.percentage == 1.0
    assert made.metrics["image_count"] == 2
    assert made.created_at < made.completed_at
    assert client.predictions.get(made.id).output == made.output
    assert made.id in [found.id for found in client.predictions.list().results]


def test_a_short_wait_answers_a_prediction_that_has_only_begun(client):
    made = client.predictions.create(
        version="plate", input={**INPUT, "num_inference_steps": 100, "seed": 77}, wait=1
    )
    assert (made.status, made.output) == ("starting", None)
    made.cancel()
    made.wait()
    assert made.status == "canceled"


def test_a_version_is_named_by_digest_or_path(client):
    version = client.models.get("mezzotint/plate").latest_version
    made = client.run(f"mezzotint/plate:{version.id}", input=INPUT, use_file_output=False)
    assert len(list(made)) == 2
    with pytest.raises(ReplicateError, match="nothing-like-it") as caught:
        client.run("mezzotint/nothing-like-it", input=INPUT)
    assert caught.value.status == 404


def test_another_key_sees_neither_prediction_nor_picture(server, client):
    made = client.predictions.create(version="plate", input=INPUT, wait=True)
    other = {"authorization": "Bearer bob-has-a-long-key-2"}
    for url in (made.urls["get"], made.output[0]):
        assert httpx.get(url, headers=other).status_code == 404
    assert httpx.post(made.urls["cancel"], headers=other).status_code == 404
    assert httpx.get(made.output[0]).status_code == 401
    assert httpx.get(f"{server.url}/v1/predictions", headers=other).json()["results"] == []


def test_a_webhook_is_told_and_its_signature_holds(client, receiver):
    receiver.messages.clear()
    made = client.predictions.create(
        version="plate",
        input={**INPUT, "seed": 8},
        webhook=f"http://127.0.0.1:{receiver.port}/told?by=us",
        webhook_events_filter=["start", "completed"],
        wait=True,
    )
    until = time.monotonic() + 10
    while len(receiver.messages) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    headers, body = receiver.messages[-1]
    assert json.loads(body)["id"] == made.id
    assert json.loads(body)["status"] == "succeeded"
    assert len(receiver.messages) == 2
    secret = client.webhooks.default.secret()
    Webhooks.validate(headers=headers, body=body, secret=secret, tolerance=60)
    with pytest.raises(Exception, match="signature"):
        Webhooks.validate(headers=headers, body=body + " ", secret=secret)
    wrong = WebhookSigningSecret(key="whsec_" + base64.b64encode(b"other").decode())
    with pytest.raises(Exception, match="signature"):
        Webhooks.validate(headers=headers, body=body, secret=wrong)


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "http://127.0.0.1:1/", "file:///etc/passwd", "http://u@h/",
     "gopher://127.0.0.1/", "http://127.0.0.1:99999/", "http://[::1", "http://a\r\nb/", 5],
)  # fmt: skip
def test_a_webhook_elsewhere_is_refused_before_any_work(server, url):
    answer = httpx.post(
        f"{server.url}/v1/predictions",
        json={"version": "plate", "input": INPUT, "webhook": url},
        headers={"authorization": "Bearer alice-has-a-long-key"},
    )
    assert answer.status_code == 422
    assert answer.json()["invalid_fields"][0]["field"] == "webhook"


def test_a_failed_prediction_says_why(tmp_path):
    with open_door(tmp_path, fake=FakeConfig(failures={"boom": "WorkFailed"})) as door:
        body = {"version": "plate", "input": {"prompt": "boom"}}
        answer = door.http.post("/v1/predictions", json=body, headers={"prefer": "wait=5"})
        assert answer.status_code == 201
        assert answer.json()["status"] == "failed"
        assert answer.json()["error"]
        made = replicate.prediction.Prediction(**answer.json())
        assert str(ModelError(made)) == answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": {}}, "version"),
        ({"version": "plate"}, "input"),
        ({"version": "plate", "input": {"promt": "a"}}, "promt"),
        ({"version": "plate", "input": {"num_outputs": 0}}, "num_outputs"),
        ({"version": "plate", "input": {"num_images": 0}}, "num_images"),
        ({"version": "plate", "input": {"output_format": "exe"}}, "output_format"),
        ({"version": "plate", "input": {"image": "https://example.org/a.png"}}, "image"),
        ({"version": "plate", "input": {"scheduler": "none-such"}}, "scheduler"),
        (
            {"version": "plate", "input": {}, "webhook_events_filter": ["all"]},
            "webhook_events_filter",
        ),
        ({"version": "plate", "input": {}, "verison": 1}, "verison"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, body, field):
    with open_door(tmp_path) as door:
        answer = door.http.post("/v1/predictions", json=body)
        assert answer.status_code == 422
        assert answer.json()["invalid_fields"][0]["field"] == field


def test_input_is_read_by_the_usual_names():
    request, lost = to_request(
        "plate",
        {"prompt": "a", "num_outputs": 3, "scheduler": "K_EULER", "prompt_strength": 0.5,
         "image": PICTURE, "output_format": "jpg", "output_quality": 80, "go_fast": True},
    )  # fmt: skip
    assert (request.num_images, request.scheduler, request.strength) == (3, "euler", 0.5)
    assert (request.output.format, request.output.quality) == ("jpeg", 80)
    assert (
        hashlib.sha256(request.image.data).digest()
        == hashlib.sha256(b"\x89PNG not really").digest()
    )
    assert lost == ["go_fast has no effect here"]
    assert to_request("plate", {"scheduler": "DPMSolverMultistep"})[0].scheduler is not None
