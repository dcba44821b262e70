"""Runs that a server starts: a process of their own, known by a lock on its folder."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mezzotint.errors import InvalidField, InvalidRequest
from mezzotint.service.training import CONFIG, LOG, TrainingRuns

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs locks on files")

TRAINER = Path(__file__).resolve().parents[2] / "fake_trainer.py"


def accept(plain):
    if "wrong" in plain:
        raise InvalidRequest("wrong must not be there", field="wrong")


@pytest.fixture
def runs(tmp_path):
    made = TrainingRuns(tmp_path / "runs", accept, program=(sys.executable, str(TRAINER)))
    yield made
    made.stop_all(5.0)


def wait(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def has_begun(runs, name):
    return (runs.folder / name / "metrics.jsonl").exists()


def test_a_run_runs_until_it_is_stopped_and_goes_on_when_it_is_resumed(runs):
    runs.prepare("one", "steps = 1000\n")
    runs.start("one")
    assert runs.running() == ["one"]
    wait(lambda: has_begun(runs, "one"))
    with pytest.raises(InvalidRequest, match="running already"):
        runs.start("one")
    assert runs.stop("one")
    wait(lambda: not runs.pid("one"))
    events = [
        json.loads(x) for x in (runs.folder / "one" / "metrics.jsonl").read_text().splitlines()
    ]
    assert events[-1]["event"] == "checkpoint"
    assert not runs.stop("one")
    runs.start("one")
    assert runs.pid("one") > 0


def test_what_the_run_is_given_is_its_text_and_its_folder(runs):
    text = '# mine\noutput_dir = "/elsewhere"\nsteps = 0\n'
    runs.prepare("two", text)
    assert (runs.folder / "two" / CONFIG).read_text() == text
    runs.prepare("three", "steps = 0\n")
    written = (runs.folder / "three" / CONFIG).read_text()
    assert written == f'output_dir = "{runs.folder / "three"}"\nsteps = 0\n'
    runs.start("two")
    wait(lambda: not runs.pid("two"))
    assert "--output-dir=" in (runs.folder / "two" / LOG).read_text()
    assert not Path("/elsewhere").exists()


@pytest.mark.parametrize(
    ("text", "error", "field"),
    [("steps = ", InvalidField, "config"), ("wrong = 1", InvalidRequest, "wrong")],
)
def test_a_wrong_configuration_leaves_nothing_behind(runs, text, error, field):
    with pytest.raises(error) as caught:
        runs.prepare("four", text)
    assert caught.value.field == field
    assert not (runs.folder / "four").exists()


def test_a_server_that_was_killed_leaves_its_run_and_the_next_one_knows_it(runs, tmp_path):
    runs.prepare("five", "steps = 1000\n")
    code = (
        "import sys, os; from pathlib import Path\n"
        "from mezzotint.service.training import TrainingRuns\n"
        "runs = TrainingRuns(Path(sys.argv[1]), dict, program=(sys.executable, sys.argv[2]))\n"
        "runs.start('five'); print(runs.pid('five'), flush=True); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(runs.folder), str(TRAINER)], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL
    assert runs.pid("five") == int(done.stdout)
    wait(lambda: has_begun(runs, "five"))
    assert runs.stop("five")
    wait(lambda: not runs.pid("five"))


def test_a_run_that_does_not_hear_is_killed_with_the_server(runs):
    runs.prepare("six", "steps = 1000\ndeaf = true\n")
    runs.start("six")
    wait(lambda: has_begun(runs, "six"))
    assert runs.stop_all(0.3) == 1
    assert runs.running() == []


def test_a_folder_that_nobody_asked_for_is_not_started(runs):
    (runs.folder / "seven").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="was not started by this server"):
        runs.start("seven")
