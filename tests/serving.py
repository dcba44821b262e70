"""Doors on a fake service, for tests: in this process, or as a real server."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from starlette.testclient import TestClient

from mezzotint.serve.app import create_app
from mezzotint.serve.auth import KeyRing
from mezzotint.serve.config import ServeConfig
from mezzotint.serve.front import Front
from mezzotint.serve.metrics import ServerMetrics
from mezzotint.serve.queueing import may_run
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig, FakeService
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.service.provision.own_adapters import OwnAdapters

BASE = "http://127.0.0.1:8080"


class Door:
    """The listeners of one server in this process, with its parts in reach."""

    def __init__(self, clients: dict[str, TestClient], front: Front, service: Any) -> None:
        self.clients = clients
        self.front = front
        self.service = service
        self.http = clients["generation"]
        self.management = clients["management"]
        self.metrics = clients["metrics"]

    def do(self, function: Any, *arguments: Any) -> Any:
        """Run something in the server's event loop."""
        return self.http.portal.call(function, *arguments)


@contextlib.contextmanager
def open_door(
    folder: Path | None = None,
    *,
    fake: FakeConfig | None = None,
    service: Any = None,
    jobs: JobsConfig | None = None,
    home: Path | None = None,
    **config: Any,
) -> Iterator[Door]:
    """Open the three listeners; with a folder there is a durable queue too, with a home LoRAs."""
    served = service or FakeService(fake)
    settings = ServeConfig(**config)
    keys = KeyRing(Path(settings.api_keys) if settings.api_keys else None, settings.limits)
    adapters = OwnAdapters(home) if home is not None else None
    queue = None
    if folder is not None:
        check = may_run(adapters) if adapters is not None else None
        queue = Jobs(served, jobs or JobsConfig(folder=str(folder)), check=check)
    front = Front(served, settings, jobs=queue, adapters=adapters)
    front.memory["version"] = "0"
    counted = ServerMetrics()
    apps = {
        name: create_app(front, keys, listener=name, metrics=counted)  # type: ignore[arg-type]
        for name in ("generation", "management", "metrics")
    }
    with contextlib.ExitStack() as stack:
        first = TestClient(apps["generation"], base_url=BASE, raise_server_exceptions=True)
        stack.enter_context(first)
        clients = {"generation": first}
        for name in ("management", "metrics"):
            other = TestClient(apps[name], base_url=BASE)
            other.portal = first.portal  # one event loop for all three
            clients[name] = other
        if queue is not None:
            first.portal.call(queue.start)
        try:
            yield Door(clients, front, served)
        finally:
            if queue is not None:
                first.portal.call(queue.stop)


class RunningServer:
    """A server process and its addresses."""

    def __init__(self, process: subprocess.Popen[str], lines: dict[str, str]) -> None:
        self.process = process
        self.lines = lines
        self.url = lines["generation"]
        self.management = lines["management"]
        self.metrics = lines["metrics"]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def worker_pid(self) -> int:
        """Return the pid of the worker, waiting for it if it is being restarted."""
        while True:
            health = httpx.get(f"{self.url}/health/ready").json()
            if health["ready"] and health["pid"]:
                return int(health["pid"])
            time.sleep(0.02)


@contextlib.contextmanager
def running_server(folder: Path, **given: Any) -> Iterator[RunningServer]:
    """Start the real server on the fake service and stop it with SIGTERM."""
    script = Path(__file__).with_name("fake_server.py")
    argument = json.dumps({"folder": str(folder), **given})
    process = subprocess.Popen(
        [sys.executable, str(script), argument], stdout=subprocess.PIPE, text=True
    )
    try:
        lines: dict[str, str] = {}
        for line in process.stdout:
            name, _, rest = line.strip().partition(" ")
            lines[name] = rest.split()[0]
            if name == "models":
                break
        else:
            raise RuntimeError(f"the server ended with {process.wait()}")
        yield RunningServer(process, lines)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.stdout.close()
        process.wait()


@contextlib.contextmanager
def runs_that_give_way_to_nobody(folder: Path) -> Iterator[None]:
    """Let training runs of servers compute as everybody does, whatever else the machine does.

    A run gives way (``nice``) to what draws pictures for clients. Beside other work it then takes
    as long as that does, which no test can wait for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "nice").write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    (folder / "nice").chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def running_plate(
    home: Path, *flags: str, port: int = 0
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve the built-in model ``plate`` as a person does; the process and its address."""
    command = [
        str(Path(sys.executable).with_name("mezzotint")), "serve", "--port", str(port),
        "--management-port", "0", "--metrics-port", "0", "--models", "plate", *flags,
    ]  # fmt: skip
    environment = {
        **os.environ, "MEZZOTINT_HOME": str(home), "MEZZOTINT_ENGINE__CALIBRATE_S": "0",
    }  # fmt: skip
    log = home / "serve.log"
    with log.open("a") as into:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=into, text=True, env=environment
        )
    try:
        line = next((said for said in process.stdout if said.startswith("generation")), "")
        if not line:
            raise RuntimeError(f"the server ended: {log.read_text()[-2000:]}")
        yield process, line.split()[1]
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        process.stdout.close()
        process.wait()
