"""The golden thread: one request through every door gives the same pixels.

Nothing is kept: every door has its picture drawn anew. The command line and Python run
in processes of their own, with homes of their own.
"""

import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import mcp
import numpy as np
import pytest
from PIL import Image
from tests.serving import BASE, Door, open_door
from tests.unit.test_comfyui import graph

import mezzotint as mz
from mezzotint.cli.agents.stdio import _Local
from mezzotint.comfyui import read_graph
from mezzotint.engine.config import EngineConfig
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.request import GenerationRequest
from mezzotint.serve.mcp.tools import create_server
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.local import LocalService

COMMON = {"num_inference_steps": 2, "guidance_scale": 3.0, "width": 64, "height": 64}
PROMPT, SEED = "a red apple", 11


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("roads")
    engine = EngineConfig(buckets=(2, 4), cache_memory_bytes=0, cache_disk_bytes=0)
    models = ModelsConfig(home=str(folder), placement=PlacementConfig(device="cpu"))
    config = ServiceConfig(models=models, engine=engine)
    service = LocalService(config)
    with open_door(folder / "jobs", service=service) as opened:
        yield opened
        opened.do(service.close)


@pytest.fixture(scope="module")
def expected_file(door: Door) -> bytes:
    request = GenerationRequest(prompt=PROMPT, seed=SEED, scheduler="euler", **COMMON)
    result = door.do(lambda: door.service.generate(request, request_id="direct", use_cache=False))
    return result.images[0].data


@pytest.fixture(scope="module")
def expected(expected_file: bytes) -> np.ndarray:
    return pixels(expected_file)


def native(door: Door) -> bytes:
    body = {"prompt": PROMPT, "seed": SEED, "scheduler": "euler", **COMMON}
    return door.http.post(
        "/v1/generations", json=body, headers={"accept": "image/png", "cache-control": "no-cache"}
    ).content


def job(door: Door) -> bytes:
    body = {"prompt": PROMPT, "seed": SEED, "scheduler": "euler", **COMMON}
    id_ = door.http.post("/v1/jobs", json=body).json()["id"]
    door.http.get(f"/v1/jobs/{id_}/events")
    return door.http.get(f"/v1/jobs/{id_}/images/0").content


def openai(door: Door) -> bytes:
    body = {
        "model": "plate", "prompt": PROMPT, "size": "64x64", "seed": SEED, "scheduler": "euler",
        "num_inference_steps": 2, "guidance_scale": 3.0,
    }  # fmt: skip
    answer = door.http.post("/v1/images/generations", json=body)
    return base64.b64decode(answer.json()["data"][0]["b64_json"])


def a1111(door: Door) -> bytes:
    body = {
        "prompt": PROMPT, "seed": SEED, "steps": 2, "cfg_scale": 3, "width": 64, "height": 64,
        "sampler_name": "Euler",
    }  # fmt: skip
    answer = door.http.post("/sdapi/v1/txt2img", json=body)
    return base64.b64decode(answer.json()["images"][0])


def huggingface(door: Door) -> bytes:
    parameters = {"seed": SEED, "scheduler": "euler", **COMMON}
    return door.http.post("/hf/plate", json={"inputs": PROMPT, "parameters": parameters}).content


def torchserve(door: Door) -> bytes:
    body = {"data": PROMPT, "seed": SEED, "scheduler": "euler", **COMMON}
    return door.http.post("/predictions/plate", json=body).content


def kserve_v1(door: Door) -> bytes:
    instance = {"prompt": PROMPT, "seed": SEED, "scheduler": "euler", **COMMON}
    answer = door.http.post("/v1/models/plate:predict", json={"instances": [instance, instance]})
    return base64.b64decode(answer.json()["predictions"][1]["b64"])


def kserve_v2(door: Door) -> bytes:
    body = {
        "inputs": [
            {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [PROMPT]},
            {"name": "seed", "datatype": "UINT64", "shape": [1], "data": [SEED]},
        ],
        "parameters": {"scheduler": "euler", **COMMON},
    }
    answer = door.http.post("/v2/models/plate/infer", json=body)
    return base64.b64decode(answer.json()["outputs"][0]["data"][0])


