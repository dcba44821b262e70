"""Real workers on a CPU, drawing with ``plate``: the same bytes from each, after deaths and hangs."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from mezzotint.request import GenerationRequest
from mezzotint.service.config import WorkerConfig
from mezzotint.service.workers.local_pool import WorkerPool
from mezzotint.service.workers.supervisor import WorkerSupervisor
from mezzotint.types import Finished, Stepped


@pytest.mark.slow
def test_the_same_bytes_from_either_worker_and_after_a_death(tmp_path):
    options = {
        "models": {"home": str(tmp_path), "placement": {"device": "cpu"}},
        "engine": {"buckets": [2, 4]},
    }
    request = GenerationRequest(
        prompt="a red apple", seed=7, num_inference_steps=3, width=64, height=64
    )

    async def main() -> None:
        pool = WorkerPool(WorkerConfig(options=options, count=2))
        await pool.start()
        try:
            async with asyncio.timeout(500):
                made = [
                    await worker.generate(request, request_id=f"w{k}", use_cache=False)
                    for k, worker in enumerate(pool._workers)
                ]
                both = await asyncio.gather(
                    *(pool.generate(request, request_id=f"c{k}", use_cache=False) for k in range(4))
                )
                os.kill((await pool.health())["workers"][0]["pid"], signal.SIGKILL)
                after = await pool.generate(request, request_id="after", use_cache=False)
        finally:
            await pool.close()
        assert len({r.images[0].data for r in (*made, *both, after)}) == 1

    asyncio.run(main())


PTRACE_SEIZE, PTRACE_INTERRUPT, WAIT_FOR_THREADS = 0x4206, 0x4207, 0x40000000


def stop_process(pid):
    """Stop everything at once, as a debugger or a frozen container does."""
    os.kill(pid, signal.SIGSTOP)


def stop_computing(pid):
    """Stop the threads that compute, and only these: the process goes on to answer.

    What they are is seen from the processor time that they take. A signal would stop all.
    """
    tasks = Path(f"/proc/{pid}/task")

    def used():
        found = {}
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                found[int(task.name)] = int(fields[11]) + int(fields[12])
        return found

    trace = ctypes.CDLL(None, use_errno=True).ptrace
    trace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    before, until = used(), time.monotonic() + 30
    while True:
        time.sleep(0.2)
        worked = {task: ticks - before.get(task, 0) for task, ticks in used().items()}
        if max(worked.values()) >= 10:
            break
        assert time.monotonic() < until
    worked.pop(pid)  # the event loop, which answers
    for task in sorted(worked, key=worked.__getitem__)[-2:]:
        assert trace(PTRACE_SEIZE, task, None, None) == 0, os.strerror(ctypes.get_errno())
        assert trace(PTRACE_INTERRUPT, task, None, None) == 0, os.strerror(ctypes.get_errno())
        threading.Thread(target=see_off, args=(task,), daemon=True).start()


def see_off(task):
    """Take notice of a stopped thread's end: the process is not gone before."""
    with contextlib.suppress(ChildProcessError):
        while not os.WIFSIGNALED(status := os.waitpid(task, WAIT_FOR_THREADS)[1]):
            if os.WIFEXITED(status):
                return


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads are seen and stopped by Linux's means")
@pytest.mark.parametrize("stop", [stop_process, stop_computing])
def test_the_same_bytes_after_a_hang_in_the_middle_of_a_picture(tmp_path, stop):
    options = {
        "models": {"home": str(tmp_path), "placement": {"device": "cpu"}},
        "ready": ["plate"],
    }
    request = GenerationRequest(prompt="a red apple", seed=7, num_inference_steps=40)

    async def main() -> None:
        service = WorkerSupervisor(WorkerConfig(options=options, hang_s=4.0, hang_factor=10.0))
        await service.start()
        try:
            expected = await service.generate(request, request_id="before", use_cache=False)
            hung_at, unready, result = 0.0, False, None
            events = service.stream(request, request_id="hung", use_cache=False)
            first = service._process.pid
            async with asyncio.timeout(600), contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Stepped) and event.step >= 5 and not hung_at:
                        stop(first)
                        hung_at = time.monotonic()
                        while service._process is not None and service._process.pid == first:
                            unready |= not (await service.health())["ready"]
                            await asyncio.sleep(0.05)
                    if isinstance(event, Finished):
                        result = event.result
            took_s = time.monotonic() - hung_at
            print(f"{stop.__name__}: the picture came {took_s:.1f} s after the hang", flush=True)
            assert unready
            assert service.restarts == 1
            assert result.images[0].data == expected.images[0].data
        finally:
            await service.close()

    asyncio.run(main())
