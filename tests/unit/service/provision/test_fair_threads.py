import asyncio
import threading
import time

import pytest

from mezzotint.errors import NotReady
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
