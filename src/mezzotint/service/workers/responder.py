"""Responder: a service at the far end of messages, wherever they come from.

A worker process has one, for its parent; a replica in a cluster has one for each front.
"""

import asyncio
import dataclasses
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson

from mezzotint.errors import InvalidRequest, MezzotintError
from mezzotint.observe import log, metrics, spans
from mezzotint.plain import read
from mezzotint.request import GenerationRequest, Output
from mezzotint.service.base import BeginsAtOnce, Service
from mezzotint.service.descriptions import describe_error
from mezzotint.service.endings import ENDINGS
from mezzotint.service.workers.messages import (
    Answered,
    CallFailed,
    CallMethod,
    Cancel,
    FromWorker,
    StreamEnded,
    StreamRequest,
    ToWorker,
    write_event,
)
from mezzotint.service.workers.recorder import Recorder
from mezzotint.types import Event, Failed, ImageFinished, ImageOutput

__all__ = ["Responder", "build"]


async def build(factory: str, options: Mapping[str, Any]) -> Service:
    """Call the factory ``module:function`` with its options.

    Raises:
        InvalidRequest: If there is no such function.
    """
    module, _, name = factory.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"worker.factory {factory!r}: {error}", field="factory") from None
    made = function(options)
    return await made if inspect.isawaitable(made) else made


class Responder:
    """Runs what messages ask of a service, and sends what comes of it.

    Args:
        service: Who does it.
        send: Takes each message of the answer.
        post: Takes a message there and then; with it and a recorder, a request of which the
            ending is enough is taken in the loop, without a task, if the service can.
        recorder: Where it is written down who is being planned and drawn.
    """

    def __init__(
        self,
        service: Service,
        send: Callable[[FromWorker], Awaitable[None]],
        *,
        post: Callable[[FromWorker], None] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._service = service
        self._at_once = service if isinstance(service, BeginsAtOnce) else None
        self._send = send
        self._post = post
        self._recorder = recorder
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._begun: dict[int, Callable[[], None]] = {}  # what cancels each

    @property
    def count(self) -> int:
        """Requests and questions under way."""
        return len(self._tasks) + len(self._begun)

    def close(self) -> None:
        """End everything that is under way."""
        for task in list(self._tasks.values()):
            task.cancel()
        for cancel in list(self._begun.values()):
            cancel()

    def take(self, message: ToWorker) -> None:
        """Start, or end, the work that a message is about."""
        call = message.call
        if isinstance(message, Cancel):
            if call in self._tasks:
                self._tasks[call].cancel()
            elif call in self._begun:
                self._begun[call]()
            return
        if isinstance(message, StreamRequest) and message.ending_only and self._begin(message):
            return
        is_stream = isinstance(message, StreamRequest)
        work = self._stream(message) if is_stream else self._answer(message)
        task = self._tasks[call] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(call, None))

    def _begin(self, message: StreamRequest) -> bool:
        """Take a request of which the ending is enough; False if it needs a task."""
        post, recorder, call = self._post, self._recorder, message.call
        service = self._at_once
        if service is None or post is None or recorder is None or message.trace:
            return False

        is_over = False

        def hear(ending: Event | BaseException) -> None:
            nonlocal is_over
            is_over = True
            self._begun.pop(call, None)
            recorder.end(call)
            if isinstance(ending, BaseException):
                post(_describe_failure(call, ending))
            else:
                _log_failure(ending)
                post(write_event(call, ending))

        def draw() -> None:  # in the device thread, where an image may begin that was given up
            recorder.draw(call)
            if is_over:
                recorder.end(call)

        recorder.plan_here(call)
        try:
            cancel = service.begin(
                GenerationRequest.from_dict(orjson.loads(message.request)),
                hear,
                request_id=message.request_id,
                client=message.client,
                use_cache=message.use_cache,
                began=draw,
            )
        except Exception as error:  # the border to the other process: sent as it is
            post(_describe_failure(call, error))
            return True
        finally:
            recorder.plan_here(0)
        if cancel is not None:
            self._begun[call] = cancel
        return cancel is not None

    async def _stream(self, message: StreamRequest) -> None:
        """Run one request and send its events."""
        with spans.remote_parent(message.trace), spans.span("request", id=message.request_id):
            await self._run(message)

    async def _run(self, message: StreamRequest) -> None:
        call = message.call
        recorder = self._recorder if message.ending_only else None
        if recorder is not None:
            recorder.plan(call)
        try:
            request = GenerationRequest.from_dict(orjson.loads(message.request))
            events = self._service.stream(
                request,
                request_id=message.request_id,
                client=message.client,
                use_cache=message.use_cache,
                preview_every=message.preview_every,
                quiet=message.quiet,
            )
            sent: dict[int, ImageOutput] = {}
            has_ended = False
            try:
                async for event in events:
                    told = write_event(call, event, sent)
                    if isinstance(event, ImageFinished):
                        sent[event.image.index] = event.image
                    _log_failure(event)
                    if recorder is not None:  # of those who have a task all else is told
                        recorder.end(call)
                    await self._send(told)
                    has_ended = isinstance(event, ENDINGS)
            finally:
                close = getattr(events, "aclose", None)
                if close is not None:
                    await close()
            if not has_ended:  # after an ending nobody listens any more
                await self._send(StreamEnded(call=call))
        except Exception as error:  # the border to the other process: sent as it is
            await self._send(_describe_failure(call, error))
        finally:
            if recorder is not None:
                recorder.end(call)

    async def _answer(self, message: CallMethod) -> None:
        """Run one call and send its answer."""
        try:
            value = await self.call(message.method, message.arguments)
            await self._send(Answered(call=message.call, value=value))
        except Exception as error:  # the border to the other process: sent as it is
            await self._send(_describe_failure(message.call, error))

    async def call(self, method: str, given: dict[str, Any]) -> Any:
        """Call one method of the service with plain arguments."""
        service = self._service
        if method == "plan":
            request = GenerationRequest.from_dict(orjson.loads(given["request"]))
            return dict(await service.plan(request, client=given["client"]))
        if method == "health":
            health = dict(await service.health())
            if "metrics_text" not in health:
                health["metrics_text"] = metrics.render().decode()
            return health
        if method == "upscale":
            output = read(Output, given.pop("output"))
            cover = given.pop("cover")
            given["cover"] = tuple(cover) if cover else None
            image = await service.upscale(**given, output=output)
            return dataclasses.replace(image, pixels=None)
        if method == "grid":
            output = read(Output, given.pop("output"))
            return await service.grid(**given, output=output)
        if method == "handle":
            answers = await service.handle(**given)
            return [dataclasses.asdict(answer) for answer in answers]
        if method == "close":
            await service.close()
            return None
        simple = {
            "capabilities": service.capabilities,
            "cancel": service.cancel,
            "register": service.register,
            "unregister": service.unregister,
            "set_default": service.set_default,
            "load": service.load,
            "unload": service.unload,
            "inspect": service.inspect,
            "preprocess": service.preprocess,
        }
        if method == "models":
            return [dict(model) for model in await service.models()]
        return await simple[method](**given)


def _describe_failure(call: int, error: BaseException) -> CallFailed:
    """Return what a call raised as a message; what is a bug of ours is logged here."""
    if not isinstance(error, MezzotintError):
        log.error("worker.failed", exception=error)
    return CallFailed(call=call, error=describe_error(error))


def _log_failure(event: Event) -> None:
    """Log an ending that is a bug of ours: the other side hears of it in plain words."""
    if isinstance(event, Failed) and not isinstance(event.error, MezzotintError):
        log.error("worker.failed", exception=event.error)