def replicate(door: Door) -> bytes:
    body = {"input": {"prompt": PROMPT, "seed": SEED, "scheduler": "K_EULER", **COMMON}}
    made = door.http.post(
        "/v1/models/anyone/plate/predictions", json=body, headers={"prefer": "wait=60"}
    ).json()
    return door.http.get(made["output"][0]).content


def fal(door: Door) -> bytes:
    body = {
        "prompt": PROMPT, "seed": SEED, "scheduler": "euler", "num_inference_steps": 2,
        "guidance_scale": 3.0, "image_size": {"width": 64, "height": 64}, "sync_mode": True,
    }  # fmt: skip
    made = door.http.post("/fal-run/anyone/plate", json=body).json()
    return base64.b64decode(made["images"][0]["url"].partition(",")[2])


def model_context_protocol(door: Door) -> bytes:
    asked = {"prompt": PROMPT, "seed": SEED, "scheduler": "euler", **COMMON}

    async def talk() -> bytes:
        async with mcp.Client(create_server(_Local(door.service))) as client:
            made = await client.call_tool("generate", asked)
        return base64.b64decode(made.content[0].data)

    return door.do(talk)


def model_context_protocol_http(door: Door) -> bytes:
    asked = {"prompt": PROMPT, "seed": SEED, "scheduler": "euler", **COMMON}
    call = {"name": "generate", "arguments": asked}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    accepts = {"accept": "application/json, text/event-stream"}
    answer = door.http.post("/mcp", json=body, headers=accepts).text
    said = json.loads(answer.partition("data: ")[2])
    return base64.b64decode(said["result"]["content"][0]["data"])


class Through(httpx2.BaseTransport):
    """Leads the client's exchange to a door in this process."""

    def __init__(self, door: Door) -> None:
        self.door = door

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        answer = self.door.http.request(
            request.method,
            request.url.raw_path.decode(),
            content=request.read(),
            headers=dict(request.headers),
        )
        return httpx2.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


def client(door: Door) -> bytes:
    with mz.Client(BASE, transport=Through(door)) as made:
        fields = {"seed": SEED, "scheduler": "euler", **COMMON}
        return made.generate(PROMPT, **fields).images[0].bytes


def client_job(door: Door) -> bytes:
    with mz.Client(BASE, transport=Through(door)) as made:
        fields = {"seed": SEED, "scheduler": "euler", **COMMON}
        return made.submit(PROMPT, **fields).result().images[0].bytes


def awaited_client(door: Door) -> bytes:
    async def talk() -> bytes:
        through = httpx2.ASGITransport(app=door.http.app)
        async with mz.AsyncClient(BASE, transport=through) as made:
            fields = {"seed": SEED, "scheduler": "euler", **COMMON}
            return (await made.generate(PROMPT, **fields)).images[0].bytes

    return door.do(talk)


DOORS = (
    native, job, openai, a1111, huggingface, torchserve, kserve_v1, kserve_v2, replicate, fal,
    model_context_protocol, model_context_protocol_http, client, client_job, awaited_client,
)  # fmt: skip


@pytest.mark.parametrize("ask", DOORS, ids=lambda f: f.__name__)
def test_every_door_gives_the_pixels_of_the_engine(door, expected, ask):
    assert np.array_equal(pixels(ask(door)), expected)


@pytest.mark.parametrize("ask", DOORS, ids=lambda f: f.__name__)
def test_every_door_gives_the_file_of_the_engine_to_the_byte(door, expected_file, ask):
    assert ask(door) == expected_file


def test_a_graph_of_comfyui_gives_the_file_of_the_request_it_becomes(door):
    """Its schedule always has a name, so it is held against the request that names it."""
    nodes = graph(
        n3={"seed": SEED, "steps": 2, "cfg": 3, "sampler_name": "euler", "scheduler": "normal"},
        n5={"batch_size": 1, "width": 64, "height": 64},
        n6={"text": PROMPT},
        n7={"text": ""},
    )
    id_ = door.http.post("/prompt", json={"prompt": nodes}).json()["prompt_id"]
    door.http.get(f"/v1/jobs/{id_}/events")  # until its end
    entry = door.http.get(f"/history/{id_}").json()[id_]
    file = door.http.get("/view", params=entry["outputs"]["9"]["images"][0]).content
    fields = read_graph(nodes).fields
    body = {"prompt": PROMPT, "seed": SEED, "scheduler": "euler", **COMMON}
    body |= {"sigma_schedule": fields["sigma_schedule"]}
    same = door.http.post("/v1/generations", json=body, headers={"accept": "image/png"})
    assert file == same.content


