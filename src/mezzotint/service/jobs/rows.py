"""Rows: jobs, their pictures and their events as the store hands them out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "ENDED",
    "EPOCH",
    "Job",
    "JobImage",
    "Lease",
    "Progress",
    "Status",
    "StoredEvent",
    "event_row",
    "read_image",
    "read_job",
]

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
ENDED = ("succeeded", "failed", "cancelled", "expired")
EPOCH = 1_000_000
"""Ids of events that one run has: run ``n`` counts from ``n * EPOCH``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobImage:
    """One finished picture of a job: where it is and what is known about it."""

    index: int
    digest: str
    bytes: int
    about: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One row: a request, its state and, when it ended, how.

    Args:
        runs: How often it was taken to be run; the number of the latest run.
        outcome: ``plan``, ``cache``, ``warnings`` of a success; ``error`` of a
            failure (``type``, ``message``, ``field``).
        note: What the door that took the job keeps with it.
        environment: Digest of what the arithmetic of its first run depended on, None
            before that.
        progress: Steps done and steps in all, as the server that runs it last told.
    """

    id: str
    seq: int
    client: str
    status: Status
    priority: int
    request: str
    body_digest: str
    use_cache: bool
    created: float
    started: float | None
    finished: float | None
    runs: int
    cancel: bool
    outcome: Mapping[str, Any]
    environment: str | None = None
    progress: tuple[int, int] = (0, 0)
    images: tuple[JobImage, ...] = ()
    note: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def lease(self) -> "Lease":
        """What whoever took the job shows with every write."""
        return Lease(self.id, self.runs)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write one run of a job, as long as nobody else took it over."""

    job: str
    run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One event that survives a restart."""

    id: int
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """The latest step of a running job, for servers other than the one that runs it."""

    job: str
    run: int
    event: int
    image: int
    step: int
    steps: int
    preview: bytes | None = field(default=None, repr=False)


def event_row(id_: str, event: StoredEvent) -> dict[str, Any]:
    """Write an event of a job as a row."""
    return {"job": id_, "id": event.id, "kind": event.kind, "data": json.dumps(event.data)}


def read_image(row: Any) -> JobImage:
    """Read a row of the pictures."""
    return JobImage(
        index=row["position"],
        digest=row["digest"],
        bytes=row["bytes"],
        about=json.loads(row["about"]),
    )


def read_job(
    row: Any,
    images: tuple[JobImage, ...],
    note: Mapping[str, Any],
    progress: tuple[int, int] = (0, 0),
) -> Job:
    """Read a row of the jobs."""
    names = (
        "id", "seq", "client", "status", "priority", "request", "body_digest", "use_cache",
        "created", "started", "finished", "runs", "cancel", "environment",
    )  # fmt: skip
    values = {name: row[name] for name in names}
    outcome = json.loads(row["outcome"])
    return Job(**values, outcome=outcome, progress=progress, images=images, note=note)
