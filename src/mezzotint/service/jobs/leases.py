"""Leases: who runs which job, and that nobody else writes it.

A server that takes a job gets a lease: the job's id and the number of the run, which grows
with each taking. Every write of that run shows the lease, and changes nothing where the job
was meanwhile taken over, put back or ended by somebody else; whoever wrote is told. What a
lease lasts is measured on the database's clock alone.

Functions on connections in a transaction; the store opens and ends those.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mezzotint.errors import WorkFailed
from mezzotint.service.jobs.clock import now
from mezzotint.service.jobs.rows import (
    EPOCH,
    JobImage,
    Lease,
    Progress,
    Status,
    StoredEvent,
    event_row,
)
from mezzotint.service.jobs.schema import EVENTS, IMAGES, JOBS, PROGRESS, WEBHOOKS

__all__ = [
    "LeaseLost",
    "PutBack",
    "claim",
    "finish",
    "keep_event",
    "put_back",
    "reclaim",
    "renew",
    "report",
    "stranded",
]


class LeaseLost(WorkFailed):
    """Another server has the job, or it has ended: this run of it counts for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBack:
    """What became of jobs that nobody runs any more."""

    queued: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()


def _held(lease: Lease, owner: str) -> Any:
    """Return the condition that a lease is in force."""
    return (
        (JOBS.c.id == lease.job)
        & (JOBS.c.owner == owner)
        & (JOBS.c.runs == lease.run)
        & (JOBS.c.status == "running")
    )


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(
        f"run {lease.run} of job {lease.job} is not this server's any more: another server took "
        "it over, or it has ended"
    )


def claim(db: sa.Connection, *, owner: str, lease_s: float, environment: str) -> str | None:
    """Take the next queued job: highest priority, then the client with least running.

    A job that another server is just taking is passed over, not waited for.

    Args:
        db: A transaction.
        owner: Who takes it.
        lease_s: Seconds for which it is the owner's without another word.
        environment: Digest of what this server's arithmetic depends on; an exact job that
            began with another is left alone.

    Returns:
        The id of the job, or None.
    """
    running = {
        client: count
        for client, count in db.execute(
            sa.select(JOBS.c.client, sa.func.count())
            .where(JOBS.c.status == "running")
            .group_by(JOBS.c.client)
        )
    }
    begun = JOBS.c.environment
    fits = begun.is_(None) | (begun == environment) | ~JOBS.c.exact
    allowed = (JOBS.c.status == "queued") & fits
    first = (
        sa.select(JOBS.c.client, JOBS.c.priority, sa.func.min(JOBS.c.seq).label("seq"))
        .where(allowed)
        .group_by(JOBS.c.client, JOBS.c.priority)
    )
    choices = sorted(
        db.execute(first).all(), key=lambda r: (-r.priority, running.get(r.client, 0), r.seq)
    )
    for choice in choices:
        theirs = (JOBS.c.client == choice.client) & (JOBS.c.priority == choice.priority)
        row = db.execute(
            sa.select(JOBS.c.seq, JOBS.c.id, JOBS.c.runs)
            .where(allowed & theirs)
            .order_by(JOBS.c.seq)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).first()
        if row is None:
            continue
        taken = db.execute(
            sa.update(JOBS)
            .where((JOBS.c.seq == row.seq) & (JOBS.c.status == "queued"))
            .values(
                status="running",
                owner=owner,
                lease=now() + lease_s,
                started=now(),
                runs=row.runs + 1,
                environment=sa.func.coalesce(begun, environment),
            )
        )
        if taken.rowcount:
            db.execute(sa.delete(PROGRESS).where(PROGRESS.c.job == row.id))
            fresh = {"job": row.id, "run": row.runs + 1, "event": 0}
            db.execute(sa.insert(PROGRESS).values(**fresh, image=0, step=0, steps=0))
            return str(row.id)
    return None


def renew(
    db: sa.Connection, leases: Sequence[Lease], *, owner: str, lease_s: float
) -> tuple[set[Lease], set[str]]:
    """Renew leases.

    Returns:
        Those in force, and the ids of the jobs that somebody wants cancelled.
    """
    known = [lease.job for lease in leases]
    mine = (JOBS.c.owner == owner) & (JOBS.c.status == "running") & JOBS.c.id.in_(known)
    db.execute(sa.update(JOBS).where(mine).values(lease=now() + lease_s))
    rows = db.execute(sa.select(JOBS.c.id, JOBS.c.runs, JOBS.c.cancel).where(mine)).all()
    held = {Lease(row.id, row.runs) for row in rows} & set(leases)
    return held, {row.id for row in rows if row.cancel}


def reclaim(db: sa.Connection, *, everything: bool) -> PutBack:
    """Put back what runs on nobody's machine; end what was to be cancelled.

    Args:
        db: A transaction.
        everything: Whether every running job counts (a fresh start on a database that only
            one server may use), not only those whose lease ran out.
    """
    lost = JOBS.c.status == "running"
    if not everything:
        lost &= JOBS.c.lease < now()
    query = sa.select(JOBS.c.id, JOBS.c.runs, JOBS.c.cancel).where(lost)
    return _put_back(db, db.execute(query.with_for_update(skip_locked=True)).all())


def put_back(db: sa.Connection, lease: Lease, *, owner: str) -> PutBack:
    """Queue a job again that this server does not run to its end.

    Raises:
        LeaseLost: If it is not this server's any more; it stays as it is.
    """
    query = sa.select(JOBS.c.id, JOBS.c.runs, JOBS.c.cancel).where(_held(lease, owner))
    rows = db.execute(query.with_for_update()).all()
    if not rows:
        raise _lost(lease)
    return _put_back(db, rows)


