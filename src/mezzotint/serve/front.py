"""Front: where every dialect brings a request of ours.

Checks limits before any work, runs the request on the service, watches for
clients that go away, and keeps what the answer's headers need.
"""

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request

from mezzotint.errors import DeadlineExceeded, InUse, ModelNotAllowed, NotReady
from mezzotint.request import GenerationRequest, Output
from mezzotint.serve.auth import Caller, Meter, SharedMeter
from mezzotint.serve.config import ServeConfig, is_loopback
from mezzotint.serve.errors import ClientGone, Forbidden, TooLarge
from mezzotint.serve.streaming import EventStream, until_gone
from mezzotint.serve.wire import Visit, visit
from mezzotint.service.base import AdapterKeeper, Service
from mezzotint.service.endings import follow
from mezzotint.service.jobs.jobs import Jobs
from mezzotint.techniques.tags import named_by
from mezzotint.types import Event, Finished, GenerationResult, ImageOutput

__all__ = ["Front", "new_id"]

_WATCH_S = 0.05  # after which a client that goes away is noticed
_MODELS_S = 1.0  # age of a list of models that predictions may be looked up in

Observer = Callable[[Event], None]


def new_id(prefix: str) -> str:
    """Return a fresh unguessable id."""
    return f"{prefix}-{secrets.token_hex(12)}"


