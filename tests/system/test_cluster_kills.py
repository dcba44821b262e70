"""Three nodes of a real Ray, two fronts, PostgreSQL, a bucket: what dies loses nothing.

Tests :mod:`mezzotint.service.cluster` and :mod:`mezzotint.service.jobs` together. The engine
is the fake one, so that two cores manage it: its pictures are real files whose bytes depend
on the request alone.
"""

import asyncio
import base64
import contextlib
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from tests.bucket import Bucket
from tests.postgres import Postgres, find_postgres
from tests.ray_nodes import RayNodes, kill_tree

from mezzotint.request import GenerationRequest
from mezzotint.service.fake import FakeService

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(find_postgres() is None, reason="PostgreSQL is not installed"),
]
REQUESTS, JOBS, AT_ONCE = 60, 8, 24  # of each part, and how many clients ask
PATIENCE_S = 300.0
LEASE_S = 10.0
CONFIG = """
[jobs]
url = "{database}"
results_url = "{bucket}"
cluster = "tests"
lease_s = {lease_s}
folder = "{folder}"

[serve]
port = 0
management_port = 0
metrics_port = 0

[worker]
factory = "mezzotint.service.fake:create_fake"
ray = "{head}"

[worker.options]
step_s = 0.05

[worker.cluster]
min_replicas = 3
max_replicas = 3
"""


def body_of(number: int) -> dict[str, Any]:
    """A mixed lot: steps, counts, sizes, formats, tiers."""
    return {
        "prompt": f"picture {number}",
        "seed": number,
        "num_inference_steps": 5 + 9 * (number % 5),
        "num_images": 1 + number % 2,
        "width": 64 + 64 * (number % 3),
        "height": 64,
        "reproducibility": ("exact", "exact", "stable")[number % 3],
        "output": {"format": ("png", "jpeg", "webp")[number % 3]},
    }


async def alone(numbers: range) -> dict[int, list[str]]:
    """Digests of the same pictures from one service with nobody else in it."""
    service = FakeService()
    made: dict[int, list[str]] = {}
    for number in numbers:
        request = GenerationRequest.from_dict(body_of(number))
        result = await service.generate(request, request_id=str(number))
        made[number] = [hashlib.sha256(image.data).hexdigest() for image in result.images]
    return made


