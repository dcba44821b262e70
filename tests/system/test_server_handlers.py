"""Handler code of a .mar through the door: refused until allowed, isolated when it runs."""

import contextlib
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.serving import Door, open_door

from mezzotint.models.formats.torchserve_archive import inspect_mar
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.supervisor import WorkerSupervisor

HANDLER = """
import os, time
from ts.torch_handler.base_handler import BaseHandler

class Shout(BaseHandler):
    def initialize(self, context):
        self.context, self.initialized = context, True
    def preprocess(self, data):
        return [row.get("data") or row.get("body") for row in data]
    def inference(self, texts):
        for text in texts:
            if text == b"die":
                os._exit(1)
            if text == b"sleep":
                time.sleep(60)
            if text == b"fail":
                raise ValueError("a secret prompt")
        return [t.decode().upper() if isinstance(t, bytes) else t for t in texts]
    def postprocess(self, made):
        return made
"""


def write_mar(folder: Path) -> Path:
    model = {"modelName": "shout", "modelVersion": "1.0", "handler": "shout.py"}
    path = folder / "shout.mar"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps({"model": model}))
        packed.writestr("shout.py", HANDLER)
    return path


@contextlib.contextmanager
def opened(folder: Path, mar: Path, *, handlers: object = None, **models: object) -> Iterator[Door]:
    config = WorkerConfig(
        options={
            "models": {
                "home": str(folder / "home"), "backend": "torch",
                "placement": {"device": "cpu"}, **models,
            },
            "model_store": str(mar.parent), "handlers": handlers or {},
        }
    )  # fmt: skip
    service = WorkerSupervisor(config)
    with open_door(service=service) as door:
        door.do(service.start)
        try:
            yield door
        finally:
            door.do(service.close)


def test_handler_code_waits_for_its_digest_and_then_answers_at_its_door(tmp_path):
    mar = write_mar(tmp_path)
    digest = inspect_mar(mar).digest
    with opened(tmp_path, mar) as door:
        made = door.management.post("/models", params={"url": "shout.mar", "initial_workers": 1})
        assert made.status_code == 200, made.text  # synchronous unless told otherwise
        refused = door.http.post("/predictions/shout", content=b"hello")
        assert refused.status_code == 403
        assert f"allow_handler_code and allows its sha256 {digest}" in refused.json()["message"]
    with opened(tmp_path, mar, allow_handler_code=True, allowed_handlers=["0" * 64]) as door:
        door.management.post("/models", params={"url": "shout.mar", "initial_workers": 1})
        assert door.http.post("/predictions/shout", content=b"hello").status_code == 403
    allowed = {
        "allow_handler_code": True, "allowed_handlers": [digest], "handlers": {"timeout_s": 2.0},
    }  # fmt: skip
    with opened(tmp_path, mar, **allowed) as door:
        door.management.post("/models", params={"url": "shout.mar", "initial_workers": 1})
        http = door.http
        made = http.post("/predictions/shout", content=b"hello")
        assert (made.status_code, made.text) == (200, "HELLO")
        assert made.headers["content-type"].startswith("text/plain")
        assert http.post("/predictions/shout", files={"data": b"form"}).text == "FORM"
        many = http.post("/v1/models/shout:predict", json={"instances": [{"a": 1}, "b"]})
        assert many.json() == {"predictions": [{"a": 1}, "b"]}
        v2 = http.post("/v2/models/shout/infer", json={"inputs": []})
        assert (v2.status_code, "predictions" in v2.json()["message"]) == (501, True)
        (about,) = door.management.get("/models/shout").json()
        assert about["workers"][0]["status"] == "READY"

        failed = http.post("/predictions/shout", content=b"fail")
        assert failed.status_code == 503
        assert failed.json()["message"] == "Prediction failed: ValueError at shout.py:17"
        died = http.post("/predictions/shout", content=b"die")
        assert (died.status_code, died.json()["message"]) == (507, "Worker died.")
        slow = http.post("/predictions/shout", content=b"sleep")
        assert slow.status_code == 408
        assert http.post("/predictions/shout", content=b"again").text == "AGAIN"

        # it draws nothing, so no other door takes it, and nothing is disturbed
        other = http.post("/v1/generations", json={"model": "shout"})
        assert other.status_code == 403
        assert "TorchServe door only" in other.json()["detail"]
        assert http.get("/v1/models").status_code == 200
        assert http.get("/v1/capabilities").status_code == 200
        assert http.get("/sdapi/v1/sd-models").status_code == 200
        health = door.do(door.service.health)
        assert health["restarts"] == 0
        worker = psutil.Process(health["pid"])
        assert any("handlers.child" in " ".join(c.cmdline()) for c in worker.children())
        assert door.management.delete("/models/shout").status_code == 200
        until = time.monotonic() + 5
        while any("handlers.child" in " ".join(c.cmdline()) for c in worker.children()):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert http.post("/predictions/shout", content=b"x").status_code == 404


def test_a_worker_that_is_killed_takes_its_handlers_along(tmp_path):
    mar = write_mar(tmp_path)
    digest = inspect_mar(mar).digest
    with opened(tmp_path, mar, allow_handler_code=True, allowed_handlers=[digest]) as door:
        door.management.post("/models", params={"url": "shout.mar", "initial_workers": 1})
        assert door.http.post("/predictions/shout", content=b"a").text == "A"
        worker = psutil.Process(door.do(door.service.health)["pid"])
        (child,) = [c for c in worker.children() if "handlers.child" in " ".join(c.cmdline())]
        worker.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            child.wait(10)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
        assert door.http.post("/predictions/shout", content=b"b").text == "B"  # still registered


@pytest.mark.parametrize(
    ("word", "status", "kind"),
    [("died", 507, "InternalServerException"), ("memory", 507, "InternalServerException"),
     ("mismatch", 503, "InternalServerException"), ("fine", 200, "")],
)  # fmt: skip
def test_the_door_tells_what_went_wrong_as_torchserve_does(word, status, kind):
    with open_door() as door:
        door.management.post("/models", params={"url": "x.mar", "initial_workers": 1})
        made = door.http.post("/predictions/x", content=word.encode())
        assert made.status_code == status
        if kind:
            assert made.json()["type"] == kind
