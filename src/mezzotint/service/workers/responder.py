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
from mezzotint.service.base import Service
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
from mezzotint.types import Failed, ImageFinished, ImageOutput

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
    """

    def __init__(self, service: Service, send: Callable[[FromWorker], Awaitable[None]]) -> None:
        self._service = service
        self._send = send
        self._tasks: dict[int, asyncio.Task[None]] = {}

    @property
    def count(self) -> int:
        """Requests and questions under way."""
        return len(self._tasks)

    def close(self) -> None:
        """End everything that is under way."""
        for task in list(self._tasks.values()):
            task.cancel()

    def take(self, message: ToWorker) -> None:
        """Start, or end, the work that a message is about."""
        call = message.call
        if isinstance(message, Cancel):
            if call in self._tasks:
                self._tasks[call].cancel()
            return
        is_stream = isinstance(message, StreamRequest)
        work = self._stream(message) if is_stream else self._answer(message)
        task = self._tasks[call] = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(call, None))

    async def _stream(self, message: StreamRequest) -> None:
        """Run one request and send its events."""
        with spans.remote_parent(message.trace), spans.span("request", id=message.request_id):
            await self._run(message)

    async def _run(self, message: StreamRequest) -> None:
        call = message.call
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
                    if isinstance(event, Failed) and not isinstance(event.error, MezzotintError):
                        log.error("worker.failed", exception=event.error)
                    await self._send(told)
                    has_ended = isinstance(event, ENDINGS)
            finally:
                close = getattr(events, "aclose", None)
                if close is not None:
                    await close()
            if not has_ended:  # after an ending nobody listens any more
                await self._send(StreamEnded(call=call))
        except Exception as error:  # the border to the other process: sent as it is
            await self._fail(call, error)

    async def _answer(self, message: CallMethod) -> None:
        """Run one call and send its answer."""
        try:
            value = await self.call(message.method, message.arguments)
            await self._send(Answered(call=message.call, value=value))
        except Exception as error:  # the border to the other process: sent as it is
            await self._fail(message.call, error)

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
            "models": service.models,
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
        value = await simple[method](**given)
        return [dict(m) for m in value] if method == "models" else value

    async def _fail(self, call: int, error: BaseException) -> None:
        if not isinstance(error, MezzotintError):
            log.error("worker.failed", exception=error)
        await self._send(CallFailed(call=call, error=describe_error(error)))
