"""Exchange: what both clients send and keep, whether they wait or are awaited."""

import contextlib
from collections.abc import Generator, Mapping
from typing import Any, Literal, Protocol

import httpx2

import mezzotint
from mezzotint.client.bodies import read_problem
from mezzotint.errors import Cancelled, DeadlineExceeded, ImageError, NotReady
from mezzotint.types import ImageInput, ImageOutput

__all__ = [
    "POLLS_S",
    "RETRIES_S",
    "Answered",
    "JobState",
    "Status",
    "connection",
    "lost",
    "picture_bytes",
    "reached",
    "request_headers",
]

RETRIES_S = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Waits between attempts to take up a lost connection: a server's restart fits in."""
POLLS_S = (0.02, 0.05, 0.1, 0.2, 0.5)
Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
_CONNECT_S = 10.0
_ENDED = ("succeeded", "failed", "cancelled", "expired")


class Answered(Protocol):
    """What is used of an HTTP answer."""

    @property
    def content(self) -> bytes:
        """The body."""
        ...

    def json(self) -> Any:
        """Return the body as plain data."""
        ...


def connection(url: str, key: str | None, timeout_s: float | None) -> dict[str, Any]:
    """Return what both kinds of connection are opened with."""
    headers = {"user-agent": f"mezzotint/{mezzotint.__version__}"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    timeout = httpx2.Timeout(timeout_s, connect=_CONNECT_S)
    return {"base_url": url, "headers": headers, "timeout": timeout}


def request_headers(
    *, use_cache: bool, events: bool = False, idempotency_key: str | None = None
) -> dict[str, str]:
    """Return the headers of a request for pictures."""
    headers = {"accept": "text/event-stream" if events else "application/json"}
    if not use_cache:
        headers["cache-control"] = "no-cache"
    if idempotency_key is not None:
        headers["idempotency-key"] = idempotency_key
    return headers


def lost(url: str) -> str:
    """Say that a server is out of reach."""
    return f"no connection to {url}: is the server running there?"


def picture_bytes(picture: Any) -> bytes:
    """Return the file of a picture.

    Raises:
        ImageError: If it is none.
    """
    if isinstance(picture, ImageInput | ImageOutput):
        return picture.data
    if isinstance(picture, bytes):
        return picture
    raise ImageError(
        f"expected a picture's file as a path or bytes, got {type(picture).__name__}",
        field="image",
    )


@contextlib.contextmanager
def reached(url: str) -> Generator[None]:
    """Translate what goes wrong on the way to a server.

    Raises:
        DeadlineExceeded: If it was silent for too long.
        NotReady: If it cannot be reached, or the connection was lost.
    """
    try:
        yield
    except httpx2.TimeoutException as error:
        raise DeadlineExceeded(f"{url} did not answer in time: {error}") from None
    except httpx2.TransportError as error:
        raise NotReady(f"{lost(url)} {error}".rstrip()) from None


class JobState:
    """What was last heard of a job.

    Attributes:
        id: The job's id.
        about: All that the server said of it.
        last_event_id: Id of the last event that was seen here, 0 before the first.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.id = str(about["id"])
        self.about = about
        self.last_event_id = 0

    def _hear(self, about: Mapping[str, Any]) -> None:
        self.about = about

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{self.id}"

    @property
    def status(self) -> str:
        """``queued``, ``running``, ``succeeded``, ``failed``, ``cancelled`` or ``expired``."""
        return str(self.about["status"])

    @property
    def position(self) -> int:
        """Jobs before it in the queue."""
        return int(self.about["position"])

    @property
    def eta_s(self) -> float:
        """Seconds predicted to its end."""
        return float(self.about["eta_s"])

    @property
    def is_done(self) -> bool:
        """Whether it had ended when it was last heard of."""
        return self.status in _ENDED

    def raise_for_ending(self) -> None:
        """Do nothing for a job that succeeded.

        Raises:
            MezzotintError: The one way in which the job ended.
        """
        if self.status == "succeeded":
            return
        if "error" in self.about:
            raise read_problem(self.about["error"])
        if self.status == "expired":
            raise DeadlineExceeded(f"the pictures of job {self.id} are no longer kept")
        raise Cancelled(f"job {self.id} was cancelled")

    def __repr__(self) -> str:
        return f"<job {self.id}: {self.status}>"
