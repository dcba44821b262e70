"""Responder: traces go on in the process that draws; who hears an ending alone has no task."""

import asyncio
import os

import pytest
from opentelemetry import trace

from mezzotint import errors
from mezzotint.observe import spans
from mezzotint.request import GenerationRequest
from mezzotint.service.fake import FakeService
from mezzotint.service.workers import recorder
from mezzotint.service.workers.entries import Ending, make_stream
from mezzotint.service.workers.ledger import Ledger
from mezzotint.service.workers.messages import ToWorker
from mezzotint.service.workers.recorder import Recorder, make_memory, read_memory
from mezzotint.service.workers.responder import Responder
from mezzotint.service.workers.transport import encode, unpack
from mezzotint.types import Cancelled, Finished, GenerationResult

TRACE = "0af7651916cd43dd8448eb211c80319c"
HEADERS = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


class Traced(FakeService):
    """Remembers which trace each request belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    async def stream(self, request, **more):
        self.seen.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")
        async for event in super().stream(request, **more):
            yield event


def test_a_trace_goes_on_in_the_process_that_draws(monkeypatch):
    monkeypatch.setattr(spans, "_is_traced", lambda: True)  # as with an exporter installed
    request = GenerationRequest(prompt="a", seed=1, num_inference_steps=2)
    service = Traced()

    async def main() -> None:
        told = []

        async def hear(message) -> None:
            told.append(message)

        responder = Responder(service, hear)
        ledger = Ledger(lambda m: responder.take(unpack(encode(m), ToWorker)), max_crashes=1)
        ledger.begin()
        with spans.remote_parent(HEADERS):
            stream, _ = make_stream(
                request, request_id="r", client="", use_cache=True, preview_every=0, quiet=False
            )
        ledger.open(stream)
        async with asyncio.timeout(20):
            while responder.count or not told:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert service.seen == [TRACE]


class AtOnce(FakeService):
    """Takes requests of a few pictures in the turn in which they come."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = {}
        self.begins = {}
        self.cancelled = []

    def begin(self, request, hear, *, request_id, client, use_cache, began):
        if request.prompt == "bad":
            raise errors.InvalidRequest("no", field="prompt")
        if request.num_images > 1:
            return None
        self.begins[request_id] = began
        if not request.prompt.startswith("later"):
            began()
        self.heard[request_id] = hear
        return lambda: self.cancelled.append(request_id)


def test_an_image_that_begins_after_its_request_has_ended_keeps_no_place_of_the_recorder(
    monkeypatch,
):
    monkeypatch.setattr(recorder, "_PLACES", 1)
    service, told = AtOnce(), []

    async def main(memory) -> None:
        async def hear(message) -> None:
            told.append(message)

        responder = Responder(service, hear, post=told.append, recorder=Recorder(memory))
        ledger = Ledger(responder.take, max_crashes=1)
        ledger.begin()
        for name in ("later 1", "later 2"):
            request = GenerationRequest(prompt=name, seed=1)
            Ending(ledger, request, request_id=name, client="", use_cache=True)
            service.heard[name](Cancelled(id=name))
            service.begins[name]()
            assert read_memory(memory).drawn == set()
        request = GenerationRequest(prompt="good", seed=1)
        Ending(ledger, request, request_id="good", client="", use_cache=True)
        assert read_memory(memory).drawn == {3}

    memory = make_memory()
    asyncio.run(main(memory))
    os.close(memory)


def test_a_request_whose_ending_is_enough_is_taken_without_a_task_and_written_down():
    service, told = AtOnce(), []

    async def main(memory) -> None:
        async def hear(message) -> None:
            told.append(message)

        responder = Responder(service, hear, post=told.append, recorder=Recorder(memory))
        ledger = Ledger(responder.take, max_crashes=1)
        ledger.begin()

        def ask(name, **more):
            request = GenerationRequest(**{"prompt": name, "seed": 1, **more})
            return Ending(ledger, request, request_id=name, client="", use_cache=True)

        def hand_on():
            while told:
                ledger.take(told.pop(0))

        good, bad, late = ask("good"), ask("bad"), ask("late")
        assert read_memory(memory).drawn == {1, 3}
        assert (read_memory(memory).planning, responder.count) == (set(), 2)
        service.heard["good"](Finished(id="good", result=GenerationResult(id="good", images=())))
        service.heard["late"](errors.QueueFull("full"))
        assert (read_memory(memory).drawn, responder.count) == (set(), 0)
        hand_on()
        assert (await good.wait()).id == "good"
        with pytest.raises(errors.InvalidRequest):
            await bad.wait()
        with pytest.raises(errors.QueueFull):
            await late.wait()

        left = asyncio.create_task(ask("left").wait())
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.wait([left])
        assert service.cancelled == ["left"]

        several = ask("several", num_images=2)  # which takes a task
        assert read_memory(memory).planning == set()
        async with asyncio.timeout(20):
            while responder.count > 1:  # "left" is not told that it was cancelled
                await asyncio.sleep(0.01)
        hand_on()
        assert len((await several.wait()).images) == 2
        assert read_memory(memory).planning == set()

    memory = make_memory()
    try:
        asyncio.run(main(memory))
    finally:
        os.close(memory)
