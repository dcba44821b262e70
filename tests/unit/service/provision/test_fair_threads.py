import asyncio
import os
import sys
import threading
import time

import pytest

from mezzotint.errors import NotReady
from mezzotint.service.provision import fair_threads
from mezzotint.service.provision.fair_threads import FairThreads


def test_who_fills_its_line_waits_behind_itself_alone():
    gate, threads = threading.Event(), FairThreads(4, per_client=2)
    running: list[str] = []

    def block(name):
        running.append(name)
        gate.wait(10)
        return name

    async def main():
        greedy = [asyncio.ensure_future(threads.run("greedy", block, "greedy")) for _ in range(50)]
        await asyncio.sleep(0.1)
        assert running == ["greedy"] * 2
        began = time.monotonic()
        assert await threads.run("other", lambda: 42) == 42
        assert time.monotonic() - began < 1.0
        gate.set()
        assert await asyncio.gather(*greedy) == ["greedy"] * 50
        assert threads._lines == {}

    asyncio.run(main())
    threads.close()


def test_errors_come_back_and_cancelled_work_is_never_begun():
    gate, threads, begun = threading.Event(), FairThreads(2, per_client=1), []

    async def main():
        first = asyncio.ensure_future(threads.run("a", gate.wait, 10))
        second = asyncio.ensure_future(threads.run("a", begun.append, "second"))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        await first
        with pytest.raises(ZeroDivisionError):
            await threads.run("a", lambda: 1 // 0)
        assert begun == []

    asyncio.run(main())
    threads.close()


def test_closed_threads_refuse_what_waits_and_what_comes():
    gate, threads = threading.Event(), FairThreads(2, per_client=1)

    async def main():
        first = asyncio.ensure_future(threads.run("a", gate.wait, 10))
        second = asyncio.ensure_future(threads.run("a", gate.wait, 10))
        await asyncio.sleep(0.05)
        threads.close()
        with pytest.raises(NotReady):
            await second
        with pytest.raises(NotReady):
            await threads.run("b", gate.wait, 10)
        gate.set()
        assert await first

    asyncio.run(main())


def burn(seconds):
    """Keep a core busy, and say so."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_beside_pictures_of_others_a_line_does_one_thing_at_a_time_and_rests(monkeypatch):
    threads, done = FairThreads(4, per_client=2), []

    def work(k):
        burn(0.02)
        done.append(k)

    async def main():
        with threads.drawing("other"):
            greedy = [asyncio.ensure_future(threads.run("greedy", work, k)) for k in range(60)]
            await threads.run("other", burn, 0.01)
            assert threads._lines["greedy"].running <= 1
            await asyncio.sleep(1.0)
            assert len(done) <= 2  # each 0.02 s of work is followed by 0.18 s of rest and 2 s more
        began, before = time.monotonic(), len(done)
        await asyncio.sleep(1.0)  # who drew just now may come back at any moment
        assert before + 1 <= len(done) <= before + (time.monotonic() - began) / 0.2 + 2
        assert threads._are_others_drawing("greedy")
        assert not threads._are_others_drawing("other")
        monkeypatch.setattr(fair_threads, "_SHORTLY_S", 0.0)  # nobody else draws: no rest
        await asyncio.wait_for(asyncio.gather(*greedy), 60)
        assert sorted(done) == list(range(60))

    asyncio.run(main())
    threads.close()


def test_a_line_goes_on_after_its_rest_when_pictures_of_others_end_within_it():
    threads = FairThreads(4)

    async def main():
        with threads.drawing("other"):
            await threads.run("greedy", burn, 0.03)
            waits = asyncio.ensure_future(threads.run("greedy", burn, 0.001))
            await asyncio.sleep(0.05)
        line = threads._lines["greedy"]
        assert line.alarm_at == pytest.approx(line.rests_until, abs=0.1)  # not two seconds later
        await asyncio.wait_for(waits, 20)

    asyncio.run(main())
    threads.close()


def test_a_system_that_forbids_a_lower_priority_is_worked_without_one(monkeypatch):
    def forbidden(*_):
        raise PermissionError("operation not permitted")

    monkeypatch.setattr(fair_threads.os, "setpriority", forbidden)
    monkeypatch.setattr(fair_threads, "_GIVES_WAY_S", 0.0)
    threads = FairThreads(4)

    async def main():
        with threads.drawing("other"):
            answers = [threads.run("greedy", lambda: burn(0.001) or 42) for _ in range(3)]
            assert await asyncio.wait_for(asyncio.gather(*answers), 20) == [42] * 3

    asyncio.run(main())
    threads.close()


def test_who_asks_for_less_than_its_share_waits_for_no_pictures_of_others():
    threads = FairThreads(4)

    async def main():
        with threads.drawing("other"):
            for _ in range(3):
                await asyncio.wait_for(threads.run("modest", burn, 0.005), 1.0)
                await asyncio.sleep(0.1)  # longer than its rest

    asyncio.run(main())
    threads.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only there threads have a priority")
def test_a_line_that_rested_waits_for_pictures_of_others_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(fair_threads, "_GIVES_WAY_S", 0.3)
    threads = FairThreads(4)

    async def main():
        with threads.drawing("other"):
            await threads.run("greedy", burn, 0.01)
            began = time.monotonic()
            await threads.run("greedy", burn, 0.01)
            assert time.monotonic() - began >= 0.09 + 0.3
        monkeypatch.setattr(fair_threads, "_GIVES_WAY_S", 60.0)
        with threads.drawing("other"):
            await threads.run("another", burn, 0.001)
            waits = asyncio.ensure_future(threads.run("another", burn, 0.001))
            await asyncio.sleep(0.2)
            assert not waits.done()
        await asyncio.wait_for(waits, 20)  # they are done: it goes on at once

    asyncio.run(main())
    threads.close()


def test_a_line_that_had_to_rest_goes_on_at_a_lower_priority_and_nobody_else(monkeypatch):
    threads = FairThreads(4)

    def priority():
        burn(0.01)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def main():
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        assert await threads.run("greedy", priority) == usual
        with threads.drawing("other"):
            monkeypatch.setattr(fair_threads, "_GIVES_WAY_S", 0.0)
            found = await asyncio.gather(*(threads.run("greedy", priority) for _ in range(3)))
            assert found == [usual, *[min(usual + 10, 19)] * 2]
            assert await threads.run("other", priority) == usual
        assert os.getpriority(os.PRIO_PROCESS, 0) == usual

    asyncio.run(main())
    threads.close()


def test_alone_and_beside_pictures_of_its_own_a_line_does_not_rest():
    threads = FairThreads(4, per_client=2)

    async def main():
        with threads.drawing("greedy"):
            await threads.run("greedy", burn, 0.5)
            assert threads._lines == {}
            await asyncio.wait_for(threads.run("greedy", burn, 0.01), 3.9)  # rest: 4.5 seconds

    asyncio.run(main())
    threads.close()


def test_lines_that_have_rested_are_forgotten(monkeypatch):
    monkeypatch.setattr(fair_threads, "_FEW_LINES", 4)
    threads = FairThreads(4)

    async def main():
        with threads.drawing("other"):
            for k in range(40):
                await threads.run(f"client-{k}", burn, 0.001)
                assert len(threads._lines) <= 24
            await asyncio.sleep(0.1)
            await threads.run("last", burn, 0.001)

    asyncio.run(main())
    threads.close()
