"""The client for asyncio: the names of :mod:`mezzotint.client.client`, awaited."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx2

from mezzotint.calls import read_call, read_picture, with_fields
from mezzotint.client.bodies import (
    read_event,
    read_failure,
    read_image,
    read_result,
)
from mezzotint.client.event_stream import EventReader, ServerEvent
from mezzotint.client.exchange import (
    POLLS_S,
    RETRIES_S,
    Answered,
    JobState,
    Status,
    connection,
    lost,
    picture_bytes,
    reached,
    request_headers,
)
from mezzotint.errors import DeadlineExceeded, NotReady
from mezzotint.notebook import is_notebook
from mezzotint.observe.progress import notebook_bar
from mezzotint.request import GenerationRequest
from mezzotint.service.endings import ENDINGS, follow
from mezzotint.service.verification import Verification, compare_files, recipe_request
from mezzotint.types import Event, GenerationResult, ImageFinished, ImageOutput

__all__ = ["AsyncClient", "AsyncClientJob"]


class _Connection:
    """HTTP with one server: its good answers, or what went wrong; awaited.

    Args:
        url: Its address.
        key: API key, where it needs one.
        timeout_s: Seconds without a byte after which an answer is given up, or None.
        options: Of ``httpx2.AsyncClient``.
    """

    def __init__(
        self, url: str, key: str | None, timeout_s: float | None, options: Mapping[str, Any]
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.AsyncClient(**connection(self.url, key, timeout_s), **options)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, method: str, path: str, **given: Any) -> Answered:
        """Send a request and return its good answer.

        Raises:
            MezzotintError: If it is not one.
        """
        with reached(self.url):
            answer = await self._http.request(method, path, **given)
        if answer.status_code >= 400:
            raise read_failure(answer.status_code, answer.headers, answer.content)
        return answer

    @contextlib.asynccontextmanager
    async def open(
        self, method: str, path: str, **given: Any
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Send a request and yield the bytes of its good answer as they come."""
        with reached(self.url):
            async with self._http.stream(method, path, **given) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise read_failure(answer.status_code, answer.headers, answer.content)
                yield answer.aiter_bytes()


