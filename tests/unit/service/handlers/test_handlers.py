"""Handler code of archives: it runs where it is allowed, and harms nobody but itself."""

import asyncio
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from mezzotint.errors import DeadlineExceeded, ModelError, ModelNotAllowed, QueueFull
from mezzotint.models.formats.torchserve_archive import inspect_mar, unpack_code
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.config import HandlersConfig
from mezzotint.service.handlers.handlers import HandlerPool


def archive(folder: Path, files: dict[str, str | bytes], handler: str = "handler.py", **more: str):
    """Write a .mar as the model archiver does; return its path and digest."""
    model = {"modelName": "custom", "modelVersion": "2.0", "handler": handler, **more}
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
    path = folder / "custom.mar"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        for name, content in files.items():
            packed.writestr(name, content)
    return path, inspect_mar(path).digest


def using(
    mar: tuple[Path, str], body: Callable[[HandlerPool, Callable[..., Any]], Any], **config: Any
) -> None:
    path, digest = mar

    async def main() -> None:
        pool = HandlerPool(
            HandlersConfig(**{"start_s": 60.0, **config}),
            path.parent / "run",
            lambda a, t, d: unpack_code(a, t, digest=d),
        )

        async def call(*rows: dict[str, Any]) -> tuple[HandlerAnswer, ...]:
            return await pool.run(path, digest, rows or ({"body": b"x"},))

        try:
            await body(pool, call)
        finally:
            await pool.close()
        left = list((path.parent / "run").glob("run-*")) if (path.parent / "run").is_dir() else []
        assert left == []

    asyncio.run(main())


FUNCTION = """
import json, os, sys
from ts.utils.util import PredictionException

def handle(data, context):
    if data is None:
        return None
    answers = []
    for place, row in enumerate(data):
        body = row.get("body")
        what = body.get("what") if isinstance(body, dict) else None
        if what == "raise":
            raise RuntimeError("a secret prompt")
        if what == "say no":
            raise PredictionException("no such class", 404)
        if what == "exit":
            os._exit(3)
        if what == "too many":
            return ["a", "b", "c"]
        if what == "memory":
            held = [bytearray(64 << 20) for _ in range(64)]
        if what == "loop":
            while True: pass
        if what == "large":
            return [b"x" * (2 << 20)]
        if what == "about":
            answers.append({
                "environment": dict(os.environ), "files": sorted(os.listdir("/proc/self/fd")),
                "cwd": os.getcwd(), "name": context.model_name,
                "dir": sorted(os.listdir(context.system_properties["model_dir"])),
                "torch": "torch" in sys.modules, "version": context.manifest["model"]["modelVersion"],
            })
        elif what == "network":
            import socket
            try:
                socket.create_connection((body["host"], body["port"]), 1).close()
                answers.append("reached")
            except OSError:
                answers.append("refused")
        elif what == "children":
            import subprocess
            child = subprocess.Popen(["sleep", "600"])
            answers.append([os.getpid(), child.pid])
        elif what == "escape":
            import subprocess
            own = subprocess.Popen(["sleep", "600"], start_new_session=True, env={})
            script = "import os, sys; os.fork() and os._exit(0); os.setsid(); "
            script += "print(os.getpid(), flush=True); os.execve('/bin/sleep', ['sleep', '600'], {})"
            away = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
            orphan = int(away.stdout.readline())
            away.wait()
            answers.append([os.getpid(), own.pid, orphan])
        elif what in ("many", "fat"):
            import time
            for _ in range(body["count"]):
                if not os.fork():
                    held = bytearray(os.urandom(1 << 20) * body.get("mib", 0))
                    time.sleep(600)
            time.sleep(600)
        else:
            context.set_response_content_type(place, "text/html; charset=utf-8")
            context.set_response_status(code=202, idx=place)
            answers.append(repr(body))
    return answers
"""


@pytest.fixture
def function(tmp_path: Path) -> tuple[Path, str]:
    return archive(tmp_path, {"handler.py": FUNCTION, "labels.json": "{}"})


def test_a_function_answers_each_row_with_type_and_status(function):
    async def body(pool, call):
        first, second = await call({"body": b"raw"}, {"body": {"a": 1}})
        assert (first.data, first.status) == (b"b'raw'", 202)
        assert first.content_type == "text/html; charset=utf-8"
        assert second.data == b"{'a': 1}"
        (refused,) = await call({"body": {"what": "say no"}})
        assert (refused.status, refused.data) == (404, b"no such class")

    using(function, body)


