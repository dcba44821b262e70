"""Requests as Open WebUI and LibreChat send them, at the doors of mezzotint.serve.dialects.

Written after the programs' own request code; the answer is read as they read it.
"""

import base64
import json

import httpx
import pytest
from tests.serving import running_server
from tests.unit.test_comfyui import TEXT_TO_IMAGE, image_to_image
from websockets.sync.client import connect

PNG = b"\x89PNG\r\n\x1a\n"
KEY = "alice-has-a-long-key"


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    keys = folder / "keys"
    keys.write_text(f"{KEY} alice\n")
    with running_server(folder, serve={"api_keys": str(keys)}) as running:
        url = f"{running.management}/models?url=plate&model_name=gpt-image-1"
        headers = {"authorization": f"Bearer {KEY}"}
        assert httpx.post(url, headers=headers).status_code == 200
        with httpx.Client(base_url=running.url, timeout=30) as client:
            yield client


@pytest.fixture
def bearer():
    return {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def basic():
    """Open WebUI sends what is set as user and password; the password is the key here."""
    return {"authorization": "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()}


def picture(door, bearer):
    body = {"prompt": "a pear", "width": 64, "height": 64, "seed": 5}
    headers = {**bearer, "accept": "image/png"}
    return door.post("/v1/generations", json=body, headers=headers).content


@pytest.mark.parametrize("model", ["plate", "gpt-image-1"])
@pytest.mark.parametrize("more", [{}, {"response_format": "b64_json"}])
def test_open_webui_with_the_engine_openai(door, bearer, model, more):
    body = {"model": model, "prompt": "a pear", "n": 2, "size": "64x64", **more}
    made = door.post("/v1/images/generations", json=body, headers=bearer).json()
    files = [base64.b64decode(image["b64_json"]) for image in made["data"]]
    assert [file[:8] for file in files] == [PNG, PNG]
    assert not any(image.get("url") for image in made["data"])


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_open_webui_edits_with_the_engine_openai(door, bearer, name):
    fields = {"model": "plate", "prompt": "a plum", "n": "1", "size": "64x64"}
    files = [(name, ("a.png", picture(door, bearer), "image/png"))]
    fields["response_format"] = "b64_json"
    made = door.post("/v1/images/edits", data=fields, files=files, headers=bearer)
    assert base64.b64decode(made.json()["data"][0]["b64_json"])[:8] == PNG


def test_open_webui_with_the_engine_automatic1111(door, basic):
    options = door.get("/sdapi/v1/options", headers=basic).json()
    models = door.get("/sdapi/v1/sd-models", headers=basic).json()
    assert any(model["model_name"] == "plate" for model in models)
    title = next(model["title"] for model in models if model["model_name"] == "plate")
    options["sd_model_checkpoint"] = title
    assert door.post("/sdapi/v1/options", json=options, headers=basic).status_code == 200
    body = {"prompt": "a pear", "batch_size": 1, "width": 64, "height": 64, "steps": 4}
    body["negative_prompt"] = "fog"
    made = door.post("/sdapi/v1/txt2img", json=body, headers=basic).json()
    assert base64.b64decode(made["images"][0])[:8] == PNG
    assert json.loads(made["info"])["negative_prompt"] == "fog"


def test_open_webui_with_the_engine_comfyui(door, bearer):
    nodes = door.get("/object_info", headers=bearer).json()
    checkpoint = nodes["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert any(name.startswith("plate") for name in checkpoint)
    files = comfyui_pictures(door, bearer, TEXT_TO_IMAGE)
    assert [file[:8] for file in files] == [PNG, PNG]


def test_open_webui_edits_with_the_engine_comfyui(door, bearer):
    """It uploads below ``/api``, unlike all else."""
    files = {"image": ("start.png", picture(door, bearer), "image/png")}
    sent = door.post("/api/upload/image", files=files, data={"type": "input"}, headers=bearer)
    graph = image_to_image(0.5)
    graph["10"]["inputs"]["image"] = sent.json()["name"]
    assert comfyui_pictures(door, bearer, graph)[0][:8] == PNG


def comfyui_pictures(door, bearer, graph):
    """Run a graph and follow the web socket to its end, as Open WebUI does."""
    url = str(door.base_url).replace("http", "ws", 1).rstrip("/") + "/ws?clientId=me"
    with connect(url, additional_headers=bearer) as socket:
        sent = door.post(
            "/prompt", json={"prompt": graph, "client_id": "me"}, headers=bearer
        ).json()
        while True:
            message = socket.recv(20)
            said = json.loads(message) if isinstance(message, str) else {}
            if said.get("type") == "executing" and said["data"]["node"] is None:
                assert said["data"]["prompt_id"] == sent["prompt_id"]
                break
    history = door.get(f"/history/{sent['prompt_id']}", headers=bearer).json()
    outputs = history[sent["prompt_id"]]["outputs"]
    files = [file for output in outputs.values() for file in output["images"]]
    return [door.get("/view", params=file, headers=bearer).content for file in files]


def test_librechat_with_its_openai_tools(door, bearer):
    body = {
        "model": "gpt-image-1", "prompt": "a pear", "n": 1, "background": "auto",
        "output_format": "png", "quality": "auto", "size": "auto",
    }  # fmt: skip
    made = door.post("/v1/images/generations", json=body, headers=bearer).json()
    first = base64.b64decode(made["data"][0]["b64_json"])
    assert first[:8] == PNG
    fields = {"model": "gpt-image-1", "prompt": "a plum", "quality": "auto", "size": "auto"}
    files = [("image[]", ("a.png", first, "image/png"))]
    edited = door.post("/v1/images/edits", data=fields, files=files, headers=bearer)
    assert base64.b64decode(edited.json()["data"][0]["b64_json"])[:8] == PNG


def test_librechat_with_stable_diffusion_needs_a_server_without_keys(door):
    """Its tool sends no key, and always 1024 x 1024."""
    body = {
        "prompt": "a pear", "negative_prompt": "fog", "cfg_scale": 4.5, "steps": 22,
        "width": 1024, "height": 1024,
    }  # fmt: skip
    assert door.post("/sdapi/v1/txt2img", json=body).status_code == 401
