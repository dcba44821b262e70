"""Intake: how requests of an event loop reach the dispatcher, and what they hear of it."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from mezzotint.request import GenerationRequest
from mezzotint.service.dispatch.dispatcher import Dispatcher
from mezzotint.service.dispatch.mailbox import EventMailbox
from mezzotint.service.endings import ENDINGS
from mezzotint.service.preparing import Preparer
from mezzotint.service.provision.fair_threads import FairThreads
from mezzotint.techniques.table import TECHNIQUES
from mezzotint.types import Event, Queued, Started

__all__ = ["Intake"]

_FEW_PICTURES = 8  # whose plans are made in less than a millisecond or two
_SHORT_TEXT = 2000  # characters of which that is true


class Intake:
    """Takes the requests of one event loop at a time.

    Args:
        preparer: Plans them.
        dispatcher: Takes them.
        threads: Where what takes long is planned.
        is_loaded: Tells which models are in memory; None if every plan takes a thread.
        at_once: Whether what is short may be taken in the loop: not where a signal may raise
            there.
    """

    def __init__(
        self,
        preparer: Preparer,
        dispatcher: Dispatcher,
        threads: FairThreads,
        *,
        is_loaded: Callable[[str], bool] | None,
        at_once: bool,
    ) -> None:
        self._preparer = preparer
        self._dispatcher = dispatcher
        self._threads = threads
        self._is_loaded = is_loaded
        self._at_once = at_once
        self._mailbox: EventMailbox | None = None

    async def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str,
        use_cache: bool,
        preview_every: int,
        quiet: bool,
    ) -> AsyncGenerator[Event, None]:
        """Run one request and yield its events; closing early cancels it."""
        mailbox = self._event_mailbox()
        events: asyncio.Queue[Event | BaseException] = asyncio.Queue()

        def sink(event: Event) -> None:
            if not quiet or isinstance(event, (Queued, Started, *ENDINGS)):
                mailbox.put(events.put_nowait, event)

        def hear(answer: "Future[float]") -> None:
            if (error := answer.exception()) is not None:
                mailbox.put(events.put_nowait, error)

        ask = partial(
            self._preparer.prepare,
            request,
            sink,
            request_id=request_id,
            client=client,
            use_cache=use_cache,
            preview_every=preview_every,
        )
        with self._threads.drawing(client):
            is_short = self._is_planned_at_once(request)
            submission = ask() if is_short else await self._threads.run(client, ask)
            answer = self._dispatcher.accept(submission, at_once=self._at_once)
            answer.add_done_callback(hear)
            is_over = False
            try:
                while not is_over:
                    event = await events.get()
                    if isinstance(event, BaseException):
                        is_over = True
                        raise event
                    is_over = isinstance(event, ENDINGS)
                    yield event
            finally:
                if not is_over and not _was_refused(answer):
                    self._dispatcher.cancel(request_id)

    def begin(
        self,
        request: GenerationRequest,
        hear: Callable[[Event | BaseException], None],
        *,
        request_id: str,
        client: str,
        use_cache: bool,
        began: Callable[[], None],
    ) -> Callable[[], None] | None:
        """Take a request at once; see :class:`~mezzotint.service.base.BeginsAtOnce`."""
        if not self._at_once or not self._is_planned_at_once(request):
            return None
        mailbox = self._event_mailbox()
        under_way = contextlib.ExitStack()
        is_over = False

        def end(ending: Any) -> None:
            nonlocal is_over
            is_over = True
            under_way.close()
            hear(ending)

        def sink(event: Event) -> None:
            if isinstance(event, ENDINGS):
                mailbox.put(end, event)

        def refuse(answer: "Future[float]") -> None:
            if (error := answer.exception()) is not None:
                mailbox.put(end, error)

        with contextlib.ExitStack() as until_taken:
            until_taken.enter_context(self._threads.drawing(client))
            submission = self._preparer.prepare(
                request, sink, request_id=request_id, client=client, use_cache=use_cache,
                began=began,
            )  # fmt: skip
            under_way = until_taken.pop_all()
        answer = self._dispatcher.accept(submission, at_once=True)
        answer.add_done_callback(refuse)

        def cancel() -> None:
            if not is_over and not _was_refused(answer):
                self._dispatcher.cancel(request_id)

        return cancel

    def _event_mailbox(self) -> EventMailbox:
        """Return what brings events into the running loop."""
        loop = asyncio.get_running_loop()
        mailbox = self._mailbox
        if mailbox is None or mailbox.loop is not loop:
            mailbox = self._mailbox = EventMailbox(loop)
            if self._at_once:
                self._dispatcher.attend(loop)
        return mailbox

    def _is_planned_at_once(self, request: GenerationRequest) -> bool:
        """Whether planning takes less than handing it to a thread: no file is read for it."""
        text = len(request.prompt) + len(request.negative_prompt)
        is_short = request.num_pictures <= _FEW_PICTURES and text <= _SHORT_TEXT
        if self._is_loaded is None or not is_short:
            return False
        has_files = request.gates or any(
            technique.is_asked(request) for technique in TECHNIQUES if not technique.is_light
        )
        return not has_files and self._is_loaded(request.model)


def _was_refused(answer: "Future[float]") -> bool:
    """Whether a request was not taken: its id may be somebody else's."""
    return answer.done() and answer.exception() is not None