class AsyncClient:
    """A server, from asyncio; arguments and errors are those of :class:`mezzotint.Client`.

    Example::

        async with mz.AsyncClient("http://127.0.0.1:8080") as client:
            result = await client.generate("a red apple", seed=7)
            async for event in client.stream("a pear", num_images=4): ...
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        key: str | None = None,
        *,
        timeout_s: float | None = None,
        **options: Any,
    ) -> None:
        self._server = _Connection(url, key, timeout_s, options)
        self.url = self._server.url

    @with_fields
    async def generate(
        self,
        prompt: str | GenerationRequest | None = None,
        /,
        *,
        use_cache: bool = True,
        **fields: Any,
    ) -> GenerationResult:
        """Make pictures and wait for them."""
        request = read_call(prompt, fields)
        if is_notebook():
            with notebook_bar(request.num_pictures) as show:
                return await follow(self.stream(request, use_cache=use_cache), show)
        headers = request_headers(use_cache=use_cache)
        answer = await self._server.ask(
            "POST", "/v1/generations", json=request.to_dict(), headers=headers
        )
        return read_result(answer.json())

    @with_fields
    async def stream(
        self,
        prompt: str | GenerationRequest | None = None,
        /,
        *,
        use_cache: bool = True,
        **fields: Any,
    ) -> AsyncGenerator[Event]:
        """Run a request and yield its events; closing early cancels it."""
        body = read_call(prompt, fields).to_dict()
        headers = request_headers(use_cache=use_cache, events=True)
        id_ = ""
        async with (
            self._server.open("POST", "/v1/generations", json=body, headers=headers) as chunks,
            contextlib.aclosing(_events(chunks)) as events,
        ):
            async for came in events:
                id_ = came.data.get("id", id_)
                event = read_event(came.kind, came.data, id_)
                yield event
                if isinstance(event, ENDINGS):
                    return
        raise NotReady(lost(self.url))

    @with_fields
    async def submit(
        self,
        prompt: str | GenerationRequest | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        use_cache: bool = True,
        **fields: Any,
    ) -> "AsyncClientJob":
        """Leave a request on the server's durable queue."""
        body = read_call(prompt, fields).to_dict()
        headers = request_headers(use_cache=use_cache, idempotency_key=idempotency_key)
        answer = await self._server.ask("POST", "/v1/jobs", json=body, headers=headers)
        return AsyncClientJob(self._server, answer.json())

    async def job(self, id_: str) -> "AsyncClientJob":
        """Find a job by its id."""
        return AsyncClientJob(
            self._server, (await self._server.ask("GET", f"/v1/jobs/{id_}")).json()
        )

    async def jobs(
        self, *, status: Status | None = None, limit: int = 50
    ) -> "list[AsyncClientJob]":
        """List jobs, the newest first."""
        query = {"limit": str(limit)} | ({} if status is None else {"status": status})
        answer = await self._server.ask("GET", "/v1/jobs", params=query)
        return [AsyncClientJob(self._server, about) for about in answer.json()["jobs"]]

    @with_fields
    async def plan(
        self, prompt: str | GenerationRequest | None = None, /, **fields: Any
    ) -> Mapping[str, Any]:
        """Resolve a request without running it: plan, warnings, predicted cost."""
        body = read_call(prompt, fields).to_dict()
        return (await self._server.ask("POST", "/v1/plan", json=body)).json()

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models with their defaults and limits."""
        return tuple((await self.capabilities())["models"])

    async def capabilities(self) -> Mapping[str, Any]:
        """List models, schedulers, gates, limits, and the schema of a request."""
        return (await self._server.ask("GET", "/v1/capabilities")).json()

    async def inspect(self, picture: Any) -> Mapping[str, Any]:
        """Read the recipe in a picture."""
        data = picture_bytes(read_picture(picture, "image"))
        headers = {"content-type": "application/octet-stream"}
        return (await self._server.ask("POST", "/v1/inspect", content=data, headers=headers)).json()

    async def verify(self, picture: Any) -> Verification:
        """Make a picture again from its recipe, and tell whether the file is the same."""
        data = picture_bytes(read_picture(picture, "image"))
        request, index = recipe_request(await self.inspect(data))
        return compare_files(data, request, index, await self.generate(request, use_cache=False))

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncClientJob(JobState):
    """A request on a server's durable queue, as :class:`mezzotint.ClientJob`, awaited."""

    def __init__(self, server: _Connection, about: Mapping[str, Any]) -> None:
        super().__init__(about)
        self._server = server
        self._images: dict[int, ImageOutput] = {}

    async def refresh(self) -> "AsyncClientJob":
        """Ask the server how the job stands."""
        self._hear((await self._server.ask("GET", self._path)).json())
        return self

    async def events(self, *, after: int | None = None) -> AsyncGenerator[Event]:
        """Yield events as they come, the ending last; a lost connection is taken up again.

        Args:
            after: Id of the last event that is known; None goes on where this object was.

        Raises:
            MezzotintError: If the job is unknown, or the server stays out of reach.
        """
        if after is not None:
            self.last_event_id = after
        waits = iter(RETRIES_S)
        while True:
            try:
                headers = {"last-event-id": str(self.last_event_id)}
                async with (
                    self._server.open("GET", f"{self._path}/events", headers=headers) as chunks,
                    contextlib.aclosing(_events(chunks)) as events,
                ):
                    async for came in events:
                        waits = iter(RETRIES_S)
                        event = await self._event(came.kind, came.data)
                        self.last_event_id = came.id
                        yield event
                        if isinstance(event, ENDINGS):
                            return
                problem = NotReady(lost(self._server.url))
            except NotReady as error:
                problem = error
            wait = next(waits, None)
            if wait is None:
                raise problem
            await asyncio.sleep(wait)

    async def result(self, timeout_s: float | None = None) -> GenerationResult:
        """Wait for the end.

        Raises:
            DeadlineExceeded: If it takes longer than ``timeout_s``; it goes on.
            MezzotintError: The one way in which the job ended, if not well.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        waits = iter(POLLS_S)
        while not self.is_done:
            wait = next(waits, POLLS_S[-1])
            if until is not None and time.monotonic() + wait > until:
                raise DeadlineExceeded(f"the job was not done within {timeout_s:g} s; it goes on")
            await asyncio.sleep(wait)
            await self.refresh()
        self.raise_for_ending()
        return read_result(self.about, await self._pictures(self.about["images"]))

    async def cancel(self) -> bool:
        """Cancel at the next step; False if it has ended."""
        was_done = (await self.refresh()).is_done
        self._hear((await self._server.ask("DELETE", self._path)).json())
        return not was_done

    async def _event(self, kind: str, data: Mapping[str, Any]) -> Event:
        if kind == "image":
            return ImageFinished(id=self.id, image=(await self._pictures([data]))[0])
        if kind == "finished":
            self._hear(data)
            return read_event(kind, data, self.id, await self._pictures(data["images"]))
        return read_event(kind, data, self.id)

    async def _pictures(self, abouts: Any) -> tuple[ImageOutput, ...]:
        """Return pictures, those not yet here from the server."""
        for about in abouts:
            if about["index"] not in self._images:
                data = (await self._server.ask("GET", about["url"])).content
                self._images[about["index"]] = read_image(about, data)
        return tuple(self._images[about["index"]] for about in abouts)


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[ServerEvent]:
    """Yield the events in the bytes that come."""
    reader = EventReader()
    async for chunk in chunks:
        for event in reader.feed(chunk):
            yield event
