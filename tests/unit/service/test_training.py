"""Runs that a server starts: a process of their own, known by a lock on its folder."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mezzotint.errors import InvalidRequest
from mezzotint.service.training import CONFIG, LOG, RunConflict, TrainingRuns

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
    runs.create("one", "steps = 1000\n")
    assert runs.running() == ["one"]
    wait(lambda: has_begun(runs, "one"))
    with pytest.raises(RunConflict, match="running already"):
        runs.resume("one", beside=True)
    assert runs.stop("one")
    wait(lambda: not runs.pid("one"))
    events = [
        json.loads(x) for x in (runs.folder / "one" / "metrics.jsonl").read_text().splitlines()
    ]
    assert events[-1]["event"] == "checkpoint"
    assert not runs.stop("one")
    runs.resume("one")
    assert runs.pid("one") > 0


def test_what_the_run_is_given_is_its_text_and_its_folder(runs):
    text = '# mine\noutput_dir = "/elsewhere"\nsteps = 0\n'
    runs.create("two", text)
    assert (runs.folder / "two" / CONFIG).read_text() == text
    runs.create("three", "steps = 0\n", beside=True)
    written = (runs.folder / "three" / CONFIG).read_text()
    assert written == f'output_dir = "{runs.folder / "three"}"\nsteps = 0\n'
    wait(lambda: not runs.running())
    assert "--output-dir=" in (runs.folder / "two" / LOG).read_text()
    assert not Path("/elsewhere").exists()


@pytest.mark.parametrize(
    ("text", "field"),
    [("steps = ", "config"), ("wrong = 1", "wrong")],
)
def test_a_wrong_configuration_leaves_nothing_behind(runs, text, field):
    with pytest.raises(InvalidRequest) as caught:
        runs.create("four", text)
    assert caught.value.field == field
    assert not (runs.folder / "four").exists()


def test_a_server_that_was_killed_leaves_its_run_and_the_next_one_knows_it(runs, tmp_path):
    code = (
        "import sys, os; from pathlib import Path\n"
        "from mezzotint.service.training import TrainingRuns\n"
        "runs = TrainingRuns(Path(sys.argv[1]), dict, program=(sys.executable, sys.argv[2]))\n"
        "runs.create('five', 'steps = 1000'); print(runs.pid('five'), flush=True); os.kill(os.getpid(), 9)\n"
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
    runs.create("six", "steps = 1000\ndeaf = true\n")
    wait(lambda: has_begun(runs, "six"))
    assert runs.stop_all(0.3) == 1
    assert runs.running() == []


def test_a_folder_that_nobody_asked_for_is_not_started(runs):
    (runs.folder / "seven").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="was not started by this server"):
        runs.resume("seven")


def outcome(work, *arguments, **more):
    """Return "" or the field of the conflict that was raised."""
    try:
        work(*arguments, **more)
    except RunConflict as error:
        return error.field
    return ""


def test_of_four_that_are_asked_for_at_once_one_runs(runs):
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(outcome, runs.create, f"r{k}", "steps = 1000") for k in range(4)]
        assert sorted(one.result() for one in asked) == ["", "beside", "beside", "beside"]
    assert len(runs.running()) == 1


def test_two_that_look_at_once_at_a_run_that_ended_learn_the_same(runs, monkeypatch):
    runs.create("one", "steps = 1000")
    child = runs._children["one"]
    runs.stop("one")
    child.wait()
    monkeypatch.setattr(child, "poll", lambda: time.sleep(0.05) or 0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(runs.pid, ["one"] * 4)) == [0, 0, 0, 0]


def test_a_server_that_has_stopped_its_runs_starts_none(runs):
    runs.stop_all(0.0)
    with pytest.raises(OSError, match="the server is stopping"):
        runs.create("one", "steps = 1000")


def test_another_server_that_looks_does_not_stand_in_the_way_of_a_start(runs):
    runs.create("one", "steps = 0")
    wait(lambda: not runs.running())
    other = os.open(runs.folder / "one" / "run.lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [other]).start()
    runs.resume("one")


def test_a_run_that_another_server_is_starting_runs_already(runs):
    runs.create("one", "steps = 0")
    wait(lambda: not runs.running())
    other = os.open(runs.folder / "one" / "run.lock", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    os.ftruncate(other, 0)  # its process is not known yet
    try:
        assert (runs.is_running("one"), runs.pid("one")) == (True, 0)
        assert outcome(runs.remove, "one") == "name"
        before = (runs.folder / "one" / CONFIG).read_text()
        assert outcome(runs.create, "one", "steps = 5", beside=True) == "name"
        assert (runs.folder / "one" / CONFIG).read_text() == before
    finally:
        os.close(other)


def test_a_log_that_is_a_link_is_not_written_through(runs, tmp_path):
    runs.create("one", "steps = 0")
    wait(lambda: not runs.running())
    (tmp_path / "outside").write_text("mine")
    (runs.folder / "one" / LOG).unlink()
    (runs.folder / "one" / LOG).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        runs.resume("one")
    assert (tmp_path / "outside").read_text() == "mine"


def test_a_run_gets_what_it_is_given_and_no_secrets(tmp_path, monkeypatch):
    secret = (
        "AWS_PROFILE", "HF_TOKEN", "OPENAI_API_KEY", "MY_SECRET", "PGPASSWORD",
        "MEZZOTINT_SERVE__API_KEYS", "MEZZOTINT_JOBS__DATABASE_URL", "MEZZOTINT_CONFIG",
    )  # fmt: skip
    for name in secret:
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("DATABASE_URL", "postgres://me:hidden@there/jobs")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:word@proxy:80")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    given = {"MEZZOTINT_HOME": "/home/of/it", "MEZZOTINT_MODELS__ALLOW_DOWNLOADS": "false"}
    program = (sys.executable, str(TRAINER))
    runs = TrainingRuns(tmp_path, accept, environment=given, program=program)
    runs.create("one", 'steps = 0\nenvironment = "seen.json"')
    wait(lambda: not runs.running())
    seen = json.loads((tmp_path / "one" / "seen.json").read_text())
    assert {k: v for k, v in seen.items() if k.startswith("MEZZOTINT_")} == given
    assert "hidden" not in " ".join(seen.values())
    assert seen["PATH"] == os.environ["PATH"]
    assert seen["HTTPS_PROXY"] == "http://me:word@proxy:80"
    assert seen["TOKENIZERS_PARALLELISM"] == "false"
