"""Nothing is lost: the worker killed, the server killed, SIGTERM in mid-load, a full disk."""

import asyncio
import base64
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.serving import RunningServer, running_server

from mezzotint.request import GenerationRequest
from mezzotint.service.fake import FakeService


def expected(prompt: str, seed: int) -> bytes:
    request = GenerationRequest(prompt=prompt, seed=seed)
    return asyncio.run(FakeService().generate(request, request_id="x")).images[0].data


def kill_worker(server: RunningServer) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.worker_pid(), signal.SIGKILL)


def test_a_waiting_client_gets_its_picture_though_the_worker_was_killed(tmp_path):
    with running_server(tmp_path, fake={"step_s": 0.2}) as server:
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(
                httpx.post(
                    f"{server.url}/v1/generations", json={"prompt": "a", "seed": 5}, timeout=30
                )
            )
        )
        thread.start()
        time.sleep(0.4)
        kill_worker(server)
        thread.join()
        (image,) = answers[0].json()["images"]
        assert base64.b64decode(image["b64"]) == expected("a", 5)
        health = httpx.get(f"{server.url}/health/ready").json()
        assert (health["ready"], health["restarts"]) == (True, 1)
        metrics = httpx.get(f"{server.metrics}/metrics").text
        assert "mezzotint_worker_restarts_total 1.0" in metrics


def test_a_request_that_always_kills_the_worker_fails_and_the_others_live(tmp_path):
    options = {"always_crash": "poison", "step_s": 0.02}
    with running_server(tmp_path, fake=options, worker={"max_crashes": 2}) as server:
        poison = httpx.post(f"{server.url}/v1/generations", json={"prompt": "poison"}, timeout=30)
        assert poison.status_code == 500
        assert "died 2 times" in poison.json()["detail"]
        good = httpx.post(f"{server.url}/v1/generations", json={"prompt": "good"}, timeout=30)
        assert good.status_code == 200


def submit(client: httpx.Client, count: int) -> dict[str, int]:
    jobs = {}
    for seed in range(count):
        body = {"prompt": f"job {seed}", "seed": seed}
        headers = {"Idempotency-Key": f"key-{seed}"}
        answer = client.post("/v1/jobs", json=body, headers=headers)
        assert answer.status_code == 202
        jobs[answer.json()["id"]] = seed
    return jobs


def wait_for(client: httpx.Client, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        left = sum(
            len(client.get("/v1/jobs", params={"status": s, "limit": 100}).json()["jobs"])
            for s in ("queued", "running")
        )
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"{left} jobs never ended")


def check(client: httpx.Client, jobs: dict[str, int]) -> None:
    for id_, seed in jobs.items():
        job = client.get(f"/v1/jobs/{id_}").json()
        assert job["status"] == "succeeded", job
        data = client.get(job["images"][0]["url"]).content
        assert data == expected(f"job {seed}", seed)
        text = client.get(f"/v1/jobs/{id_}/events").text
        kinds = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
        endings = [k for k in kinds if k in ("finished", "failed", "cancelled")]
        assert endings == ["finished"]
        ids = [int(line[4:]) for line in text.splitlines() if line.startswith("id: ")]
        assert ids == sorted(set(ids))


