"""Entries: how a coroutine puts a request or a question into a ledger and waits for it."""

import asyncio
import secrets
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from mezzotint.errors import MezzotintError
from mezzotint.observe import spans
from mezzotint.request import GenerationRequest
from mezzotint.service.endings import ENDINGS, result_of
from mezzotint.service.workers.ledger import Call, Ledger, Stream
from mezzotint.service.workers.messages import StreamRequest
from mezzotint.types import Event, GenerationResult

__all__ = ["Ending", "Question", "events_of", "make_stream", "with_seed"]


def with_seed(request: GenerationRequest) -> GenerationRequest:
    """Draw an open seed, so that a second run makes the same picture."""
    return request if request.seed is not None else replace(request, seed=secrets.randbits(32))


def make_stream(
    request: GenerationRequest,
    *,
    request_id: str,
    client: str,
    use_cache: bool,
    preview_every: int,
    quiet: bool,
) -> "tuple[Stream, asyncio.Queue[Event | MezzotintError]]":
    """Return a request as a ledger takes it, and where its events arrive.

    Args:
        request: With a seed.
        request_id: As :meth:`~mezzotint.service.base.GenerationService.stream` has it, as
            have the others.
        client: Who asks.
        use_cache: Whether a finished picture may answer.
        preview_every: A preview with every k-th step.
        quiet: Whether only the beginning and the ending are told.
    """
    events: asyncio.Queue[Event | MezzotintError] = asyncio.Queue()
    message = StreamRequest(
        call=0,
        request=request.canonical(),
        request_id=request_id,
        client=client,
        use_cache=use_cache,
        preview_every=preview_every,
        quiet=quiet,
        trace=spans.carried(),
    )
    return Stream(request_id, message, events.put_nowait), events


async def events_of(
    stream: Stream, events: "asyncio.Queue[Event | MezzotintError]"
) -> AsyncGenerator[Event, None]:
    """Yield the events of a request that a ledger has; leaving early cancels it."""
    ended = False
    try:
        while not ended:
            event = await events.get()
            if isinstance(event, MezzotintError):
                ended = True
                raise event
            ended = isinstance(event, ENDINGS)
            yield event
    finally:  # another ledger may have it by now
        stream.leave(ended)


class Ending:
    """One request in a ledger of which its client hears the ending alone.

    Args:
        ledger: Whose worker makes it.
        request: With a seed.
        request_id: As :meth:`~mezzotint.service.base.GenerationService.generate` has it, as
            have the others.
        client: Who asks.
        use_cache: Whether a finished picture may answer.
    """

    def __init__(
        self,
        ledger: Ledger,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str,
        use_cache: bool,
    ) -> None:
        self._ending: asyncio.Future[GenerationResult]
        self._ending = asyncio.get_running_loop().create_future()
        message = StreamRequest(
            call=0,
            request=request.canonical(),
            request_id=request_id,
            client=client,
            use_cache=use_cache,
            preview_every=0,
            quiet=True,
            ending_only=True,
            trace=spans.carried(),
        )
        self._stream = Stream(request_id, message, self._hear)
        ledger.open(self._stream)

    def _hear(self, event: Event | MezzotintError) -> None:
        if self._ending.done():
            return
        try:
            if isinstance(event, MezzotintError):
                raise event
            result = result_of(event)
        except MezzotintError as error:
            self._ending.set_exception(error)
        else:
            if result is not None:
                self._ending.set_result(result)

    async def wait(self) -> GenerationResult:
        """Return the result; leaving early cancels the request.

        Raises:
            MezzotintError: The one way in which it ended, if not well.
        """
        try:
            return await self._ending
        finally:
            has_ended = self._ending.done() and not self._ending.cancelled()
            if has_ended:
                self._ending.exception()  # whoever waited may have been cancelled just now
            self._stream.leave(has_ended)


class Question:
    """One plain call in a ledger.

    Args:
        ledger: Whose worker is asked.
        method: Of the service port.
        arguments: As plain data.
    """

    def __init__(self, ledger: Ledger, method: str, arguments: dict[str, Any]) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._ledger = ledger
        self._call: Call = ledger.ask(method, arguments, self._hear)

    def _hear(self, answer: Any) -> None:
        if self.answer.done():
            return
        if isinstance(answer, MezzotintError):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)

    def close(self) -> None:
        """Forget the call; one that nobody waits for any more is stopped there."""
        self._ledger.forget(self._call, stop=not self.answer.done() or self.answer.cancelled())
        if self.answer.done() and not self.answer.cancelled():
            self.answer.exception()  # nobody waits for it any more

    async def wait(self) -> Any:
        """Return the answer as plain data.

        Raises:
            MezzotintError: What the method raised, or why there is no answer.
        """
        try:
            return await self.answer
        finally:
            self.close()
