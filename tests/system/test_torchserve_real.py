"""A real TorchServe: our handlers inside it, and its answers beside ours."""

import importlib.util
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image
from tests.serving import open_door

import mezzotint.models

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ts") is None, reason="no TorchServe here"),
    pytest.mark.skipif(shutil.which("java") is None, reason="no Java here"),
]
MANIFEST = {
    "createdOn": "01/01/2026 00:00:00",
    "runtime": "python",
    "archiverVersion": "0.12.0",
    "model": {
        "modelName": "plategan",
        "handler": "mezzotint.torchserve:handle",
        "modelVersion": "1.0",
        "configFile": "model-config.yaml",
    },
}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for number in sockets:
        number.bind(("127.0.0.1", 0))
    ports = [number.getsockname()[1] for number in sockets]
    for number in sockets:
        number.close()
    return ports


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("torchserve")
    model = folder / "store" / "plategan"
    shutil.copytree(Path(mezzotint.models.__path__[0]) / "builtin" / "plate-gan", model)
    (model / "MAR-INF").mkdir()
    (model / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(MANIFEST))
    (model / "model-config.yaml").write_text(
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 100\n"
        f"responseTimeout: 300\nstartupTimeout: 300\nhandler:\n  home: {folder / 'home'}\n"
    )
    ports = free_ports(5)
    names = ("inference_address", "management_address", "metrics_address")
    lines = [f"{n}=http://127.0.0.1:{p}" for n, p in zip(names, ports, strict=False)]
    lines += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
    (folder / "config.properties").write_text("\n".join([*lines, "disable_system_metrics=true"]))
    command = [
        sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs",
        "--model-store", str(folder / "store"), "--models", "plategan=plategan",
        "--disable-token-auth", "--ts-config", str(folder / "config.properties"),
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )  # fmt: skip
    inference, management = (f"http://127.0.0.1:{port}" for port in ports[:2])
    try:
        until = time.monotonic() + 240
        while True:
            try:
                if "READY" in httpx.get(f"{management}/models/plategan").text:
                    break
            except httpx.HTTPError:
                pass
            is_up = process.poll() is None and time.monotonic() < until
            assert is_up, (folder / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield inference, management
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_our_handler_serves_batches_inside_it(addresses):
    url = f"{addresses[0]}/predictions/plategan"

    def ask(seed: int) -> bytes:
        answer = httpx.post(url, json={"number_of_images": 2, "seed": seed}, timeout=120)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        return answer.content

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(ask, [1, 2, 3, 1]))
    assert together[0] == together[3] == ask(1)
    assert len(set(together)) == 3
    assert Image.open(io.BytesIO(together[0])).format == "JPEG"
    wrong = httpx.post(url, json={"sed": 1}, timeout=120)
    assert wrong.json()["type"] == "BadRequestException"
    assert "did you mean 'seed'" in wrong.json()["message"]


def test_our_door_answers_as_it_does(addresses):
    with open_door() as door:
        query = {"url": "plategan", "initial_workers": "1", "synchronous": "true"}
        assert door.management.post("/models", params=query).status_code == 200
        for listener, method, path in (
            ("inference", "GET", "/ping"),
            ("inference", "POST", "/predictions/nope"),
            ("inference", "POST", "/predictions/plategan/9.9"),
            ("management", "GET", "/models/nope"),
            ("management", "GET", "/models/nope/"),
            ("management", "GET", "/models/plategan/1.0/more"),
            ("management", "GET", "/nothing"),
            ("inference", "GET", "/nothing"),
            ("inference", "POST", "/invocations?model_name=nope"),  # without it, there is one there
            ("inference", "POST", "/nope/predict"),
            ("management", "GET", "/v1/models/plategan"),
            ("management", "PUT", "/models/plategan?min_worker=x"),
            ("management", "PUT", "/models/plategan?max_worker=0"),
            ("management", "PUT", "/models/plategan?model_version=8.0"),
            ("management", "PUT", "/models/plategan?min_worker=1&synchronous=yes"),
            ("management", "PUT", "/models/plategan/1.0/set-default/"),
            ("management", "GET", "/models/plategan/9.9"),
            ("management", "PUT", "/models/plategan?min_worker=1"),
            ("management", "PUT", "/models/plategan?min_worker=1&synchronous=true"),
            ("management", "PUT", "/models/plategan/1.0?min_worker=1&synchronous=true"),
            ("management", "PUT", "/models/plategan?min_worker=3&max_worker=1"),
            ("management", "PUT", "/models/plategan/1.0/set-default"),
            ("management", "PUT", "/models/plategan/3.0/set-default"),
            ("management", "PUT", "/models/nope?min_worker=1"),
        ):
            base = addresses[0] if listener == "inference" else addresses[1]
            theirs = httpx.request(method, base + path, timeout=120)
            ours = (door.http if listener == "inference" else door.management).request(method, path)
            assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json()), path
        theirs = httpx.get(f"{addresses[1]}/models/plategan").json()[0]
        ours = door.management.get("/models/plategan").json()[0]
        assert theirs.keys() <= ours.keys()
        assert theirs["workers"][0].keys() <= ours["workers"][0].keys()
        assert theirs["jobQueueStatus"].keys() == ours["jobQueueStatus"].keys()
        for name in theirs.keys() - {"workers"}:
            assert type(theirs[name]) is type(ours[name]), name