def _put_back(db: sa.Connection, rows: Sequence[Any]) -> PutBack:
    """Queue jobs again whose rows are locked; those that are to be cancelled end."""
    queued: list[str] = []
    cancelled: list[str] = []
    for row in rows:
        same = (JOBS.c.id == row.id) & (JOBS.c.runs == row.runs) & (JOBS.c.status == "running")
        values: dict[str, Any] = {"status": "queued", "owner": None, "lease": None}
        values |= {"put_back": now()}
        if row.cancel:
            values = {"status": "cancelled", "finished": now(), "lease": None}
        if not db.execute(sa.update(JOBS).where(same).values(values)).rowcount:
            continue  # SQLite locks no rows
        db.execute(sa.delete(PROGRESS).where(PROGRESS.c.job == row.id))
        if row.cancel:
            last = row.runs * EPOCH + EPOCH - 1
            event = StoredEvent(id=last, kind="cancelled", data={"id": row.id})
            db.execute(sa.insert(EVENTS).values(event_row(row.id, event)))
            ring_webhook(db, row.id)
            cancelled.append(row.id)
        else:
            queued.append(row.id)
    return PutBack(queued=tuple(queued), cancelled=tuple(cancelled))


def finish(
    db: sa.Connection,
    id_: str,
    status: Status,
    outcome: Mapping[str, Any],
    event: StoredEvent,
    *,
    owner: str,
    lease: Lease | None,
) -> bool:
    """End a job once.

    Args:
        db: A transaction.
        id_: The job.
        status: How it ended.
        outcome: What is known of that.
        event: The ending, for whoever listens.
        owner: Who writes.
        lease: Of the run that ended; None ends a job that waits.

    Returns:
        Whether it has ended so; False only without a lease, if it did not wait.

    Raises:
        LeaseLost: If the run is not this server's any more.
    """
    where = (JOBS.c.id == id_) & (JOBS.c.status == "queued")
    if lease is not None:
        where = _held(lease, owner)
    values = {
        "status": status,
        "outcome": json.dumps(outcome),
        "finished": now(),
        "lease": None,
    }
    if db.execute(sa.update(JOBS).where(where).values(values)).rowcount:
        db.execute(sa.insert(EVENTS).values(event_row(id_, event)))
        db.execute(sa.delete(PROGRESS).where(PROGRESS.c.job == id_))
        ring_webhook(db, id_)
        return True
    if lease is None:
        return False
    # The answer to an earlier try of the very same write may have been lost on the way.
    mine = (JOBS.c.id == id_) & (JOBS.c.owner == owner) & (JOBS.c.runs == lease.run)
    if db.execute(sa.select(JOBS.c.status).where(mine)).scalar() != status:
        raise _lost(lease)
    return True


def ring_webhook(db: sa.Connection, id_: str) -> None:
    """Make the message about a job's ending due, if there is to be one."""
    db.execute(sa.update(WEBHOOKS).where(WEBHOOKS.c.job == id_).values(due=now()))


def keep_event(
    db: sa.Connection,
    lease: Lease,
    event: StoredEvent,
    image: JobImage | None,
    *,
    owner: str,
    lease_s: float,
) -> None:
    """Keep an event, and the picture it is about; doing it again changes nothing.

    Raises:
        LeaseLost: If the run is not this server's any more.
    """
    id_ = lease.job
    still = sa.update(JOBS).where(_held(lease, owner)).values(lease=now() + lease_s)
    if not db.execute(still).rowcount:
        raise _lost(lease)
    same = (EVENTS.c.job == id_) & (EVENTS.c.id == event.id)
    db.execute(sa.delete(EVENTS).where(same))
    if image is not None:
        where = (IMAGES.c.job == id_) & (IMAGES.c.position == image.index)
        db.execute(sa.delete(IMAGES).where(where))
        about = json.dumps(image.about)
        values = {"position": image.index, "digest": image.digest, "bytes": image.bytes}
        db.execute(sa.insert(IMAGES).values(job=id_, about=about, **values))
    db.execute(sa.insert(EVENTS).values(event_row(id_, event)))


def report(db: sa.Connection, steps: Sequence[Progress], *, owner: str) -> list[str]:
    """Write the latest steps of running jobs; those of lost leases change nothing.

    Returns:
        Ids of the jobs that were written.
    """
    written: list[str] = []
    for step in steps:
        held = sa.exists(sa.select(1).where(_held(Lease(step.job, step.run), owner)))
        where = (PROGRESS.c.job == step.job) & (PROGRESS.c.run == step.run) & held
        values = {"event": step.event, "image": step.image, "step": step.step}
        values |= {"steps": step.steps, "preview": step.preview}
        if db.execute(sa.update(PROGRESS).where(where).values(values)).rowcount:
            written.append(step.job)
    return written


def stranded(db: sa.Connection, *, environments: Sequence[str], wait_s: float) -> list[str]:
    """Return exact jobs that waited ``wait_s`` for a server like the one they began on."""
    query = (
        sa.select(JOBS.c.id)
        .where((JOBS.c.status == "queued") & JOBS.c.exact & JOBS.c.environment.is_not(None))
        .where(JOBS.c.environment.not_in(list(environments)))
        .where(JOBS.c.put_back <= now() - wait_s)
    )
    return list(db.execute(query).scalars())