def elsewhere(folder: Path, *command: str) -> bytes:
    """Run a program with a home of its own; return what it writes to its output."""
    environment = {**os.environ, "MEZZOTINT_HOME": str(folder / "home")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.slow
def test_the_command_line_gives_the_file_of_the_engine(tmp_path, expected_file):
    program = str(Path(sys.executable).with_name("mezzotint"))
    flags = ["--seed", "11", "--steps", "2", "--guidance-scale", "3", "--scheduler", "euler"]
    flags += ["--width", "64", "--height", "64", "--quiet", "--output", "-"]
    made = elsewhere(tmp_path, program, "generate", PROMPT, *flags)
    assert made == expected_file


@pytest.mark.slow
def test_python_gives_the_file_of_the_engine(tmp_path, expected_file):
    fields = {"seed": SEED, "scheduler": "euler", **COMMON}
    code = (
        "import sys, mezzotint as mz\n"
        f"made = mz.generate({PROMPT!r}, **{fields!r})\n"
        "sys.stdout.buffer.write(made.images[0].data)"
    )
    made = elsewhere(tmp_path, sys.executable, "-c", code)
    assert made == expected_file


def test_a_picture_from_any_door_is_restored_by_inspect_and_made_again(door, expected):
    picture = a1111(door)
    found = door.http.post(
        "/v1/inspect", content=picture, headers={"content-type": "image/png"}
    ).json()
    assert "Seed: 11" in found["parameters"]
    again = door.http.post("/v1/generations", json=found["request"]).json()
    assert np.array_equal(pixels(base64.b64decode(again["images"][0]["b64"])), expected)


def test_gan_answers_a_grid_of_its_own_pictures(door):
    grid = door.http.post("/predictions/plate-gan", json={"number_of_images": 2, "seed": 3})
    assert grid.headers["content-type"] == "image/jpeg"
    one = door.http.post(
        "/v1/generations", json={"model": "plate-gan", "seed": 4}, headers={"accept": "image/png"}
    )
    single = pixels(one.content).astype(int)
    side = single.shape[0]
    sheet = pixels(grid.content).astype(int)
    assert sheet.shape[:2] == (side + 4, 2 * side + 6)
    second = sheet[2 : 2 + side, side + 4 : 2 * side + 4]
    assert np.abs(second - single).mean() < 6  # JPEG


def test_one_picture_of_a_gan_is_no_grid_and_keeps_its_recipe(door):
    one = door.http.post("/predictions/plate-gan", json={"number_of_images": 1, "seed": 3})
    wanted = {"model": "plate-gan", "seed": 3, "output": {"format": "jpeg", "quality": 95}}
    native = door.http.post("/v1/generations", json=wanted, headers={"accept": "image/jpeg"})
    assert one.headers["x-seed"] == "3"
    assert one.content == native.content
    found = door.http.post(
        "/v1/inspect", content=one.content, headers={"content-type": "image/jpeg"}
    ).json()
    assert (found["request"]["model"], found["request"]["seed"]) == ("plate-gan", 3)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"width": 65, "height": 64}, "width"),
        ({"width": 8192, "height": 64}, "width"),
        ({"scheduler": "nope"}, "scheduler"),
        ({"image": "AAAA"}, "image"),
    ],
)
def test_what_the_model_cannot_do_is_a_422_that_names_the_field(door, body, field):
    answer = door.http.post("/v1/generations", json={"prompt": "x", **body})
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == field


def test_a_prompt_for_a_gan_is_a_warning_in_the_result(door):
    made = door.http.post("/v1/generations", json={"model": "plate-gan", "prompt": "x", "seed": 3})
    assert made.status_code == 200
    assert "prompt has no effect on plate-gan: it takes no text" in made.json()["warnings"]
