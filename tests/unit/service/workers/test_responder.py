"""Responder: the trace that a client began goes on in the process that draws."""

import asyncio

from opentelemetry import trace

from mezzotint.observe import spans
from mezzotint.request import GenerationRequest
from mezzotint.service.fake import FakeService
from mezzotint.service.workers.entries import make_stream
from mezzotint.service.workers.ledger import Ledger
from mezzotint.service.workers.messages import ToWorker
from mezzotint.service.workers.responder import Responder
from mezzotint.service.workers.transport import encode, unpack

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
