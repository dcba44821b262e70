"""The supervised process: starts that fail, silence, deaths, endings."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from mezzotint import errors
from mezzotint.images.png import encode_png
from mezzotint.request import GenerationRequest
from mezzotint.service.config import WorkerConfig
from mezzotint.service.fake import FakeService
from mezzotint.service.workers.supervisor import WorkerSupervisor
from mezzotint.types import Finished, ImageFinished, Started

FAKE = "mezzotint.service.fake:create_fake"


def using(body: Callable[[WorkerSupervisor], Awaitable[None]], **config: Any) -> None:
    async def main() -> None:
        service = WorkerSupervisor(WorkerConfig(**{"factory": FAKE, "backoff_s": 0.02, **config}))
        await service.start()
        try:
            await body(service)
        finally:
            await service.close()

    asyncio.run(main())


@pytest.mark.parametrize("factory", ["nowhere:create", "mezzotint.service.fake:nothing", "text"])
def test_a_factory_that_does_not_exist_is_said_at_once(factory):
    async def main() -> None:
        service = WorkerSupervisor(WorkerConfig(factory=factory))
        with pytest.raises(errors.InvalidRequest, match="factory"):
            await service.start()
        await service.close()

    asyncio.run(main())


def test_nothing_is_taken_before_the_first_start_and_health_answers_without_waiting():
    async def main() -> None:
        service = WorkerSupervisor(WorkerConfig(factory=FAKE))
        await service.start(wait=False)
        assert (await service.health())["ready"] is False
        with pytest.raises(errors.NotReady, match="loading"):
            await service.generate(GenerationRequest(), request_id="r")
        await service.wait_ready()
        assert (await service.health())["ready"] is True
        await service.close()

    asyncio.run(main())


def test_a_death_is_invisible_to_whoever_listens(tmp_path):
    async def body(service: WorkerSupervisor) -> None:
        request = GenerationRequest(prompt="boom", seed=1, num_images=3, num_inference_steps=4)
        events = []
        async for event in service.stream(request, request_id="r"):
            events.append(event)
        assert service.restarts == 1
        assert sum(isinstance(e, Started) for e in events) == 1
        images = [e.image for e in events if isinstance(e, ImageFinished)]
        assert [i.index for i in images] == [0, 1, 2]
        assert isinstance(events[-1], Finished)
        alone = await FakeService().generate(request, request_id="x")
        assert [i.data for i in images] == [i.data for i in alone.images]

    using(body, options={"crashes": {"boom": str(tmp_path / "marker")}, "step_s": 0.01})


def test_an_open_seed_stays_what_it_was_over_a_death(tmp_path):
    async def body(service: WorkerSupervisor) -> None:
        request = GenerationRequest(prompt="boom")
        made = (await service.generate(request, request_id="r")).images[0]
        again = GenerationRequest(prompt="boom", seed=made.seed)
        assert (await service.generate(again, request_id="s")).images[0].data == made.data

    using(body, options={"crashes": {"boom": str(tmp_path / "marker")}})


def test_a_silent_process_is_killed_and_its_work_done_again(tmp_path):
    async def body(service: WorkerSupervisor) -> None:
        result = await service.generate(GenerationRequest(prompt="hang", seed=3), request_id="r")
        assert result.images[0].seed == 3
        assert service.restarts == 1

    using(body, options={"hangs": {"hang": str(tmp_path / "marker")}}, silence_s=1.0)


def test_a_worker_whose_device_call_stalls_is_not_ready_and_its_work_is_done_again(tmp_path):
    seen: list[bool] = []

    async def body(service: WorkerSupervisor) -> None:
        request = GenerationRequest(prompt="stall", seed=3)
        began = time.monotonic()
        task = asyncio.create_task(service.generate(request, request_id="r"))
        while not task.done():
            seen.append((await service.health())["ready"])
            await asyncio.sleep(0.05)
        assert time.monotonic() - began < 20
        assert service.restarts == 1
        assert (await FakeService().generate(request, request_id="x")).images[0].data == (
            task.result().images[0].data
        )

    stalls = {"stall": str(tmp_path / "marker")}
    using(body, options={"stalls": stalls, "step_s": 0.01}, hang_s=2.0)
    assert seen[0] is True
    assert False in seen


@pytest.mark.skipif(sys.platform != "linux", reason="who works is read from /proc")
def test_a_stopped_process_is_killed_long_before_it_was_silent_for_silence_s():
    async def body(service: WorkerSupervisor) -> None:
        request = GenerationRequest(prompt="long", seed=1, num_inference_steps=100)
        task = asyncio.create_task(service.generate(request, request_id="r"))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        os.kill(service._process.pid, signal.SIGSTOP)
        result = await task
        assert 1.0 < time.monotonic() - began < 20
        assert service.restarts == 1
        assert result.images[0].data == (
            (await FakeService().generate(request, request_id="x")).images[0].data
        )

    using(body, options={"step_s": 0.01}, hang_s=1.5)


def test_a_request_whose_planning_kills_the_process_fails_and_the_others_live():
    async def body(service: WorkerSupervisor) -> None:
        good = [GenerationRequest(prompt=f"good {k}", seed=k) for k in range(3)]
        poison = GenerationRequest(prompt="poison")
        async with asyncio.timeout(60):
            ended = await asyncio.gather(
                *(service.generate(r, request_id=r.prompt) for r in (*good, poison)),
                return_exceptions=True,
            )
        assert isinstance(ended[-1], errors.WorkFailed)
        assert str(ended[-1]) == "the engine died 3 times while it ran this request"
        assert service.restarts == 3
        assert [type(r).__name__ for r in ended[:-1]] == ["GenerationResult"] * 3

    using(body, options={"crash_planning": "poison", "step_s": 0.05}, max_crashes=3)


def test_a_poisonous_request_fails_and_plain_calls_are_repeated():
    async def body(service: WorkerSupervisor) -> None:
        with pytest.raises(errors.WorkFailed, match="died 2 times"):
            await service.generate(GenerationRequest(prompt="poison"), request_id="r")
        assert len(await service.models()) == 2

    using(body, options={"always_crash": "poison"}, max_crashes=2)


def test_a_picture_whose_reading_kills_the_process_twice_is_refused():
    async def body(service: WorkerSupervisor) -> None:
        picture = encode_png(np.zeros((8, 8, 3), np.uint8), {"parameters": "poison"})
        with pytest.raises(errors.WorkFailed, match="died 2 times while it answered inspect"):
            await asyncio.wait_for(service.inspect(picture), 30)
        assert service.restarts == 2
        assert len(await service.models()) == 2

    using(body, options={"always_crash": "poison"}, max_crashes=8)


def test_who_runs_beside_a_poisonous_request_lives_and_keeps_its_bytes():
    async def body(service: WorkerSupervisor) -> None:
        good = [GenerationRequest(prompt=f"good {k}", seed=k) for k in range(3)]
        poison = GenerationRequest(prompt="poison")
        ended = await asyncio.gather(
            *(service.generate(r, request_id=r.prompt) for r in (*good, poison)),
            return_exceptions=True,
        )
        assert isinstance(ended[-1], errors.WorkFailed)
        assert service.restarts == 3
        alone = [await FakeService().generate(r, request_id=r.prompt) for r in good]
        assert [r.images[0].data for r in ended[:-1]] == [r.images[0].data for r in alone]

    # the poison kills while the others, who need longer, have begun
    using(body, options={"always_crash": "poison", "step_s": 0.05}, max_crashes=3)


def test_one_that_waits_its_turn_after_a_death_can_be_cancelled():
    async def body(service: WorkerSupervisor) -> None:
        requests = [GenerationRequest(prompt=p, seed=1) for p in ("poison", "a", "b")]
        tasks = [asyncio.create_task(service.generate(r, request_id=r.prompt)) for r in requests]
        while not any(s.is_held for s in service.ledger):
            await asyncio.sleep(0.005)
        assert await service.cancel("b") is True
        with pytest.raises(errors.Cancelled):
            await tasks[2]
        assert (await tasks[1]).images[0].seed == 1
        with pytest.raises(errors.WorkFailed):
            await tasks[0]

    using(body, options={"always_crash": "poison", "step_s": 0.05}, max_crashes=4)


def test_the_second_restart_in_a_row_waits_and_each_later_one_twice_as_long(monkeypatch):
    slept, pauses = asyncio.sleep, []

    async def sleep(seconds: float) -> None:
        if seconds >= 7.0:
            pauses.append(seconds)
        await slept(0 if seconds >= 7.0 else seconds)

    async def body(service: WorkerSupervisor) -> None:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        for expected in ([], [7.0], [7.0, 14.0]):
            before = service.restarts
            os.kill(service._process.pid, signal.SIGKILL)
            while service.restarts == before or not service.ledger.is_up:
                await slept(0.005)
            assert pauses == expected

    using(body, backoff_s=7.0)


def test_cancel_while_the_process_restarts_is_a_cancel():
    async def body(service: WorkerSupervisor) -> None:
        request = GenerationRequest(prompt="long", num_inference_steps=1000)
        task = asyncio.create_task(service.generate(request, request_id="r"))
        await asyncio.sleep(0.2)
        os.kill(service._process.pid, signal.SIGKILL)
        while service.ledger.is_up:
            await asyncio.sleep(0.005)
        assert await service.cancel("r") is True
        with pytest.raises(errors.Cancelled):
            await task

    using(body, options={"step_s": 0.01}, backoff_s=1.0)


def test_the_process_ends_with_its_parent_and_after_close():
    pids: list[int] = []

    async def body(service: WorkerSupervisor) -> None:
        pids.append(service._process.pid)

    using(body)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.kill(pids[0], 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlived its service")
