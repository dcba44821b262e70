"""A run on a real Ray: two processes learn what one does, also when one of them is killed.

Tests :mod:`mezzotint.service.cluster.training` through the command.
"""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.system.test_train_processes import distance, events, points, weights
from tests.unit.train.making import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
LOOP = {"batch_size": 4, "log_every": 1, "device": "cpu", "threads": 1, "steps": 400}
PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """A Ray of one node with two CPUs."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
    )
    yield cluster.address
    cluster.shutdown()


def start(head, tmp_path, config, *flags) -> "subprocess.Popen[str]":
    from mezzotint.service.cluster.training import as_toml

    file = tmp_path / f"{Path(config.output_dir).name}.toml"
    file.write_text(as_toml(config.to_dict()))
    program = [sys.executable, "-c", "from mezzotint.cli.main import main; main()"]
    command = [*program, "train", str(file), "--json", "--ray", head, "--processes", "2", *flags]
    return subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(running: "subprocess.Popen[str]") -> tuple[int, list[dict], str]:
    told, said = running.communicate(timeout=PATIENCE_S)
    return running.returncode, [json.loads(line) for line in told.splitlines()], said


def processes_of(config) -> list[psutil.Process]:
    """The training processes: children in the run's folder that are told of no cluster."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            is_here = process.cwd() == str(Path(config.output_dir).parent)
            if is_here and "train" in words and "--ray" not in words:
                found.append(process)
    return found


def wait_for_steps(config, running, count) -> None:
    until = time.monotonic() + PATIENCE_S
    while True:
        metrics = Path(config.output_dir, "metrics.jsonl")
        if metrics.exists() and len(events(config, "step")) >= count:
            return
        assert running.poll() is None, running.communicate()[1][-2000:]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_processes_on_a_cluster_are_one_and_go_on_when_one_is_killed(head, tmp_path):
    whole = points(tmp_path, "whole", loop={**LOOP, "accumulate": 2})
    two = points(tmp_path, "two", loop=LOOP, checkpoint={"every": 20})
    running = start(head, tmp_path, two)
    wait_for_steps(two, running, 30)
    children = processes_of(two)
    assert len(children) == 2
    children[1].kill()
    code, told, said = end(running)
    assert code == 0, said[-3000:]
    warnings = [event["message"] for event in told if event["event"] == "warning"]
    assert warnings == ["a process of the run was lost: all are started again"]
    assert not processes_of(two)
    train(whole)
    assert distance(weights(whole), weights(two)) < 1e-3
    lost = [event["loss"] for event in events(two, "step")]
    assert lost == pytest.approx([event["loss"] for event in events(whole, "step")], rel=1e-4)


def test_ctrl_c_writes_a_checkpoint_and_what_is_refused_is_said(head, tmp_path):
    config = points(tmp_path, "stopped", loop={**LOOP, "steps": 100_000})
    running = start(head, tmp_path, config)
    wait_for_steps(config, running, 10)
    running.send_signal(signal.SIGINT)
    code, _, said = end(running)
    assert (code, said.strip()) == (130, "mezzotint: interrupted")
    last = events(config, "step")[-1]["step"]
    assert max(e["step"] for e in events(config, "checkpoint")) == last
    code, _, said = end(start(head, tmp_path, config, "--fresh"))
    assert code == 2
    assert "already holds a run at step" in said
