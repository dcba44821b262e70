"""SIGTERM at any moment: exit code 0, promptly, nobody left behind."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.serving import running_server

from mezzotint.service.jobs.ownership import FolderOwner

PROMPT_S = 8.0
"""What a stop may take on a loaded machine with nothing to drain."""


def left_behind(pids: list[int]) -> list[int]:
    until = time.monotonic() + 5
    while any(psutil.pid_exists(p) for p in pids) and time.monotonic() < until:
        time.sleep(0.05)
    return [p for p in pids if psutil.pid_exists(p)]


def test_sigterm_while_the_model_loads_ends_at_once(tmp_path):
    script = Path(__file__).parents[1] / "fake_server.py"
    given = {"folder": str(tmp_path), "fake": {"load_s": 60.0}}
    process = subprocess.Popen(
        [sys.executable, str(script), json.dumps(given)], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("jobs"):
            break
    time.sleep(1.0)
    children = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert time.monotonic() - began < 3.0
    assert children
    assert left_behind(children) == []
    process.stdout.close()


def test_a_second_sigterm_changes_nothing(tmp_path):
    with running_server(tmp_path) as server:
        for _ in range(5):
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        assert server.process.wait(15) == 0


def start(folder: Path, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    ports = ["--port", "0", "--management-port", "0", "--metrics-port", "0"]
    with log.open("w") as stream:
        return subprocess.Popen(
            [
                str(Path(sys.executable).with_name("mezzotint")), *arguments, "serve", *ports,
                "--models", "plate,plate-gan",
            ],
            stdout=stream, stderr=stream, env={**os.environ, "MEZZOTINT_HOME": str(folder)},
        )  # fmt: skip


def wait_for_line(process: subprocess.Popen[bytes], log: Path, word: str) -> None:
    while word not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("of", "told"), [("home", "the home {} belongs"), ("jobs", "the jobs in {}/jobs belong")]
)
def test_a_second_server_on_one_home_names_the_first_and_exits_2(tmp_path, of, told):
    """Also where each keeps its jobs elsewhere; and two homes may not share SQLite's jobs."""
    home, log = tmp_path / "home", tmp_path / "log"
    (home / "jobs").mkdir(parents=True)
    owner = FolderOwner(home if of == "home" else home / "jobs", of)
    try:
        elsewhere = [] if of == "jobs" else ["--set", f"jobs.folder={tmp_path / 'jobs'}"]
        assert start(home, log, *elsewhere).wait(60) == 2
    finally:
        owner.release()
    told = f"{told.format(home)} to another server, process {os.getpid()} on"
    assert told in log.read_text()
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.slow
def test_fifty_stops_at_random_moments_of_a_real_start(tmp_path):
    chance = random.Random(int(os.environ.get("STOP_SEED", "11")))
    log = tmp_path / "log"
    began = time.monotonic()
    process = start(tmp_path / "home", log)
    wait_for_line(process, log, "models ")
    whole_s = time.monotonic() - began
    process.terminate()
    assert process.wait(60) == 0
    took: list[float] = []
    for number in range(50):
        home = tmp_path / ("home" if number % 2 else f"cold{number}")  # certified, or not yet
        began = time.monotonic()
        process = start(home, log)
        if number % 10:  # in the others the interpreter itself may still be starting
            wait_for_line(process, log, "generation")
        until = time.monotonic() + whole_s * chance.random()
        children: list[int] = []
        while time.monotonic() < until:
            time.sleep(0.02)
            children = [c.pid for c in psutil.Process(process.pid).children(recursive=True)]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        took.append(time.monotonic() - began)
        print(f"{number}: {code} after {took[-1]:.2f} s\n{log.read_text()}", flush=True)
        assert code in (0, 143, -signal.SIGTERM), log.read_text()
        if code:  # our code had not begun
            assert log.read_text() == ""
        assert left_behind(children) == []
    assert max(took) < PROMPT_S, took