def test_the_code_sees_nothing_of_ours(function, monkeypatch):
    monkeypatch.setenv("MEZZOTINT_SECRET", "hidden")

    async def body(pool, call):
        (made,) = await call({"body": {"what": "about"}})
        about = json.loads(made.data)
        known = {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "HANDLER_RUN"}
        assert set(about["environment"]) <= known
        assert len(about["files"]) <= 5  # three standard ones, the socket, the listing itself
        assert about["dir"] == ["MAR-INF", "handler.py", "labels.json"]
        assert about["name"] == "custom"
        assert about["version"] == "2.0"
        assert about["torch"] is False
        assert about["cwd"].startswith(str(function[0].parent / "run"))

    using(function, body)


def test_the_code_has_no_network_where_the_kernel_allows_that(function):
    async def body(pool, call):
        server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        (made,) = await call({"body": {"what": "network", "host": "127.0.0.1", "port": port}})
        server.close()
        if made.data == b"reached":
            pytest.skip("this kernel gives no name spaces")
        assert made.data == b"refused"

    using(function, body)


def test_a_fault_is_told_by_kind_and_place_and_the_process_lives(function):
    async def body(pool, call):
        (made,) = await call({"body": {"what": "raise"}})
        assert made.error == "failed"
        assert made.message == "Prediction failed: RuntimeError at handler.py:13"
        (made,) = await call({"body": {"what": "too many"}})
        assert made.error == "mismatch"
        assert made.message == "number of batch response mismatched, expect: 1, got: 3."
        assert (await call())[0].status == 202

    using(function, body)


@pytest.mark.parametrize(("what", "error"), [("exit", "died"), ("memory", "memory")])
def test_a_crash_costs_one_call_and_the_next_starts_another_process(function, what, error):
    async def body(pool, call):
        (made,) = await call({"body": {"what": what}})
        assert made.error == error
        assert (await call())[0].status == 202

    using(function, body, memory_bytes=1 << 30)


def test_what_takes_too_long_or_is_too_long_is_killed(function):
    async def body(pool, call):
        await call()
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="within 1 s"):
            await call({"body": {"what": "loop"}})
        assert time.monotonic() - began < 4
        (made,) = await call({"body": {"what": "large"}})
        assert made.error == "failed"
        assert "too long" in made.message
        assert (await call())[0].status == 202

    using(function, body, timeout_s=1.0, max_response_bytes=1 << 20)


def test_cancelling_kills_the_process_and_all_it_started(function):
    async def body(pool, call):
        (made,) = await call({"body": {"what": "children"}})
        pids = json.loads(made.data)
        assert all(psutil.pid_exists(pid) for pid in pids)
        task = asyncio.create_task(call({"body": {"what": "loop"}}))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        until = time.monotonic() + 5
        while any(_lives(pid) for pid in pids) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        assert not any(_lives(pid) for pid in pids)
        assert (await call())[0].status == 202

    using(function, body)


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are taken in by Linux")
@pytest.mark.parametrize("end", ["timeout", "close", "crash"])
def test_a_child_in_a_session_of_its_own_and_an_orphan_die_with_the_handler(function, end):
    pids: list[int] = []

    async def body(pool, call):
        (made,) = await call({"body": {"what": "escape"}})
        pids.extend(json.loads(made.data))
        assert len(pids) == 3
        assert all(_lives(pid) for pid in pids)
        await asyncio.sleep(0.6)  # the watch has seen them
        if end == "timeout":
            with pytest.raises(DeadlineExceeded):
                await call({"body": {"what": "loop"}})
        elif end == "crash":
            assert (await call({"body": {"what": "exit"}}))[0].error == "died"
        if end != "close":
            assert not any(_lives(pid) for pid in pids)

    try:
        using(function, body, timeout_s=3.0)
        assert not any(_lives(pid) for pid in pids)
    finally:
        for pid in pids:
            if _lives(pid):
                psutil.Process(pid).kill()


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
@pytest.mark.parametrize(
    ("what", "limits"),
    [
        ({"what": "fat", "count": 8, "mib": 64}, {"memory_bytes": 256 << 20}),
        ({"what": "many", "count": 8}, {"max_children": 3}),
    ],
)
def test_children_are_counted_and_measured_together(function, what, limits):
    async def body(pool, call):
        began = time.monotonic()
        (made,) = await call({"body": what})
        assert made.error == "memory"
        assert "handlers.memory_bytes and handlers.max_children allow" in made.message
        assert time.monotonic() - began < 20
        assert (await call())[0].status == 202

    using(function, body, timeout_s=30.0, **limits)


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_too_many_that_wait_are_refused_and_idle_processes_end(function):
    async def body(pool, call):
        await call()
        place = next(iter(pool._places.values()))
        running = place.running
        tasks = [asyncio.create_task(call({"body": {"what": "loop"}})) for _ in range(2)]
        await asyncio.sleep(0.1)
        with pytest.raises(QueueFull):
            await call()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await call()
        running = place.running
        async with asyncio.timeout(20):
            await running.process.wait()
        assert (await call())[0].status == 202

    using(function, body, max_waiting=2, idle_s=0.5)


