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


@pytest.mark.slow
def test_fifty_stops_at_random_moments_of_a_real_start(tmp_path):
    chance = random.Random(int(os.environ.get("STOP_SEED", "11")))
    took: list[float] = []
    for number in range(50):
        log = tmp_path / f"{number}.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [
                    str(Path(sys.executable).with_name("mezzotint")), "serve", "--port", "0",
                    "--management-port", "0", "--metrics-port", "0", "--models", "plate,plate-gan",
                ],
                stdout=stream, stderr=stream,
                env={**os.environ, "MEZZOTINT_HOME": str(tmp_path / f"home{number % 2}")},
            )  # fmt: skip
        # the interpreter itself must be up: before that a signal ends any process
        until = time.monotonic() + chance.choice([0.4, 1.5, 4.0, 9.0]) * chance.random() + 0.35
        children: list[int] = []
        while time.monotonic() < until:
            time.sleep(0.02)
            children = [c.pid for c in psutil.Process(process.pid).children(recursive=True)]
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        took.append(time.monotonic() - began)
        print(f"{number}: {code} after {took[-1]:.2f} s", flush=True)
        assert code in (0, 143), log.read_text()
        if code == 143:  # the interpreter had not come to our code yet
            assert log.read_text() == ""
        assert left_behind(children) == []
    assert max(took) < PROMPT_S, took
