"""Expiry: what is kept of jobs goes when it is old, or when there is too much of it."""

from collections.abc import Iterator

import sqlalchemy as sa

from mezzotint.service.jobs.clock import now
from mezzotint.service.jobs.schema import EVENTS, IMAGES, JOBS, NOTES, SERVERS, WEBHOOKS

__all__ = ["expire"]

_MOST_NAMES = 1000  # parameters of one statement; SQLite takes 32,766, PostgreSQL 65,535


def expire(db: sa.Connection, *, max_age_s: float, max_bytes: int) -> list[str]:
    """Expire old finished jobs and the oldest beyond ``max_bytes``, in a transaction.

    Returns:
        Digests of pictures that no job refers to any more.
    """
    cut = db.execute(sa.select(now())).scalar_one() - max_age_s
    ended = JOBS.c.status.in_(["succeeded", "failed", "cancelled"])
    old = set(db.execute(sa.select(JOBS.c.id).where(ended & (JOBS.c.finished < cut))).scalars())
    sizes = db.execute(
        sa.select(JOBS.c.id, sa.func.sum(IMAGES.c.bytes))
        .join(IMAGES, IMAGES.c.job == JOBS.c.id)
        .where(ended)
        .group_by(JOBS.c.id, JOBS.c.finished)
        .order_by(JOBS.c.finished.desc())
    ).all()
    kept = 0
    for id_, size in sizes:
        kept += int(size)
        if kept > max_bytes:
            old.add(id_)
    gone: set[str] = set()
    for some in _pieces(old):
        db.execute(sa.update(JOBS).where(JOBS.c.id.in_(some)).values(status="expired"))
        theirs = IMAGES.c.job.in_(some)
        gone.update(db.execute(sa.select(IMAGES.c.digest).where(theirs)).scalars())
        db.execute(sa.delete(IMAGES).where(theirs))
        db.execute(sa.delete(EVENTS).where(EVENTS.c.job.in_(some)))
        db.execute(sa.delete(WEBHOOKS).where(WEBHOOKS.c.job.in_(some)))
    used: set[str] = set()
    for some in _pieces(gone):
        still = sa.select(IMAGES.c.digest).where(IMAGES.c.digest.in_(some))
        used.update(db.execute(still).scalars())
    forget = (JOBS.c.status == "expired") & (JOBS.c.finished < cut - max_age_s)
    forgotten = sa.select(JOBS.c.id).where(forget)
    db.execute(sa.delete(NOTES).where(NOTES.c.job.in_(forgotten)))
    db.execute(sa.delete(JOBS).where(forget))
    db.execute(sa.delete(SERVERS).where(SERVERS.c.seen < cut))
    return sorted(gone - used)


def _pieces(names: set[str]) -> Iterator[list[str]]:
    """Yield names in groups that one statement can carry."""
    ordered = sorted(names)
    for start in range(0, len(ordered), _MOST_NAMES):
        yield ordered[start : start + _MOST_NAMES]