EAGER = """
import torch
from ts.handler_utils.timer import timed
from ts.torch_handler.base_handler import BaseHandler

class Doubler(BaseHandler):
    @timed
    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        return torch.tensor([row["x"] for row in rows], dtype=torch.float32, device=self.device)
    def postprocess(self, data):
        assert self.model.training is False
        return data.tolist()
"""
NETWORK = """
from torch import nn

class Affine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
    def forward(self, x):
        return self.layer(x)
"""


def test_a_base_handler_with_a_model_file_and_weights_computes(tmp_path):
    """The shape of TorchServe's own eager examples: handler, model file, state dict."""
    import torch

    state = {"layer.weight": torch.tensor([[2.0, -1.0]]), "layer.bias": torch.tensor([0.5])}
    torch.save(state, tmp_path / "weights.pt")
    files = {
        "handler.py": EAGER,
        "network.py": NETWORK,
        "weights.pt": (tmp_path / "weights.pt").read_bytes(),
    }
    mar = archive(tmp_path, files, modelFile="network.py", serializedFile="weights.pt")

    async def body(pool, call):
        made = await call({"body": {"x": [3.0, 4.0]}}, {"data": {"x": [0.0, 1.0]}})
        assert [json.loads(one.data) for one in made] == [[2.5], [-0.5]]
        assert {one.content_type for one in made} == {"application/json"}

    using(mar, body, memory_bytes=8 << 30)


@pytest.mark.parametrize(
    ("files", "handler", "says"),
    [
        ({"handler.py": "import nothing_of_that_name"}, "handler.py", "nothing_of_that_name"),
        ({"handler.py": "raise SystemExit(0)"}, "handler.py", "SystemExit at handler.py:1"),
        ({"handler.py": "import os; os._exit(0)"}, "handler.py", "died while it was loaded"),
        ({"handler.py": "while True: pass"}, "handler.py", "not loaded within 2 s"),
        ({"handler.py": "x = 1"}, "handler.py", "found 0 classes"),
        ({"handler.py": "class A: ...\nclass B: ..."}, "handler.py", "found 2 classes"),
        ({"handler.py": "x = 1"}, "handler.py:missing", "no function 'missing'"),
        ({"handler.py": "x = 1"}, "image_classifier", "built into TorchServe"),
        ({"handler.py": "x = 1"}, "other.py", "not among the archive's files"),
        ({"handler.py": "x = bytearray(4 << 30)"}, "handler.py", "MemoryError"),
    ],
)
def test_code_that_cannot_be_loaded_is_a_clear_error(tmp_path, files, handler, says):
    async def body(pool, call):
        with pytest.raises(ModelError, match=says):
            await call()

    slow = "while True" in files["handler.py"]
    using(
        archive(tmp_path, files, handler), body, memory_bytes=1 << 30, start_s=2.0 if slow else 60.0
    )


def test_an_archive_that_changed_since_it_was_allowed_does_not_run(function):
    path, _ = function
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr("more.py", "x = 1")

    async def body(pool, call):
        with pytest.raises(ModelNotAllowed, match="has changed since"):
            await call()

    using(function, body)
    assert not os.path.exists(path.parent / "run" / "model")


def test_no_more_processes_than_allowed_even_while_one_starts(tmp_path):
    async def main():
        pool = HandlerPool(HandlersConfig(max_processes=1), tmp_path, None)
        may_start = asyncio.Event()

        async def start(_archive, _digest):
            await may_start.wait()
            raise ModelError("not loaded")

        pool._start = start
        first = asyncio.create_task(pool.run(tmp_path, "a", [{}]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="all 1 handler processes"):
            await pool.run(tmp_path, "b", [{}])
        may_start.set()
        with pytest.raises(ModelError):
            await first
        with pytest.raises(ModelError):
            await pool.run(tmp_path, "b", [{}])

    asyncio.run(main())
