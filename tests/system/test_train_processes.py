"""Two gloo processes train as one process with twice the batch, and others go on with the run.

Tests :mod:`mezzotint.train.averaging` through ``torchrun``.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.unit.train.making import picture_config, points_config, train

from mezzotint.train.checkpoint import CheckpointStore

pytestmark = pytest.mark.slow
PROGRAM = Path(__file__).with_name("train_process.py")
LOOP = {"batch_size": 4, "log_every": 1, "device": "cpu", "threads": 1}


class Killed(BaseException):
    """A stand-in for a kill inside one process."""


def start(tmp_path, config, processes):
    """Train in so many processes."""
    file = tmp_path / f"{Path(config.output_dir).name}.json"
    file.write_text(json.dumps(config.to_dict()))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(PROGRAM), str(file)]
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def end(running):
    """Return what a run in processes said, once it has ended."""
    _, said = running.communicate(timeout=300)
    return running.returncode, said


def weights(config):
    """Every weight, running mean of one and moment of the newest checkpoint, by its path.

    What batch normalisation counts is left out: it sees each process's own batches.
    """
    restored, damaged = CheckpointStore(
        Path(config.output_dir, "checkpoints"), keep=9
    ).load_newest()
    assert not damaged
    found = {}

    def walk(value, path):
        if isinstance(value, torch.Tensor):
            if not re.search("running_(mean|var)|num_batches_tracked", path):
                found[path] = value.double()
            return
        if isinstance(value, list):
            value = dict(enumerate(value))
        for name, item in value.items() if isinstance(value, dict) else ():
            walk(item, f"{path}/{name}")

    walk({k: restored.state[k] for k in ("modules", "ema", "optimizers")}, "")
    return found


def distance(first, second):
    """The largest difference, in shares of each tensor's largest value."""
    assert first.keys() == second.keys()
    return max(
        float((value - second[name]).abs().max() / value.abs().max().clamp(min=1e-6))
        for name, value in first.items()
    )


def events(config, kind):
    lines = Path(config.output_dir, "metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def gan(tmp_path, name, **changes):
    return picture_config(
        tmp_path, name, kind="gan", adversarial={"base_channels": 4, "latent_size": 4}, **changes
    )


def points(tmp_path, name, **changes):
    points_config(tmp_path)  # the file of points
    data = {"path": str(tmp_path / "points.npy"), "held_out": 0.25}
    return points_config(tmp_path, name, network={"dropout": 0.1}, data=data, **changes)


@pytest.mark.parametrize(
    ("maker", "evaluate_every", "most"), [(points, 4, 1e-5), (gan, 0, 1e-3)], ids=["points", "gan"]
)
def test_two_processes_are_one_with_twice_the_batch(tmp_path, maker, evaluate_every, most):
    loop = {**LOOP, "steps": 12, "evaluate_every": evaluate_every}
    one = maker(tmp_path, "one", loop={**loop, "accumulate": 2})
    two = maker(tmp_path, "two", loop=loop)
    running = start(tmp_path, two, 2)
    train(one)
    code, said = end(running)
    assert code == 0, said[-2000:]
    assert distance(weights(one), weights(two)) < most
    for kind in ("step", "held_out"):
        ours, theirs = events(two, kind), events(one, kind)
        assert [e["step"] for e in ours] == [e["step"] for e in theirs]
        assert [e["loss"] for e in ours] == pytest.approx([e["loss"] for e in theirs], rel=1e-4)


def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path):
    loop = {**LOOP, "steps": 400}
    whole = points(tmp_path, "whole", loop={**loop, "accumulate": 2})
    fewer = points(tmp_path, "fewer", loop=loop)
    more = points(tmp_path, "more", loop={**loop, "accumulate": 2})
    running = start(tmp_path, fewer, 2)
    metrics = Path(fewer.output_dir, "metrics.jsonl")
    until = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_bytes()) < 1000:
        assert time.monotonic() < until
        assert running.poll() is None, running.communicate()[1][-2000:]
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    for process in _left(str(PROGRAM)):
        os.kill(process, signal.SIGKILL)
    running.communicate()
    assert max(e["step"] for e in events(fewer, "step")) < 400
    train(whole)

    def kill(event):
        if event["event"] == "step" and event["step"] == 390:
            raise Killed

    with pytest.raises(Killed):
        train(more, on_event=kill)
    refused = start(tmp_path, more, 3)
    code, said = end(refused)
    assert code != 0
    assert "2 batches a step (loop.accumulate times processes), which 3 processes" in said
    running = start(tmp_path, more, 2)
    train(fewer)
    code, said = end(running)
    assert code == 0, said[-2000:]
    for config in (fewer, more):
        assert distance(weights(whole), weights(config)) < 1e-3


def _left(program):
    """Processes of the run that was killed; torchrun starts them in sessions of their own."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if program.encode() in words and b"fewer.json" in words[-2]:
                found.append(int(folder.name))
    return found
