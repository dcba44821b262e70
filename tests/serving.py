"""Doors on a fake service, for tests: in this process, or as a real server."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from mezzotint.serve.app import create_app
from mezzotint.serve.auth import KeyRing
from mezzotint.serve.config import ServeConfig
from mezzotint.serve.front import Front
from mezzotint.serve.metrics import ServerMetrics
from mezzotint.service.config import JobsConfig
from mezzotint.service.fake import FakeConfig, FakeService
from mezzotint.service.jobs import Jobs

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
    **config: Any,
) -> Iterator[Door]:
    """Open the three listeners; with a folder there is a durable queue too."""
    served = service or FakeService(fake)
    settings = ServeConfig(**config)
    keys = KeyRing(Path(settings.api_keys) if settings.api_keys else None, settings.limits)
    queue = None
    if folder is not None:
        queue = Jobs(served, jobs or JobsConfig(folder=str(folder)))
    front = Front(served, settings, jobs=queue)
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
