"""The golden thread: one request through every door gives the same pixels.

Nothing is kept: every door has its picture drawn anew. The command line and Python run
in processes of their own, with homes of their own.
"""

import base64
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.serving import Door, open_door

from mezzotint.engine.config import EngineConfig
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.request import GenerationRequest
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
def expected(door: Door) -> np.ndarray:
    request = GenerationRequest(prompt=PROMPT, seed=SEED, scheduler="euler", **COMMON)
    result = door.do(lambda: door.service.generate(request, request_id="direct", use_cache=False))
    return pixels(result.images[0].data)


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


DOORS = (native, job, openai, a1111, huggingface, torchserve, kserve_v1, kserve_v2)


@pytest.mark.parametrize("ask", DOORS, ids=lambda f: f.__name__)
def test_every_door_gives_the_pixels_of_the_engine(door, expected, ask):
    assert np.array_equal(pixels(ask(door)), expected)


def elsewhere(folder: Path, *command: str) -> bytes:
    """Run a program with a home of its own; return what it writes to its output."""
    environment = {**os.environ, "MEZZOTINT_HOME": str(folder / "home")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.slow
def test_the_command_line_gives_the_pixels_of_the_engine(tmp_path, expected):
    program = str(Path(sys.executable).with_name("mezzotint"))
    flags = ["--seed", "11", "--steps", "2", "--guidance-scale", "3", "--scheduler", "euler"]
    flags += ["--width", "64", "--height", "64", "--quiet", "--output", "-"]
    made = elsewhere(tmp_path, program, "generate", PROMPT, *flags)
    assert np.array_equal(pixels(made), expected)


@pytest.mark.slow
def test_python_gives_the_pixels_of_the_engine(tmp_path, expected):
    fields = {"seed": SEED, "scheduler": "euler", **COMMON}
    code = (
        "import sys, mezzotint as mz\n"
        f"made = mz.generate({PROMPT!r}, **{fields!r})\n"
        "sys.stdout.buffer.write(made.images[0].data)"
    )
    made = elsewhere(tmp_path, sys.executable, "-c", code)
    assert np.array_equal(pixels(made), expected)


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