class Front:
    """What the dialects share.

    Args:
        service: Who does the work.
        config: Limits and listeners.
        jobs: The durable queue, or None where there is none.
        meter: Counts per caller.
        adapters: Keeps what clients bring along; None where the server has no home.
    """

    def __init__(
        self,
        service: Service,
        config: ServeConfig,
        *,
        jobs: Jobs | None = None,
        meter: Meter | None = None,
        adapters: AdapterKeeper | None = None,
    ) -> None:
        self.adapters = adapters
        self.service = service
        self.config = config
        self.jobs = jobs
        self.meter = meter or Meter()
        self.shared = SharedMeter(self.meter, jobs)
        self.draining = False
        self.running = 0
        self._models: tuple[Mapping[str, Any], ...] | None = None
        self._listing: asyncio.Task[tuple[Mapping[str, Any], ...]] | None = None
        self._models_s = 0.0
        self._model_changes = 0
        self.memory: dict[str, Any] = {}  # what a dialect remembers between requests
        self._is_local = all(is_loopback(host) for host, _ in config.listeners().values())

    async def recent_models(self) -> tuple[Mapping[str, Any], ...]:
        """Return the list of models as it was at most a second ago.

        For doors that look a name up before every prediction: the worker need not write
        the whole list for each of them, however many ask while it does. Changes made
        through this server show at once.
        """
        if self._models is not None and time.monotonic() - self._models_s <= _MODELS_S:
            return self._models
        if self._listing is None or self._listing.done():
            self._listing = asyncio.create_task(self._list_models())
        return await asyncio.shield(self._listing)

    async def _list_models(self) -> tuple[Mapping[str, Any], ...]:
        change, now = self._model_changes, time.monotonic()
        models = tuple(await self.service.models())
        if change == self._model_changes:
            self._models, self._models_s = models, now
        return models

    async def free_models(self) -> list[str]:
        """Let every model go from memory that nobody uses; say of each other why it stays.

        For doors whose clients ask for memory and name no model.
        """
        kept: list[str] = []
        for model in await self.service.models():
            if model["ready"] and model["family"] != "handler":
                try:
                    await self.service.unload(f"{model['name']}@{model['version']}")
                except InUse as error:
                    kept.append(str(error))
        self.forget_models()
        return kept

    def forget_models(self) -> None:
        """Ask for the list of models anew: it was changed."""
        self._models = self._listing = None
        self._model_changes += 1

    def admit(self, request: GenerationRequest, caller: Caller) -> None:
        """Refuse what is too much, before any work.

        Raises:
            NotReady: While draining.
            Forbidden: If the caller may not go before others as it wishes to.
            TooLarge: If steps, pictures or pixels exceed the limits.
            ModelNotAllowed: If something is named by path, and the server can be reached
                from other machines or the caller's key may not manage it.
            UnknownName: If a LoRA is another caller's.
        """
        self.check_open()
        if request.priority > caller.priority:
            raise Forbidden(
                f"this key may use a priority of {caller.priority} at most, "
                f"got {request.priority}; the operator may set priority=N in the keys file",
                field="priority",
                value=request.priority,
                allowed=f"at most {caller.priority}",
            )
        limits = self.config.limits
        count = request.num_pictures
        field = "walk.frames" if request.walk else "num_images"
        _limit(field, count, limits.images, "pictures in one request")
        factor = request.upscale.factor if request.upscale else 1.0
        for side in ("width", "height"):
            length = getattr(request, side)
            if length is not None and length * factor > limits.side:
                _limit(side, math.ceil(length * factor), limits.side, "px")
        for one in request.passes():
            _limit(one.steps_field, one.num_inference_steps, limits.steps, "steps")
            if one.width is not None and one.height is not None:
                pixels = round(one.width * one.height * factor * factor)
                what = "pixels in one picture (width x height)"
                _limit(one.size_field, pixels, limits.pixels, what)
        for field, _, name in named_by(request):
            self._check_path(name, field, manages=caller.manages)
        if self.adapters is not None:
            self.adapters.check(request, caller.name, sees_all=caller.manages)

    async def capabilities(self, http: Request) -> dict[str, Any]:
        """Return every name that the caller's requests may use."""
        told = dict(await self.service.capabilities())
        if self.adapters is not None:
            caller: Caller = visit(http).caller
            hidden = self.adapters.hidden_from(caller.name, sees_all=caller.manages)
            told["loras"] = [name for name in told.get("loras", ()) if name not in hidden]
        return told

    def check_open(self) -> None:
        """Refuse new work while draining.

        Raises:
            NotReady: If the server is shutting down.
        """
        if self.draining:
            raise NotReady("the server is shutting down")

    def check_source(self, source: str, field: str) -> None:
        """Refuse to register a path or a Hub id unless the operator allows it.

        Who registers may manage the server; the doors see to that.

        Raises:
            ModelNotAllowed: If ``source`` is more than a name.
        """
        if not self.config.register_paths and _is_path(source):
            raise ModelNotAllowed(
                f"{field} must be a name from the model store: put the file into the folder of "
                "--model-store; by path or Hub id models are registered only where the operator "
                "has set serve.register_paths"
            )
        self._check_path(source, field, manages=True)

    def _check_path(self, name: str, field: str, *, manages: bool) -> None:
        """Refuse a path where it would reach what is not the caller's to read.

        Raises:
            ModelNotAllowed: If ``name`` is more than a name; says why it may not be.
        """
        if not _is_path(name) or (self._is_local and (manages or not self.config.api_keys)):
            return
        why = (
            "this server has keys, so paths are for those that may manage"
            if self._is_local
            else "this server can be reached from other machines, so paths are not allowed"
        )
        raise ModelNotAllowed(f"{field} must be a name from the model store: {why}")

    async def upscale(
        self,
        http: Request,
        data: bytes,
        *,
        factor: float,
        model: str | None,
        cover: tuple[int, int] | None = None,
        crop: bool = False,
    ) -> ImageOutput:
        """Enlarge a picture; it counts as a generation of the caller.

        Raises:
            NotReady: While draining.
            TooManyRequests: If the caller has as much under way as it may have.
            ClientGone: If the connection was closed meanwhile.
            ModelNotAllowed: If ``model`` is a path that the caller may not name.
            MezzotintError: If the picture cannot be enlarged.
        """
        self.check_open()
        caller: Caller = visit(http).caller
        if model is not None:
            self._check_path(model, "upscale.model", manages=caller.manages)
        async with self.counted(caller):
            work = self.service.upscale(
                data,
                factor=factor,
                model=model,
                output=Output(),
                client=caller.name,
                cover=cover,
                crop=crop,
            )
            return await self.watched(http, work)

    @contextlib.asynccontextmanager
    async def counted(self, caller: Caller) -> AsyncGenerator[None]:
        """Count one generation of the caller while the block runs.

        Raises:
            TooManyRequests: If the caller has as many as it may have.
        """
        async with self.shared.generation(caller):
            self.running += 1
            try:
                yield
            finally:
                self.running -= 1

    def event_stream(self, http: Request, events: AsyncIterator[bytes]) -> EventStream:
        """Answer with events, one of the streams that the caller may hold.

        Raises:
            TooManyRequests: If it has as many open as it may have.
        """
        caller: Caller = visit(http).caller
        self.meter.take(caller, "event streams", self.config.limits.streams)
        return EventStream(events, closed=lambda: self.meter.give(caller, "event streams"))

    async def generate(
        self, http: Request, request: GenerationRequest, observe: Observer | None = None
    ) -> GenerationResult:
        """Run a request to its end; a client that goes away cancels it.

        Raises:
            ClientGone: If the connection was closed meanwhile.
            DeadlineExceeded: If it takes longer than anybody may wait.
            MezzotintError: However the request itself ended, if not well.
        """
        if observe is None:
            return await self.watched(http, self._finish(http, request))
        events = self.stream(http, request, preview_every=1)
        return await self.watched(http, follow(events, observe))

    async def _finish(self, http: Request, request: GenerationRequest) -> GenerationResult:
        """Run a request of which nobody watches the way to its end."""
        here = visit(http)
        caller: Caller = here.caller
        self.admit(request, caller)
        here.model = request.model
        async with self.counted(caller):
            result = await self.service.generate(
                request,
                request_id=new_id("gen"),
                client=caller.name,
                use_cache=use_cache(http),
            )
        note(here, result)
        return result

    async def watched(self, http: Request, work: Awaitable[Any]) -> Any:
        """Wait for ``work`` while the client is there and time is left.

        Raises:
            ClientGone: If the connection was closed meanwhile.
            DeadlineExceeded: If it takes longer than anybody may wait.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - called from a task of the server
        has_left, is_over = False, False

        def leave(ended: "asyncio.Future[None]") -> None:
            nonlocal has_left
            if is_over or ended.cancelled():
                return
            has_left = True
            ended.exception()  # however the connection ended, it did
            task.cancel()

        watching: asyncio.Future[None] | None = None

        def watch() -> None:
            nonlocal watching
            watching = asyncio.ensure_future(until_gone(http.receive))
            watching.add_done_callback(leave)

        # Most answers of a small model are there before a task that watches has begun.
        begin = asyncio.get_running_loop().call_later(_WATCH_S, watch)
        limit = asyncio.timeout(self.config.limits.wait_s)
        try:
            async with limit:
                return await work
        except asyncio.CancelledError:
            if has_left and not task.uncancel():
                raise ClientGone("the client closed the connection") from None
            raise
        except TimeoutError:
            if limit.expired():
                waited_s = self.config.limits.wait_s
                raise DeadlineExceeded(f"not done within {waited_s:g} s") from None
            raise
        finally:
            is_over = True  # a call of leave() may be on its way already
            begin.cancel()
            if watching is not None:
                watching.remove_done_callback(leave)
                watching.cancel()

    async def stream(
        self,
        http: Request,
        request: GenerationRequest,
        *,
        preview_every: int = 0,
        quiet: bool = False,
        fresh: bool = False,
    ) -> AsyncGenerator[Event, None]:
        """Run a request and yield its events, ``quiet``ly its ending; closing cancels it.

        A ``fresh`` one is drawn, whatever the cache holds.

        Raises:
            MezzotintError: If the request is refused before it is queued.
        """
        here = visit(http)
        caller: Caller = here.caller
        self.admit(request, caller)
        here.model = request.model
        async with self.counted(caller):
            events = self.service.stream(
                request,
                request_id=new_id("gen"),
                client=caller.name,
                use_cache=use_cache(http) and not fresh,
                preview_every=preview_every,
                quiet=quiet,
            )
            try:
                async for event in events:
                    if isinstance(event, Finished):
                        note(here, event.result)
                    yield event
            finally:
                close = getattr(events, "aclose", None)
                if close is not None:
                    await close()


def use_cache(http: Request) -> bool:
    """Tell whether the client allows a cached answer."""
    words = http.headers.get("cache-control", "").lower()
    return "no-cache" not in words and "no-store" not in words


def note(here: Visit, result: GenerationResult) -> None:
    """Keep what the headers of the answer say about the work."""
    here.cache = result.cache
    here.timings = [image.timings for image in result.images]


def _limit(field: str, value: int | None, most: int, what: str) -> None:
    if value is not None and value > most:
        raise TooLarge(
            f"{field} is too much for this server: got {value}, at most {most} {what}",
            field=field,
            value=value,
            allowed=f"at most {most}",
        )


def _is_path(name: str) -> bool:
    """Whether a name could lead out of the model store, or to the Hub."""
    return "/" in name or "\\" in name or name.startswith((".", "~")) or "\0" in name
