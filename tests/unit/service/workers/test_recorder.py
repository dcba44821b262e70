"""The recorder: what a worker was at can be read when it is gone."""

import os
import signal
import subprocess
import sys

import pytest

from mezzotint.service.workers import recorder as module
from mezzotint.service.workers.recorder import Recorder, make_memory, read_memory


@pytest.fixture
def memory():
    made = make_memory()
    yield made
    os.close(made)


def test_memory_that_nobody_wrote_to_says_nothing(memory):
    assert read_memory(memory) is None
    Recorder(memory)
    told = read_memory(memory)
    assert told is not None
    assert (told.planning, told.drawn) == (frozenset(), frozenset())


def test_what_is_under_way_is_read_and_what_has_ended_is_not(memory):
    recorder = Recorder(memory)
    recorder.plan_here(1)
    recorder.plan(2)
    recorder.draw(3)
    recorder.draw(4)
    recorder.draw(4)
    recorder.plan(5)
    recorder.draw(5)
    recorder.end(3)
    recorder.end(3)
    told = read_memory(memory)
    assert (told.planning, told.drawn) == ({1, 2}, {4, 5})
    recorder.plan_here(0)
    for call in (2, 4, 5):
        recorder.end(call)
    told = read_memory(memory)
    assert (told.planning, told.drawn) == (set(), set())


def test_places_are_used_again_and_more_than_there_are_is_no_error(memory, monkeypatch):
    monkeypatch.setattr(module, "_PLACES", 3)
    recorder = Recorder(memory)
    for call in range(1, 1000):
        recorder.draw(call)
        recorder.end(call)
    for call in range(1, 6):
        recorder.draw(call)
    assert read_memory(memory).drawn == {1, 2, 3}
    recorder.end(5)
    recorder.end(1)
    recorder.draw(9)
    assert read_memory(memory).drawn == {2, 3, 9}


def test_what_a_process_wrote_is_there_after_its_death(memory):
    script = (
        "import os, signal, sys\n"
        "from mezzotint.service.workers.recorder import Recorder\n"
        "Recorder(int(sys.argv[1])).draw(77)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(memory)], pass_fds=[memory])
    assert run.returncode == -signal.SIGKILL
    assert read_memory(memory).drawn == {77}
