"""Client: a server's native door with the names that Python has in process.

``mz.Client(url, key).generate("a red apple")`` answers what ``mz.generate`` answers. Neither
torch nor a model is needed here.
"""

import contextlib
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import httpx2

from mezzotint.calls import read_call, read_picture, with_fields
from mezzotint.client.bodies import (
    read_event,
    read_failure,
    read_image,
    read_result,
)
from mezzotint.client.event_stream import EventReader
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
from mezzotint.service.endings import ENDINGS, result_of
from mezzotint.service.verification import Verification, compare_files, recipe_request
from mezzotint.types import Event, GenerationResult, ImageFinished, ImageOutput

__all__ = ["Client", "ClientJob"]


class _Connection:
    """HTTP with one server: its good answers, or what went wrong.

    Args:
        url: Its address.
        key: API key, where it needs one.
        timeout_s: Seconds without a byte after which an answer is given up, or None.
        options: Of ``httpx2.Client``.
    """

    def __init__(
        self, url: str, key: str | None, timeout_s: float | None, options: Mapping[str, Any]
    ) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(**connection(self.url, key, timeout_s), **options)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ask(self, method: str, path: str, **given: Any) -> Answered:
        """Send a request and return its good answer.

        Raises:
            MezzotintError: If it is not one.
        """
        with reached(self.url):
            answer = self._http.request(method, path, **given)
        if answer.status_code >= 400:
            raise read_failure(answer.status_code, answer.headers, answer.content)
        return answer

    @contextlib.contextmanager
    def open(self, method: str, path: str, **given: Any) -> Generator[Iterator[bytes]]:
        """Send a request and yield the bytes of its good answer as they come."""
        with reached(self.url), self._http.stream(method, path, **given) as answer:
            if answer.status_code >= 400:
                answer.read()
                raise read_failure(answer.status_code, answer.headers, answer.content)
            yield answer.iter_bytes()