def test_forty_jobs_survive_five_dead_workers(tmp_path):
    with (
        running_server(tmp_path, fake={"step_s": 0.05}) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        jobs = submit(client, 40)
        for _ in range(5):
            time.sleep(0.25)
            kill_worker(server)
        wait_for(client, 60)
        check(client, jobs)


def test_forty_jobs_survive_five_dead_servers(tmp_path):
    chance = random.Random(7)
    jobs: dict[str, int] = {}
    for round_ in range(6):
        with (
            running_server(tmp_path, fake={"step_s": 0.05}) as server,
            httpx.Client(base_url=server.url, timeout=30) as client,
        ):
            if not round_:
                jobs = submit(client, 40)
            if round_ < 5:
                time.sleep(chance.uniform(0.05, 0.5))
                server.process.kill()
                server.process.wait()
                continue
            wait_for(client, 60)
            check(client, jobs)
            again = submit(client, 1)  # idempotency keys survive as well
            assert set(again) <= set(jobs)


def test_sigterm_in_mid_load_finishes_what_runs_loses_nothing_and_exits_0(tmp_path):
    with (
        running_server(
            tmp_path, fake={"step_s": 0.2, "slots": 2}, serve={"drain_s": 20},
            jobs={"max_running": 2},
        ) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):  # fmt: skip
        jobs = submit(client, 8)
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{server.url}/v1/generations", json={"seed": 1}, timeout=30)
            )
        )
        thread.start()
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert client.get("/health/ready").status_code == 503
        assert client.post("/v1/jobs", json={}).status_code == 503
        thread.join()
        assert answers[0].status_code == 200
        assert server.process.wait(30) == 0
    with (
        running_server(tmp_path, fake={"step_s": 0.01}) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        wait_for(client, 30)
        check(client, jobs)


def test_a_client_that_goes_away_cancels_its_request(tmp_path):
    with running_server(tmp_path, fake={"step_s": 0.1}) as server:
        body = {"prompt": "long", "num_inference_steps": 140}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/generations", json=body, timeout=0.5)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            if httpx.get(f"{server.url}/health/ready").json()["queue"] == 0:
                break
            time.sleep(0.1)
        metrics = httpx.get(f"{server.metrics}/metrics").text
        assert "mezzotint_http_running 0.0" in metrics
        assert 'mezzotint_requests_total{door="native",status="499"} 1.0' in metrics


def test_a_folder_that_cannot_be_written_fails_the_job_and_nothing_else(tmp_path):
    with (
        running_server(tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        results = Path(tmp_path) / "results"
        shutil.rmtree(results)  # it holds a note of whose it is
        results.write_text("a file where the folder should be")  # nothing can be kept
        id_ = client.post("/v1/jobs", json={"seed": 1}).json()["id"]
        wait_for(client, 10)
        job = client.get(f"/v1/jobs/{id_}").json()
        assert job["status"] == "failed"
        assert "could not be kept" in job["error"]["detail"]
        results.unlink()
        id_ = client.post("/v1/jobs", json={"seed": 1}).json()["id"]
        wait_for(client, 10)
        assert client.get(f"/v1/jobs/{id_}").json()["status"] == "succeeded"


@contextlib.contextmanager
def no_room_to_write(server: RunningServer) -> Iterator[None]:
    """Let every write to a file of the server fail, as on a full disk."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)


def full_disk_story(server: RunningServer, full: contextlib.AbstractContextManager[None]) -> None:
    """Jobs in mid-work on a full disk end well when there is room again; new ones get a 503."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        jobs = submit(client, 6)
        with full:
            time.sleep(1.5)
            refused = client.post("/v1/jobs", json={"seed": 99})
            assert refused.status_code == 503, refused.text
            assert int(refused.headers["retry-after"]) >= 1
            assert any(word in refused.json()["detail"] for word in ("disk", "store"))
            for id_ in jobs:  # reading goes on, and nothing is lost
                assert client.get(f"/v1/jobs/{id_}").json()["status"] in (
                    "queued", "running", "succeeded",
                )  # fmt: skip
            assert client.post("/v1/generations", json={"seed": 1}).status_code == 200
            assert client.get("/health/ready").status_code == 200
        wait_for(client, 30)
        check(client, jobs)
        until = time.monotonic() + 10
        while client.post("/v1/jobs", json={"seed": 99}).status_code != 202:
            assert time.monotonic() < until
            time.sleep(0.2)
        wait_for(client, 10)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_a_full_disk_delays_jobs_and_loses_none(tmp_path):
    with running_server(tmp_path, fake={"step_s": 0.05}, jobs={"max_running": 3}) as server:
        full_disk_story(server, no_room_to_write(server))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
def test_sigterm_on_a_full_disk_still_exits_0_and_the_next_start_goes_on(tmp_path):
    with running_server(tmp_path, fake={"step_s": 0.05}, serve={"drain_s": 1.0}) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            jobs = submit(client, 6)
        with no_room_to_write(server):
            time.sleep(1.0)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(15) == 0
    with (
        running_server(tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        wait_for(client, 30)
        check(client, jobs)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill the disk that a folder lies on."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for size in (1 << 16, 4096, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    if stream.write(b"x" * size) < size:
                        break
    try:
        yield
    finally:
        ballast.unlink()


@pytest.mark.parametrize("place", ["everything", "results"])
def test_a_small_disk_that_is_really_full(tmp_path, place):
    disk = tmp_path / "jobs" if place == "everything" else tmp_path / "jobs" / "results"
    disk.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        with running_server(
            tmp_path / "jobs", fake={"step_s": 0.05}, jobs={"max_running": 3}
        ) as server:
            full_disk_story(server, filled(disk))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_server_process_loads_no_torch(tmp_path):
    with running_server(tmp_path) as server:
        maps = Path(f"/proc/{server.process.pid}/maps")
        if not maps.exists():
            pytest.skip("no /proc here")
        assert "libtorch" not in maps.read_text()
        assert server.worker_pid() != server.process.pid


def test_the_worker_ends_when_its_server_is_killed(tmp_path):
    with running_server(tmp_path) as server:
        pid = server.worker_pid()
        server.process.kill()
        server.process.wait()
        until = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()
