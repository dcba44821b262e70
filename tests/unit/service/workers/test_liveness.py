"""Signs of life: what is work, what is a hang, and what takes long and may."""

import os
import sys

import pytest

from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.liveness import Liveness, read_activity

CONFIG = WorkerConfig(silence_s=300, hang_s=10, hang_factor=20)


class Process:
    """A process and a clock, watched every second."""

    def __init__(self, config: WorkerConfig = CONFIG) -> None:
        self.now, self.used, self.waits_for_disk = 0.0, 0, False
        self.life = Liveness(config, lambda: (self.used, self.waits_for_disk), lambda: self.now)

    def pass_seconds(self, seconds: int, *, works: bool = False, call=None) -> list[bool]:
        """Let time pass; answer pings with ``call`` if it is given; tell when in doubt."""
        doubts = []
        for _ in range(seconds):
            self.now += 1
            self.used += works
            if call is not None:
                call = {**call, "seconds": call["seconds"] + 1}
                self.life.hear({"call": call})
            self.life.look()
            doubts.append(self.life.is_doubtful)
        return doubts


def a_call(expected_s, *, is_first=False):
    return {"kind": "step", "seconds": 0.0, "expected_s": expected_s, "is_first": is_first}


def test_a_process_that_neither_answers_nor_works_hangs_after_hang_s():
    process = Process()
    assert process.pass_seconds(9) == [False] * 4 + [True] * 5
    assert process.life.trouble == ""
    process.pass_seconds(1)
    assert process.life.trouble == "it neither answered nor worked for 10 s"


def test_silence_while_it_works_or_waits_for_its_disk_is_loading_until_silence_s():
    process = Process()
    process.pass_seconds(140, works=True)
    assert (process.life.trouble, process.life.is_doubtful) == ("", False)
    process.waits_for_disk = True
    process.pass_seconds(159)
    assert process.life.trouble == ""
    process.pass_seconds(1)
    assert process.life.trouble == "it answered nothing for 300 s"


def test_a_call_may_take_a_number_of_times_what_it_takes_and_hang_s_at_least():
    short, long = Process(), Process()
    assert short.pass_seconds(9, call=a_call(0.1))[-1] is True
    assert short.life.trouble == ""
    short.pass_seconds(1, call={**a_call(0.1), "seconds": 9.0})
    assert short.life.trouble == "a step that takes 0.1 s is not done after 10 s"
    long.pass_seconds(39, call=a_call(2.0))
    assert long.life.trouble == ""
    long.pass_seconds(1, call={**a_call(2.0), "seconds": 39.0})
    assert long.life.trouble == "a step that takes 2 s is not done after 40 s"


def test_how_long_is_a_hang_is_configured():
    config = WorkerConfig(hang_s=4, hang_factor=30)
    silent, slow = Process(config), Process(config)
    silent.pass_seconds(3)
    assert silent.life.trouble == ""
    silent.pass_seconds(1)
    assert silent.life.trouble == "it neither answered nor worked for 4 s"
    slow.pass_seconds(29, call=a_call(1.0))
    assert slow.life.trouble == ""
    slow.pass_seconds(1, call={**a_call(1.0), "seconds": 29.0})
    assert slow.life.trouble == "a step that takes 1 s is not done after 30 s"


def test_a_first_call_may_compile_and_one_of_which_nothing_is_known_takes_what_it_takes():
    process = Process()
    process.pass_seconds(299, call=a_call(0.1, is_first=True))
    assert process.life.trouble == ""
    process.pass_seconds(2, call={**a_call(0.1, is_first=True), "seconds": 299.0})
    assert process.life.trouble == "a step that takes 0.1 s is not done after 301 s"
    process.life.hear({"call": None})
    process.pass_seconds(5000, call=a_call(None))
    assert (process.life.trouble, process.life.is_doubtful) == ("", False)


def test_who_watches_and_stood_still_itself_accuses_nobody():
    process = Process()
    process.now += 100
    process.life.look()
    assert (process.life.trouble, process.life.is_doubtful) == ("", False)


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_activity_rises_with_work_and_is_none_for_nobody():
    first = read_activity(os.getpid())
    assert sum(k * k for k in range(2_000_000)) > 0
    second = read_activity(os.getpid())
    assert first is not None
    assert second is not None
    assert second[0] > first[0]
    assert read_activity(2**30) is None
