"""fal's own package against a running server, and what only bodies can show."""

import base64

import fal_client
import httpx
import pytest
from tests.serving import open_door, running_server

from mezzotint.serve.dialects.hosted.fal import to_request

ARGUMENTS = {
    "prompt": "a pear",
    "image_size": {"width": 64, "height": 32},
    "num_images": 2,
    "seed": 5,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fal")
    keys = folder / "keys"
    keys.write_text("alice-has-a-long-key alice\nbob-has-a-long-key-2 bob\n")
    serve = {"api_keys": str(keys)}
    with running_server(folder, serve=serve, fake={"step_s": 0.02}) as running:
        yield running


@pytest.fixture
def client(server, monkeypatch):
    """The package builds its addresses as ``https://HOST/``; only the scheme is another here."""
    monkeypatch.setattr("fal_client.client.QUEUE_URL_FORMAT", f"{server.url}/fal/")
    monkeypatch.setattr("fal_client.client.RUN_URL_FORMAT", f"{server.url}/fal-run/")
    made = fal_client.SyncClient(key="alice-has-a-long-key")
    yield made
    made._client.close()


def native_pictures(server):
    body = {"prompt": "a pear", "num_images": 2, "width": 64, "height": 32, "seed": 5}
    headers = {"authorization": "Key alice-has-a-long-key"}
    answer = httpx.post(f"{server.url}/v1/generations", json=body, headers=headers).json()
    return [base64.b64decode(image["b64"]) for image in answer["images"]]


def test_subscribe_answers_the_pictures_that_the_native_door_answers(server, client):
    seen = []
    made = client.subscribe(
        "mezzotint/plate", ARGUMENTS, with_logs=True, on_queue_update=seen.append
    )
    headers = {"authorization": "Key alice-has-a-long-key"}
    got = [httpx.get(image["url"], headers=headers).content for image in made["images"]]
    assert got == native_pictures(server)
    assert (made["seed"], made["images"][0]["width"], made["images"][0]["height"]) == (5, 64, 32)
    assert isinstance(seen[-1], fal_client.Completed)
    assert seen[-1].error is None


def test_run_waits_and_sync_mode_puts_the_pictures_inside(server, client):
    made = client.run("mezzotint/plate", {**ARGUMENTS, "sync_mode": True})
    urls = [image["url"] for image in made["images"]]
    assert [base64.b64decode(url.partition(",")[2]) for url in urls] == native_pictures(server)


def test_a_request_is_cancelled_through_its_handle(client):
    handle = client.submit("mezzotint/plate", {**ARGUMENTS, "num_inference_steps": 150, "seed": 9})
    assert isinstance(handle.status(), fal_client.Queued | fal_client.InProgress)
    handle.cancel()
    with pytest.raises(fal_client.FalClientHTTPError, match="cancelled") as caught:
        handle.get()
    assert caught.value.status_code == 409


def test_result_and_status_are_found_again_by_id(client):
    handle = client.submit("mezzotint/plate", ARGUMENTS)
    handle.get()
    assert isinstance(client.status("mezzotint/plate", handle.request_id), fal_client.Completed)
    assert len(client.result("mezzotint/plate", handle.request_id)["images"]) == 2


def test_another_key_sees_nothing(client):
    handle = client.submit("mezzotint/plate", ARGUMENTS)
    url = handle.get()["images"][0]["url"]
    other = {"authorization": "Key bob-has-a-long-key-2"}
    for address in (handle.status_url, handle.response_url, url):
        assert httpx.get(address, headers=other).status_code == 404
    assert httpx.put(handle.cancel_url, headers=other).status_code == 404


def test_a_wrong_argument_is_an_error_of_the_package(client):
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.submit("mezzotint/plate", {"prompt": "a", "num_images": 0})
    assert caught.value.status_code == 422
    assert caught.value.response.json()["detail"][0]["loc"] == ["body", "num_images"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"promt": "a"}, "promt"),
        ({"image_size": "huge"}, "image_size"),
        ({"image_url": "https://example.org/a.png"}, "image_url"),
        ({"sync_mode": "yes"}, "sync_mode"),
        ({"output_format": "exe"}, "output_format"),
        ({"steps": 0}, "steps"),
        ({"image_size": {"width": 0, "height": 64}}, "image_size.width"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, body, field):
    with open_door(tmp_path) as door:
        answer = door.http.post("/fal/plate", json=body)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", field]


def test_no_result_before_the_end_and_no_such_model(tmp_path):
    with open_door(tmp_path) as door:
        assert door.http.post("/fal/none", json={}).status_code == 404
        assert door.http.get("/fal/plate/requests/job-1").status_code == 404
        webhook = door.http.post("/fal/plate?fal_webhook=http://127.0.0.1/", json={})
        assert webhook.json()["detail"][0]["loc"] == ["body", "fal_webhook"]


def test_arguments_are_read_by_fals_names():
    request, is_inside = to_request(
        "plate",
        {"prompt": "a", "image_size": "landscape_4_3", "loras": [{"path": "ink", "scale": 0.5}],
         "output_format": "jpeg", "enable_safety_checker": True},
    )  # fmt: skip
    assert (request.width, request.height, request.loras[0].name) == (1024, 768, "ink")
    assert (request.output.format, is_inside) == ("jpeg", False)