class Client:
    """A server, from any thread.

    Args:
        url: Its address, e.g. ``http://127.0.0.1:8080``.
        key: API key, where it needs one.
        timeout_s: Seconds without a byte after which an answer is given up; None waits as
            long as a picture takes.
        options: Of ``httpx2.Client``: certificates, proxies, transports.

    Example::

        with mz.Client("http://127.0.0.1:8080") as client:
            client.generate("a red apple", seed=7).images[0].save("apple.png")
            job = client.submit("a pear", num_images=4)
            for event in job.events(): ...
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
    def generate(
        self,
        prompt: str | GenerationRequest | None = None,
        /,
        *,
        use_cache: bool = True,
        **fields: Any,
    ) -> GenerationResult:
        """Make pictures and wait for them.

        Args:
            prompt: What to draw, or a whole request.
            use_cache: Whether a picture that was drawn before will do.
            fields: As of :func:`mezzotint.generate`.

        Raises:
            InvalidRequest: If the request cannot be honoured as it is written.
            MezzotintError: If it was refused, failed, or the server is out of reach.
        """
        request = read_call(prompt, fields)
        if not is_notebook():
            headers = request_headers(use_cache=use_cache)
            answer = self._server.ask(
                "POST", "/v1/generations", json=request.to_dict(), headers=headers
            )
            return read_result(answer.json())
        with notebook_bar(request.num_pictures) as show:
            for event in self.stream(request, use_cache=use_cache):
                show(event)
                result = result_of(event)
                if result is not None:
                    return result
        raise NotReady(lost(self.url))

    @with_fields
    def stream(
        self,
        prompt: str | GenerationRequest | None = None,
        /,
        *,
        use_cache: bool = True,
        **fields: Any,
    ) -> Iterator[Event]:
        """Run a request and yield its events; closing early cancels it.

        Raises:
            MezzotintError: If it is refused, or the connection is lost before its ending.
        """
        body = read_call(prompt, fields).to_dict()
        headers = request_headers(use_cache=use_cache, events=True)
        id_ = ""
        with self._server.open("POST", "/v1/generations", json=body, headers=headers) as chunks:
            reader = EventReader()
            for came in (event for chunk in chunks for event in reader.feed(chunk)):
                id_ = came.data.get("id", id_)
                event = read_event(came.kind, came.data, id_)
                yield event
                if isinstance(event, ENDINGS):
                    return
        raise NotReady(lost(self.url))

    @with_fields
    def submit(
        self,
        prompt: str | GenerationRequest | None = None,
        /,
        *,
        idempotency_key: str | None = None,
        use_cache: bool = True,
        **fields: Any,
    ) -> "ClientJob":
        """Leave a request on the server's durable queue.

        Args:
            prompt: What to draw, or a whole request.
            idempotency_key: The same key with the same request finds the job that it made.
            use_cache: Whether a picture that was drawn before will do.
            fields: As of :func:`mezzotint.generate`.

        Raises:
            MezzotintError: If it is refused.
        """
        body = read_call(prompt, fields).to_dict()
        headers = request_headers(use_cache=use_cache, idempotency_key=idempotency_key)
        answer = self._server.ask("POST", "/v1/jobs", json=body, headers=headers)
        return ClientJob(self._server, answer.json())

    def job(self, id_: str) -> "ClientJob":
        """Find a job by its id.

        Raises:
            MezzotintError: If there is none that the key may see.
        """
        return ClientJob(self._server, self._server.ask("GET", f"/v1/jobs/{id_}").json())

    def jobs(self, *, status: Status | None = None, limit: int = 50) -> "list[ClientJob]":
        """List jobs, the newest first.

        Args:
            status: Only those that stand so.
            limit: At most so many, 1 to 1000.
        """
        query = {"limit": str(limit)} | ({} if status is None else {"status": status})
        answer = self._server.ask("GET", "/v1/jobs", params=query)
        return [ClientJob(self._server, about) for about in answer.json()["jobs"]]

    @with_fields
    def plan(
        self, prompt: str | GenerationRequest | None = None, /, **fields: Any
    ) -> Mapping[str, Any]:
        """Resolve a request without running it: plan, warnings, predicted cost."""
        body = read_call(prompt, fields).to_dict()
        return self._server.ask("POST", "/v1/plan", json=body).json()

    def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models with their defaults and limits."""
        return tuple(self.capabilities()["models"])

    def capabilities(self) -> Mapping[str, Any]:
        """List models, schedulers, gates, limits, and the schema of a request."""
        return self._server.ask("GET", "/v1/capabilities").json()

    def inspect(self, picture: Any) -> Mapping[str, Any]:
        """Read the recipe in a picture.

        Args:
            picture: Its file as a path or bytes, or one that was made here.
        """
        data = picture_bytes(read_picture(picture, "image"))
        headers = {"content-type": "application/octet-stream"}
        return self._server.ask("POST", "/v1/inspect", content=data, headers=headers).json()

    def verify(self, picture: Any) -> Verification:
        """Make a picture again from its recipe, and tell whether the file is the same.

        Args:
            picture: As of :meth:`inspect`.

        Raises:
            InvalidRequest: If it carries no recipe of ours.
        """
        data = picture_bytes(read_picture(picture, "image"))
        request, index = recipe_request(self.inspect(data))
        return compare_files(data, request, index, self.generate(request, use_cache=False))

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ClientJob(JobState):
    """A request on a server's durable queue.

    It outlives this process: ``client.job(id)`` finds it again, and ``events(after=...)``
    goes on after the last event that was seen (``last_event_id``).
    """

    def __init__(self, server: _Connection, about: Mapping[str, Any]) -> None:
        super().__init__(about)
        self._server = server
        self._images: dict[int, ImageOutput] = {}

    def refresh(self) -> "ClientJob":
        """Ask the server how the job stands."""
        self._hear(self._server.ask("GET", self._path).json())
        return self

    def events(self, *, after: int | None = None) -> Iterator[Event]:
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
                with self._server.open("GET", f"{self._path}/events", headers=headers) as chunks:
                    reader = EventReader()
                    for came in (event for chunk in chunks for event in reader.feed(chunk)):
                        waits = iter(RETRIES_S)
                        event = self._event(came.kind, came.data)
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
            time.sleep(wait)

    def result(self, timeout_s: float | None = None) -> GenerationResult:
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
            time.sleep(wait)
            self.refresh()
        self.raise_for_ending()
        return read_result(self.about, self._pictures(self.about["images"]))

    def cancel(self) -> bool:
        """Cancel at the next step; False if it has ended."""
        was_done = self.refresh().is_done
        self._hear(self._server.ask("DELETE", self._path).json())
        return not was_done

    def _event(self, kind: str, data: Mapping[str, Any]) -> Event:
        if kind == "image":
            return ImageFinished(id=self.id, image=self._pictures([data])[0])
        if kind == "finished":
            self._hear(data)
            return read_event(kind, data, self.id, self._pictures(data["images"]))
        return read_event(kind, data, self.id)

    def _pictures(self, abouts: Any) -> tuple[ImageOutput, ...]:
        """Return pictures, those not yet here from the server."""
        for about in abouts:
            if about["index"] not in self._images:
                data = self._server.ask("GET", about["url"]).content
                self._images[about["index"]] = read_image(about, data)
        return tuple(self._images[about["index"]] for about in abouts)
