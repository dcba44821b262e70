"""Refusals: what the durable queue says no to, beyond what any request is refused for."""

from mezzotint.errors import InvalidRequest
from mezzotint.service.jobs.store import Job

__all__ = ["IdempotencyConflict", "same_job"]


class IdempotencyConflict(InvalidRequest):
    """The idempotency key was used before, with another body."""


def same_job(known: Job | None, body_digest: str, key: str) -> Job:
    """Return the job made before, if it was the same request."""
    if known is None or known.body_digest != body_digest:
        raise IdempotencyConflict(
            f"Idempotency-Key {key[:80]!r} was used with another body",
            field="Idempotency-Key",
        )
    return known
