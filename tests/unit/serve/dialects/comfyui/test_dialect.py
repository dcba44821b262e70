"""The door :mod:`mezzotint.serve.dialects.comfyui`, over HTTP and its web socket."""

import asyncio
import base64
import copy
import io
import json
import time
import uuid
from types import SimpleNamespace

import httpx
import pytest
from PIL import Image
from tests.serving import open_door, running_server
from tests.unit.test_comfyui import TEXT_TO_IMAGE, graph, image_to_image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from mezzotint.serve.dialects.comfyui import events
from mezzotint.serve.dialects.comfyui.lists import SAMPLERS, SCHEDULES
from mezzotint.service.fake import FakeConfig
from mezzotint.vocabulary import match_sampler, match_schedule

ALICE = {"authorization": "Bearer alice-has-a-long-key"}
BOB = {"authorization": "Bearer bob-has-a-long-key-2"}


def png():
    file = io.BytesIO()
    Image.new("RGB", (64, 32), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    keys = folder / "keys"
    keys.write_text("alice-has-a-long-key alice\nbob-has-a-long-key-2 bob\n")
    with running_server(folder, serve={"api_keys": str(keys)}, fake={"step_s": 0.02}) as running:
        yield running


@pytest.fixture
def http(server):
    with httpx.Client(base_url=server.url, headers=ALICE, timeout=20) as client:
        yield client


def done(http, id_):
    """Poll the history as clients do."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        entry = http.get(f"/history/{id_}").json()
        if id_ in entry:
            return entry[id_]
        time.sleep(0.05)
    raise AssertionError("not done in 20 s")


def pictures(http, entry):
    files = [file for output in entry["outputs"].values() for file in output["images"]]
    return [http.get("/view", params=file).content for file in files]


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_graph_is_read_whatever_its_content_type_says(http, kind):
    """ComfyUI's own examples hand bytes to urllib, which calls them a form, or to requests."""
    headers = {"content-type": kind} if kind else {}
    body = json.dumps({"prompt": TEXT_TO_IMAGE}).encode()
    answer = http.post("/prompt", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    done(http, answer.json()["prompt_id"])
    for path in ("/queue", "/history", "/interrupt"):
        answer = http.post(path, content=b'{"delete": []}', headers=headers)
        assert answer.status_code == 200, answer.text
    foreign = {**headers, "origin": "https://evil.example"}
    assert http.post("/prompt", content=body, headers=foreign).status_code == 403


def test_a_graph_makes_the_pictures_of_the_native_door(http):
    answer = http.post("/prompt", json={"prompt": TEXT_TO_IMAGE, "client_id": "me"}).json()
    assert answer["node_errors"] == {}
    entry = done(http, answer["prompt_id"])
    assert entry["status"]["status_str"] == "success"
    assert entry["prompt"][2] == TEXT_TO_IMAGE
    native = http.post(
        "/v1/generations",
        json={
            "prompt": "a pear", "negative_prompt": "bad hands", "width": 64, "height": 32,
            "num_images": 2, "seed": 8566257, "num_inference_steps": 20, "guidance_scale": 8,
            "scheduler": "euler", "sigma_schedule": "linear",
        },
    ).json()  # fmt: skip
    own = [base64.b64decode(image["b64"]) for image in native["images"]]
    assert pictures(http, entry) == own


def test_a_socket_tells_what_a_client_waits_for(server, http):
    sid = str(uuid.uuid4())
    url = server.url.replace("http", "ws", 1) + f"/ws?clientId={sid}"
    with connect(url, additional_headers=ALICE) as socket:
        first = json.loads(socket.recv(5))
        assert first["type"] == "status"
        assert first["data"]["sid"] == sid
        id_ = http.post("/prompt", json={"prompt": graph(n3={"seed": 3}), "client_id": sid}).json()
        seen, files, previews = [], [], 0
        while True:
            message = socket.recv(10)
            if isinstance(message, bytes):
                previews += message[:4] == b"\0\0\0\1"
                continue
            event = json.loads(message)
            seen.append(event["type"])
            if event["type"] == "executed":
                files += event["data"]["output"]["images"]
            if event["type"] == "executing" and event["data"]["node"] is None:
                assert event["data"]["prompt_id"] == id_["prompt_id"]
                break
    order = list(dict.fromkeys(seen))
    assert order.index("execution_start") < order.index("executing") < order.index("progress")
    assert order.index("progress") < order.index("executed") < order.index("execution_success")
    assert len(files) == 2
    assert http.get("/view", params=files[0]).headers["content-type"] == "image/png"


def test_a_socket_needs_a_key_and_another_keys_socket_hears_nothing(server, http):
    url = server.url.replace("http", "ws", 1) + "/ws?clientId=shared"
    with pytest.raises(InvalidStatus) as caught, connect(url):
        pass
    assert caught.value.response.status_code == 401
    with (
        pytest.raises(InvalidStatus),
        connect(url.replace("/ws", "/other"), additional_headers=ALICE),
    ):
        pass
    with connect(url, additional_headers=BOB) as socket:
        assert json.loads(socket.recv(5))["type"] == "status"
        body = {"prompt": graph(n3={"seed": 4}), "client_id": "shared"}
        done(http, http.post("/prompt", json=body).json()["prompt_id"])
        with pytest.raises(TimeoutError):
            socket.recv(0.3)


def test_a_socket_outlives_the_seconds_of_a_head(server):
    url = server.url.replace("http", "ws", 1) + "/ws?clientId=patient"
    with connect(url, additional_headers=ALICE) as socket:
        socket.recv(5)
        with pytest.raises(TimeoutError):
            socket.recv(2.5)
        assert socket.ping().wait(5)


def test_another_key_sees_neither_history_nor_picture(server, http):
    id_ = http.post("/prompt", json={"prompt": graph(n3={"seed": 11})}).json()["prompt_id"]
    file = done(http, id_)["outputs"]["9"]["images"][0]
    with httpx.Client(base_url=server.url, headers=BOB) as other:
        assert other.get(f"/history/{id_}").json() == {}
        assert other.get("/history").json() == {}
        assert other.get("/view", params=file).status_code == 404
        assert other.get("/queue").json() == {"queue_running": [], "queue_pending": []}


def test_interrupt_ends_what_runs_and_the_queue_is_cleared(http):
    slow = graph(n3={"steps": 150, "seed": 12})
    ids = [
        http.post("/prompt", json={"prompt": copy.deepcopy(slow) | {"9": slow["9"]}}).json()[
            "prompt_id"
        ]
        for _ in range(2)
    ]
    until = time.monotonic() + 10
    while not http.get("/queue").json()["queue_running"] and time.monotonic() < until:
        time.sleep(0.02)
    assert http.get("/prompt").json()["exec_info"]["queue_remaining"] >= 1
    assert http.post("/queue", json={"clear": True}).status_code == 200
    assert http.post("/interrupt", json={}).status_code == 200
    for id_ in ids:
        entry = done(http, id_)
        assert entry["status"]["status_str"] == "error"
        assert entry["status"]["messages"][-1][0] == "execution_interrupted"


def test_image_to_image_begins_from_an_uploaded_picture(http):
    files = {"image": ("start.png", png(), "image/png")}
    kept = http.post("/upload/image", files=files, data={"overwrite": "true"}).json()
    assert kept == {"name": "start.png", "subfolder": "", "type": "input"}
    assert http.get("/view", params={"filename": "start.png", "type": "input"}).content == png()
    id_ = http.post("/prompt", json={"prompt": image_to_image(0.5)}).json()["prompt_id"]
    made = pictures(http, done(http, id_))
    native = http.post(
        "/v1/generations",
        json={
            "prompt": "a pear", "negative_prompt": "bad hands", "seed": 8566257, "strength": 0.5,
            "num_inference_steps": 40, "guidance_scale": 8, "scheduler": "euler",
            "sigma_schedule": "linear", "image": base64.b64encode(png()).decode(),
        },
    ).json()  # fmt: skip
    assert made == [base64.b64decode(image["b64"]) for image in native["images"]]
    other = http.post("/upload/image", files={"image": ("start.png", b"other", "image/png")}).json()
    assert other["name"] == "start (1).png"


@pytest.mark.parametrize(
    ("nodes", "kind", "node", "message"),
    [
        (graph(n4={"class_type": "FluxGuidance", "inputs": {}}), "missing_node_type", "4",
         "Node 'FluxGuidance' not found. The custom node may not be installed."),
        (graph(n4={"ckpt_name": "none.safetensors"}), "prompt_outputs_failed_validation", "4",
         "Value not in list"),
        (graph(n3={"sampler_name": "magic"}), "prompt_outputs_failed_validation", "3",
         "Value not in list"),
        (graph(n3={"cfg": -5.0}), "prompt_outputs_failed_validation", "3",
         "Value -5.0 smaller than min of 0.0"),
        (graph(n5={"width": 99999}), "prompt_outputs_failed_validation", "5",
         "Value 99999 bigger than max of 16384"),
        (image_to_image(0.4), "prompt_outputs_failed_validation", "10",
         "Custom validation failed for node"),
        (graph(n3={"seed": None}), "prompt_outputs_failed_validation", "3",
         "Required input is missing"),
        (graph(n3={"steps": "many"}), "prompt_outputs_failed_validation", "3",
         "Failed to convert an input value to a INT value"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_node_as_comfyui_does(tmp_path, nodes, kind, node, message):
    with open_door(tmp_path) as door:
        answer = door.http.post("/prompt", json={"prompt": nodes})
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == kind
        fault = answer.json()["node_errors"][node]
        assert fault["class_type"] == nodes[node]["class_type"]
        assert fault["dependent_outputs"] == ["9"]
        assert fault["errors"][0]["message"] == message


def test_other_wrong_bodies_are_refused(tmp_path):
    with open_door(tmp_path) as door:
        missing = door.http.post("/prompt", json={})
        assert (missing.status_code, missing.json()["error"]["type"]) == (400, "no_prompt")
        empty = door.http.post("/prompt", json={"prompt": {"4": TEXT_TO_IMAGE["4"]}})
        assert empty.json()["error"]["type"] == "prompt_no_outputs"
        assert (
            door.http.post("/prompt", json={"prompt": {}}).json()["error"]["type"]
            == "invalid_prompt"
        )
        wrong = door.http.post("/prompt", json={"prompt": TEXT_TO_IMAGE, "client_id": 5})
        assert wrong.status_code == 400
        assert door.http.get("/view?filename=../../etc/passwd").status_code == 404
        assert door.http.get("/view?filename=start.png&type=input").status_code == 404
        assert door.http.post("/upload/image", data={"image": "x"}).status_code == 400
        assert door.http.post("/queue", json={"delete": "x"}).status_code == 400


def test_a_failed_graph_says_why(tmp_path):
    with open_door(tmp_path, fake=FakeConfig(failures={"boom": "WorkFailed"})) as door:
        answer = door.http.post("/prompt", json={"prompt": graph(n6={"text": "boom"})}).json()
        entry = done(door.http, answer["prompt_id"])
        kind, about = entry["status"]["messages"][-1]
        assert (kind, about["node_id"], about["node_type"]) == ("execution_error", "3", "KSampler")
        assert about["exception_message"]


def test_the_lists_offer_what_is_taken(tmp_path):
    with open_door(tmp_path) as door:
        info = door.http.get("/object_info").json()
        loader = door.http.get("/object_info/CheckpointLoaderSimple").json()
        assert loader == {"CheckpointLoaderSimple": info["CheckpointLoaderSimple"]}
        names = info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
        assert "plate" in names
        assert info["SaveImage"]["output_node"]
        assert door.http.get("/system_stats").json()["devices"][0]["type"] == "cpu"
    assert all(match_sampler(name).exact for name in SAMPLERS)
    assert all(match_schedule(name)[1] for name in SCHEDULES)


def test_every_route_stands_below_api_too(server, http):
    id_ = http.post("/api/prompt", json={"prompt": graph(n3={"seed": 21})}).json()["prompt_id"]
    entry = done(http, id_)
    assert http.get(f"/api/history/{id_}").json()[id_] == entry
    file = entry["outputs"]["9"]["images"][0]
    assert http.get("/api/view", params=file).content == http.get("/view", params=file).content
    for path in ("queue", "object_info", "system_stats", "features", "embeddings", "models"):
        answer = http.get(f"/api/{path}")
        assert answer.status_code == 200, path
        assert answer.json() == http.get(f"/{path}").json(), path
    assert "plate" in http.get("/api/models/checkpoints").json()
    assert http.get("/api/models/loras").json() == ["ink"]
    assert http.get("/api/models/clocks").status_code == 404
    assert http.post("/api/free", json={"unload_models": True}).status_code == 200
    assert http.get("/api/nothing").status_code == 404
    url = server.url.replace("http", "ws", 1) + "/api/ws?clientId=prefixed"
    with connect(url, additional_headers=ALICE) as socket:
        assert json.loads(socket.recv(5))["type"] == "status"
        socket.send(json.dumps({"type": "feature_flags", "data": {}}))
        assert json.loads(socket.recv(5))["data"]["max_upload_size"] > 0


def test_history_is_paged_and_forgotten(server):
    with httpx.Client(base_url=server.url, headers=BOB, timeout=20) as http:
        ids = []
        for seed in (31, 32, 33):
            answer = http.post("/prompt", json={"prompt": graph(n3={"seed": seed, "steps": 1})})
            ids.append(answer.json()["prompt_id"])
            done(http, ids[-1])
        kept = list(http.get("/history").json())
        assert kept[-3:] == ids
        assert list(http.get("/history?max_items=2").json()) == ids[1:]
        assert list(http.get("/history?max_items=1&offset=0").json()) == kept[:1]
        assert http.get("/history?max_items=x").status_code == 400
        assert http.post("/history", json={"delete": [ids[0]]}).status_code == 200
        assert http.get(f"/history/{ids[0]}").json() == {}
        assert http.post("/history", json={"clear": True}).status_code == 200
        assert http.get("/history").json() == {}


def test_a_picture_is_shown_in_the_format_that_a_preview_asks_for(http):
    id_ = http.post("/prompt", json={"prompt": graph(n3={"seed": 41})}).json()["prompt_id"]
    file = done(http, id_)["outputs"]["9"]["images"][0]
    shown = http.get("/view", params={**file, "preview": "webp;80"})
    assert shown.headers["content-type"] == "image/webp"
    assert (
        http.get("/view", params={**file, "channel": "rgb"}).headers["content-type"] == "image/png"
    )


def test_a_mask_that_was_drawn_on_a_picture_is_where_it_is_repainted(http):
    drawn = Image.new("RGBA", (64, 32), (200, 30, 30, 255))
    drawn.paste((0, 0, 0, 0), (0, 0, 32, 32))
    file = io.BytesIO()
    drawn.save(file, "PNG")
    files = {"image": ("base.png", png(), "image/png")}
    http.post("/upload/image", files=files, data={"subfolder": "own"})
    reference = json.dumps({"filename": "base.png", "subfolder": "own", "type": "input"})
    files = {"image": ("marked.png", file.getvalue(), "image/png")}
    kept = http.post("/upload/mask", files=files, data={"original_ref": reference}).json()
    assert kept == {"name": "marked.png", "subfolder": "", "type": "input"}
    nodes = image_to_image(1)
    nodes["10"]["inputs"]["image"] = "marked.png"
    nodes["12"] = {
        "class_type": "SetLatentNoiseMask",
        "inputs": {"samples": ["11", 0], "mask": ["10", 1]},
    }
    nodes["3"]["inputs"]["latent_image"] = ["12", 0]
    id_ = http.post("/prompt", json={"prompt": nodes}).json()["prompt_id"]
    made = pictures(http, done(http, id_))
    native = http.post(
        "/v1/generations",
        json={
            "prompt": "a pear", "negative_prompt": "bad hands", "seed": 8566257, "strength": 1.0,
            "num_inference_steps": 20, "guidance_scale": 8, "scheduler": "euler",
            "sigma_schedule": "linear", "image": base64.b64encode(png()).decode(),
            "mask": base64.b64encode(file.getvalue()).decode(),
        },
    ).json()  # fmt: skip
    assert made == [base64.b64decode(image["b64"]) for image in native["images"]]
    wrong = http.post("/upload/mask", files=files, data={"original_ref": "{}"})
    assert wrong.status_code == 400
    nodes["10"]["inputs"]["image"] = "own/base.png"
    refused = http.post("/prompt", json={"prompt": nodes}).json()
    assert "no transparent part" in refused["node_errors"]["10"]["errors"][0]["details"]


def test_a_picture_that_was_made_is_loaded_by_its_name(http):
    id_ = http.post("/prompt", json={"prompt": graph(n3={"seed": 51})}).json()["prompt_id"]
    file = done(http, id_)["outputs"]["9"]["images"][0]
    nodes = image_to_image(0.5)
    nodes["10"]["inputs"]["image"] = f"{file['filename']} [output]"
    id_ = http.post("/prompt", json={"prompt": nodes}).json()["prompt_id"]
    assert done(http, id_)["status"]["status_str"] == "success"


def test_a_graph_that_begins_while_the_queue_is_counted_counts_once(monkeypatch):
    class Queue:
        async def page(self, *, client, status, limit):
            return [SimpleNamespace(id="one", note={"door": "comfyui"})]

    monkeypatch.setattr(events, "queue_of", lambda front: Queue())
    assert asyncio.run(events.remaining(None, "somebody")) == 1