class Front:
    """One ``mezzotint serve``.

    Args:
        home: Its folder.
        settings: Text of its configuration file.
        clock_off_s: Seconds that its clock is off.
    """

    def __init__(self, home: Path, settings: str, clock_off_s: float = 0.0) -> None:
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(settings.replace("{folder}", str(home / "jobs")))
        self._home = home
        self._program = (
            f"import time; right = time.time; time.time = lambda: right() + {clock_off_s}; "
            "from mezzotint.cli.main import main; main()"
        )
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        command = [sys.executable, "-c", self._program]
        command += ["--home", str(self._home), "serve"]
        command += ["--config", str(self._home / "config.toml")]
        with (self._home / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        told = self.process.stdout
        assert told is not None
        for line in told:
            name, _, rest = line.strip().partition(" ")
            if name == "generation":
                self.url = rest.split()[0]
                break
        self._reader = threading.Thread(target=told.read)  # lest it fills the pipe
        self._reader.start()

    def kill(self) -> None:
        """Lose it, and its Ray process."""
        kill_tree(self.process.pid)
        self._close()

    def _close(self) -> None:
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> None:
        """End it as an operator would."""
        self.process.terminate()
        try:
            self.process.wait(20)
            self._close()
        except subprocess.TimeoutExpired:
            self.kill()

    def replicas(self) -> list[dict[str, Any]]:
        """Return the replicas that it may use; none while it cannot say."""
        with contextlib.suppress(httpx.TransportError, KeyError, ValueError):
            health = httpx.get(f"{self.url}/health/ready", timeout=10).json()
            return [r for r in health["cluster"]["replicas"] if r["status"] == "ready"]
        return []

    def wait_ready(self, count: int) -> None:
        """Return when it has so many replicas."""
        until = time.monotonic() + PATIENCE_S
        while len(self.replicas()) < count:
            assert self.process.poll() is None, (self._home / "log").read_text()[-3000:]
            assert time.monotonic() < until, self.replicas()
            time.sleep(0.5)


class Clients:
    """Those who ask: each request at either front, again where it breaks.

    Args:
        fronts: Who is asked.
    """

    def __init__(self, fronts: list[Front]) -> None:
        self._fronts = fronts
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self.asked_again = 0

    def ask(self, method: str, path: str, turn: int, **more: Any) -> httpx.Response:
        """Ask one front, the other if that one breaks."""
        until = time.monotonic() + PATIENCE_S
        while True:
            front = self._fronts[turn % len(self._fronts)]
            said = ""
            try:
                answer = httpx.request(method, front.url + path, timeout=PATIENCE_S, **more)
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
                said = f"{answer.status_code} {answer.text[:300]}"
            except httpx.TransportError as error:
                said = repr(error)
            assert time.monotonic() < until, f"{method} {path}: {said}"
            turn += 1
            self.asked_again += 1
            time.sleep(0.2)

    def draw(self, number: int) -> list[str]:
        """Ask for pictures and wait for them; a third listens to events."""
        if number % 3 == 2:
            digests = self._listen(number)
            if digests:
                return digests
        answer = self.ask("POST", "/v1/generations", number, json=body_of(number))
        assert answer.status_code == 200, answer.text
        return [digest_of(image["b64"]) for image in answer.json()["images"]]

    def _listen(self, number: int) -> list[str]:
        """Follow a request's events; none if the front breaks."""
        front = self._fronts[number % len(self._fronts)]
        endings: list[dict[str, Any]] = []
        with contextlib.suppress(httpx.TransportError), httpx.stream(
            "POST", f"{front.url}/v1/generations", json=body_of(number),
            headers={"Accept": "text/event-stream"}, timeout=PATIENCE_S,
        ) as told:  # fmt: skip
            kind = ""
            for line in told.iter_lines():
                name, _, value = line.partition(": ")
                kind = value if name == "event" else kind
                if name == "data" and kind == "finished":
                    endings.append(json.loads(value))
        assert len(endings) < 2
        return [digest_of(image["b64"]) for ending in endings for image in ending["images"]]

    def leave(self, number: int) -> str:
        """Leave a durable job; the same key makes asking again harmless."""
        key = {"Idempotency-Key": f"key-{number}"}
        answer = self.ask("POST", "/v1/jobs", number, json=body_of(number), headers=key)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def start(self, drawn: range, left: range) -> tuple[list[Future[list[str]]], list[Future[str]]]:
        """Begin to ask."""
        jobs = [self._pool.submit(self.leave, number) for number in left]
        return [self._pool.submit(self.draw, number) for number in drawn], jobs


def digest_of(data: str) -> str:
    """Return the sha256 of what came as base64."""
    return hashlib.sha256(base64.b64decode(data)).hexdigest()


class Cluster:
    """All that there is, and what was lost of it."""

    def __init__(self, folder: Path, database: Postgres, nodes: RayNodes) -> None:
        self.database, self.nodes = database, nodes
        settings = CONFIG.replace("{folder}", "{{folder}}").format(
            database=database.url, bucket=Bucket.url, lease_s=LEASE_S, head=nodes.address
        ).replace("{{folder}}", "{folder}")  # fmt: skip
        self._names = ("head", "second", "third")
        self._start_nodes()
        with ThreadPoolExecutor(2) as both:
            self.fronts = list(
                both.map(
                    lambda number: Front(folder / f"front-{number}", settings, 60.0 * number),
                    range(2),
                )
            )
        self.clients = Clients(self.fronts)

    def _start_nodes(self) -> None:
        for name in self._names:
            self.nodes.start(name)

    def lose_node(self, name: str) -> None:
        """Lose a node that is not the head, and join another."""
        self.nodes.kill(name)
        time.sleep(3)
        self.nodes.start(name)

    def lose_front(self) -> None:
        """Lose a front for a while."""
        self.fronts[1].kill()
        time.sleep(3)
        self.fronts[1].start()

    def lose_database(self) -> None:
        """Lose PostgreSQL for five seconds."""
        self.database.stop()
        time.sleep(5)
        self.database.start()

    def lose_head(self) -> None:
        """Lose the head's machine; Ray is started anew on every node."""
        self.nodes.kill("head")
        time.sleep(3)
        for name in self._names[1:]:
            self.nodes.kill(name)
        self._start_nodes()

    def stop(self) -> None:
        """End the fronts."""
        for front in self.fronts:
            front.stop()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Everything up and ready."""
    pytest.importorskip("psycopg")
    pytest.importorskip("obstore")
    with contextlib.ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp", prefix="mz"))
        database = stack.enter_context(Postgres(fsync=True))
        bucket = stack.enter_context(Bucket())
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        nodes = stack.enter_context(RayNodes(Path(short)))
        made = Cluster(tmp_path, database, nodes)
        stack.callback(made.stop)
        for front in made.fronts:
            front.wait_ready(3)
        yield made


LOSSES: tuple[Callable[[Cluster], None], ...] = (
    lambda c: c.lose_node("second"),
    lambda c: c.lose_node("third"),
    Cluster.lose_front,
    Cluster.lose_database,
    Cluster.lose_head,
)


def test_what_dies_loses_nothing_doubles_nothing_and_changes_no_byte(cluster):
    each = REQUESTS + JOBS
    expected = asyncio.run(alone(range(len(LOSSES) * each)))
    drawn: dict[int, list[str]] = {}
    ids: dict[int, str] = {}
    for part, lose in enumerate(LOSSES):
        first = part * each
        numbers = range(first, first + REQUESTS)
        left = range(first + REQUESTS, first + each)
        pictures, jobs = cluster.clients.start(numbers, left)
        time.sleep(1.5)
        assert sum(not picture.done() for picture in pictures) > REQUESTS // 3
        lose(cluster)
        drawn |= {n: f.result(PATIENCE_S) for n, f in zip(numbers, pictures, strict=True)}
        ids |= {n: f.result(PATIENCE_S) for n, f in zip(left, jobs, strict=True)}
        for front in cluster.fronts:
            front.wait_ready(3)
    assert (len(drawn), len(ids)) == (300, 40)
    assert drawn == {number: expected[number] for number in drawn}
    for number, id_ in ids.items():
        until = time.monotonic() + PATIENCE_S
        while True:
            job = cluster.clients.ask("GET", f"/v1/jobs/{id_}", number).json()
            if job["status"] in ("succeeded", "failed", "cancelled"):
                break
            assert time.monotonic() < until, job
            time.sleep(0.2)
        assert job["status"] == "succeeded", job
        got = [cluster.clients.ask("GET", i["url"], number + 1).content for i in job["images"]]
        assert [hashlib.sha256(data).hexdigest() for data in got] == expected[number]
    listed = cluster.clients.ask("GET", "/v1/jobs?limit=1000", 0).json()["jobs"]
    assert sorted(job["id"] for job in listed) == sorted(ids.values())
    engine = sa.create_engine(cluster.database.url)
    with engine.connect() as db:
        endings = "select job, count(*) from events where kind = 'finished' group by job"
        assert [count for _, count in db.execute(sa.text(endings))] == [1] * len(ids)
    engine.dispose()
