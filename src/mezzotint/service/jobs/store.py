"""Job store: the rows behind durable jobs, in SQLite (WAL) or PostgreSQL.

Every method is one transaction and blocks; :mod:`mezzotint.service.jobs.jobs` calls
them from a thread of their own. Endings are written with a condition on the
status, so that a job ends once whoever tries.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc

from mezzotint.errors import UnknownName
from mezzotint.service.jobs.browsing import delete_ended, find_ids
from mezzotint.service.jobs.marks import list_pictures, write_marks
from mezzotint.service.jobs.schema import EVENTS, IMAGES, JOBS, NOTES, migrate

__all__ = ["ENDED", "Job", "JobImage", "JobStore", "Status", "StoredEvent"]

Status = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
_MOST_NAMES = 1000  # parameters of one statement; SQLite takes 32,766, PostgreSQL 65,535
ENDED = ("succeeded", "failed", "cancelled", "expired")


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
        outcome: ``plan``, ``cache``, ``warnings`` of a success; ``error`` of a
            failure (``type``, ``message``, ``field``).
        note: What the door that took the job keeps with it.
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
    images: tuple[JobImage, ...] = ()
    note: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One event that survives a restart."""

    id: int
    kind: str
    data: Mapping[str, Any]


class JobStore:
    """The tables.

    Args:
        url: SQLAlchemy URL.
        owner: Name of this server process, unique.

    Raises:
        NewerSchema: If a newer Mezzotint wrote the database.
    """

    def __init__(self, url: str, owner: str) -> None:
        self._owner = owner
        self.is_sqlite = url.startswith("sqlite")
        self._engine = sa.create_engine(url, pool_pre_ping=not self.is_sqlite)
        if self.is_sqlite:
            sa_event.listen(self._engine, "connect", _tune_sqlite)
        try:
            migrate(self._engine)
        except BaseException:  # whatever it was, no connection stays open; it goes on
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def add(
        self, values: Mapping[str, Any], event: StoredEvent, note: Mapping[str, Any] | None = None
    ) -> Job | None:
        """Insert a queued job; None if the client used the idempotency key before."""
        row = {"status": "queued", "runs": 0, "cancel": False, "outcome": "{}", **values}
        try:
            with self._engine.begin() as db:
                db.execute(sa.insert(JOBS).values(row))
                db.execute(sa.insert(EVENTS).values(_event_row(values["id"], event)))
                if note is not None:
                    text = json.dumps(note)
                    db.execute(sa.insert(NOTES).values(job=values["id"], note=text))
        except exc.IntegrityError:
            return None
        return self.get(values["id"])

    def by_key(self, client: str, key: str) -> Job | None:
        """Return the job a client made under an idempotency key."""
        where = (JOBS.c.client == client) & (JOBS.c.idempotency_key == key)
        with self._engine.connect() as db:
            row = db.execute(sa.select(JOBS).where(where)).mappings().first()
        return self.get(row["id"]) if row is not None else None

    def get(self, id_: str) -> Job:
        """Return a job with its pictures.

        Raises:
            UnknownName: If there is none.
        """
        with self._engine.connect() as db:
            row = db.execute(sa.select(JOBS).where(JOBS.c.id == id_)).mappings().first()
            if row is None:
                raise UnknownName("job", id_[:80], (), field="id")
            images = db.execute(
                sa.select(IMAGES).where(IMAGES.c.job == id_).order_by(IMAGES.c.position)
            ).mappings()
            note = db.execute(sa.select(NOTES.c.note).where(NOTES.c.job == id_)).scalar()
            return _job(row, tuple(_image(i) for i in images), json.loads(note or "{}"))

    def page(
        self, *, client: str | None, status: str | None, limit: int, after: str | None
    ) -> list[Job]:
        """Return jobs, newest first, that come after (are older than) job ``after``."""
        query = sa.select(JOBS).order_by(JOBS.c.seq.desc()).limit(limit)
        if client is not None:
            query = query.where(JOBS.c.client == client)
        if status is not None:
            query = query.where(JOBS.c.status == status)
        if after is not None:
            query = query.where(JOBS.c.seq < self.get(after).seq)
        with self._engine.connect() as db:
            return [self.get(row["id"]) for row in db.execute(query).mappings().all()]

    def browse(
        self,
        *,
        client: str | None,
        statuses: Sequence[str],
        words: Sequence[str],
        limit: int,
        after: str | None,
    ) -> list[Job]:
        """Return jobs, newest first, whose texts hold every word; see :func:`find_ids`."""
        before = self.get(after).seq if after is not None else None
        ids = find_ids(
            self._engine,
            client=client,
            statuses=statuses,
            words=words,
            limit=limit,
            before=before,
        )
        return self._many(ids)

    def pictures(
        self, *, client: str | None, statuses: Sequence[str], limit: int, after: str | None
    ) -> tuple[list[dict[str, Any]], str | None]:
        """List the pictures of jobs with their marks; see :func:`list_pictures`."""
        before = self.get(after).seq if after is not None else None
        return list_pictures(
            self._engine, client=client, statuses=statuses, limit=limit, before=before
        )

    def mark(self, id_: str, index: int, marks: Mapping[str, Any]) -> None:
        """Keep what somebody thinks of a picture."""
        write_marks(self._engine, id_, index, marks)

    def _many(self, ids: Sequence[str]) -> list[Job]:
        """Return jobs with their pictures, in the order of ``ids``, by three queries."""
        with self._engine.connect() as db:
            rows = db.execute(sa.select(JOBS).where(JOBS.c.id.in_(ids))).mappings().all()
            images: dict[str, list[JobImage]] = {}
            query = sa.select(IMAGES).where(IMAGES.c.job.in_(ids)).order_by(IMAGES.c.position)
            for image in db.execute(query).mappings():
                images.setdefault(image["job"], []).append(_image(image))
            query = sa.select(NOTES).where(NOTES.c.job.in_(ids))
            notes = {row["job"]: json.loads(row["note"]) for row in db.execute(query).mappings()}
        found = {
            row["id"]: _job(row, tuple(images.get(row["id"], ())), notes.get(row["id"], {}))
            for row in rows
        }
        return [found[id_] for id_ in ids if id_ in found]

    def delete(self, id_: str) -> list[str] | None:
        """Delete a job that has ended; digests that nobody needs now, None if it has not."""
        return delete_ended(self._engine, id_, ENDED)

    def waiting(self, client: str) -> tuple[int, int]:
        """Count the queued jobs, all of them and the client's."""
        mine = sa.func.sum(sa.case((JOBS.c.client == client, 1), else_=0))
        query = sa.select(sa.func.count(), mine).where(JOBS.c.status == "queued")
        with self._engine.connect() as db:
            everybody, own = db.execute(query).one()
        return int(everybody), int(own or 0)

    def counts(self) -> dict[str, int]:
        """Count the jobs by status."""
        query = sa.select(JOBS.c.status, sa.func.count()).group_by(JOBS.c.status)
        with self._engine.connect() as db:
            return {status: int(count) for status, count in db.execute(query)}

    def position(self, job: Job) -> int:
        """Count the queued jobs before this one."""
        before = (JOBS.c.priority > job.priority) | (
            (JOBS.c.priority == job.priority) & (JOBS.c.seq < job.seq)
        )
        query = (
            sa.select(sa.func.count()).select_from(JOBS).where((JOBS.c.status == "queued") & before)
        )
        with self._engine.connect() as db:
            return int(db.execute(query).scalar_one())

    def claim(self, lease_s: float) -> Job | None:
        """Take the next queued job: highest priority, then the client with least running."""
        now = time.time()
        with self._engine.begin() as db:
            running = {
                client: count
                for client, count in db.execute(
                    sa.select(JOBS.c.client, sa.func.count())
                    .where(JOBS.c.status == "running")
                    .group_by(JOBS.c.client)
                )
            }
            first = (
                sa.select(JOBS.c.client, JOBS.c.priority, sa.func.min(JOBS.c.seq).label("seq"))
                .where(JOBS.c.status == "queued")
                .group_by(JOBS.c.client, JOBS.c.priority)
            )
            choices = sorted(
                db.execute(first).all(),
                key=lambda r: (-r.priority, running.get(r.client, 0), r.seq),
            )
            for choice in choices:
                taken = db.execute(
                    sa.update(JOBS)
                    .where((JOBS.c.seq == choice.seq) & (JOBS.c.status == "queued"))
                    .values(
                        status="running",
                        owner=self._owner,
                        lease=now + lease_s,
                        started=now,
                        runs=JOBS.c.runs + 1,
                    )
                )
                if taken.rowcount:
                    id_ = db.execute(
                        sa.select(JOBS.c.id).where(JOBS.c.seq == choice.seq)
                    ).scalar_one()
                    break
            else:
                return None
        return self.get(id_)

    def renew(self, lease_s: float) -> list[str]:
        """Renew the leases of this server; return the ids somebody wants cancelled."""
        mine = (JOBS.c.owner == self._owner) & (JOBS.c.status == "running")
        with self._engine.begin() as db:
            db.execute(sa.update(JOBS).where(mine).values(lease=time.time() + lease_s))
            return list(db.execute(sa.select(JOBS.c.id).where(mine & JOBS.c.cancel)).scalars())

    def reclaim(self, *, everything: bool) -> list[str]:
        """Queue again what runs on nobody's machine; cancel what was to be cancelled.

        Args:
            everything: Whether every running job counts (a fresh start on a
                database that only one server may use), not only those whose
                lease ran out.
        """
        lost = JOBS.c.status == "running"
        if not everything:
            lost &= JOBS.c.lease < time.time()
        with self._engine.begin() as db:
            cancelled = list(db.execute(sa.select(JOBS.c.id).where(lost & JOBS.c.cancel)).scalars())
            db.execute(
                sa.update(JOBS)
                .where(lost & ~JOBS.c.cancel)
                .values(status="queued", owner=None, lease=None)
            )
        return cancelled

    def requeue(self, id_: str) -> None:
        """Put a running job back, for the next start of the server."""
        with self._engine.begin() as db:
            db.execute(
                sa.update(JOBS)
                .where((JOBS.c.id == id_) & (JOBS.c.status == "running"))
                .values(status="queued", owner=None, lease=None)
            )

    def ask_cancel(self, id_: str) -> None:
        """Note that somebody wants the job cancelled."""
        with self._engine.begin() as db:
            db.execute(sa.update(JOBS).where(JOBS.c.id == id_).values(cancel=True))

    def finish(
        self,
        id_: str,
        status: Status,
        outcome: Mapping[str, Any],
        event: StoredEvent,
        *,
        only_from: Sequence[str] = ("running",),
    ) -> bool:
        """End a job once; False if it had ended, or is in another state."""
        where = (JOBS.c.id == id_) & JOBS.c.status.in_(list(only_from))
        values = {
            "status": status,
            "outcome": json.dumps(outcome),
            "finished": time.time(),
            "owner": None,
            "lease": None,
        }
        with self._engine.begin() as db:
            changed = db.execute(sa.update(JOBS).where(where).values(values)).rowcount
            if changed:
                db.execute(sa.insert(EVENTS).values(_event_row(id_, event)))
        return bool(changed)

    def add_event(self, id_: str, event: StoredEvent, image: JobImage | None = None) -> None:
        """Keep an event, and the picture it is about; doing it again changes nothing."""
        with self._engine.begin() as db:
            same = (EVENTS.c.job == id_) & (EVENTS.c.id == event.id)
            db.execute(sa.delete(EVENTS).where(same))
            if image is not None:
                where = (IMAGES.c.job == id_) & (IMAGES.c.position == image.index)
                db.execute(sa.delete(IMAGES).where(where))
                db.execute(
                    sa.insert(IMAGES).values(
                        job=id_,
                        position=image.index,
                        digest=image.digest,
                        bytes=image.bytes,
                        about=json.dumps(image.about),
                    )
                )
            db.execute(sa.insert(EVENTS).values(_event_row(id_, event)))

    def events(self, id_: str, after: int) -> list[StoredEvent]:
        """Return the kept events of a job with an id above ``after``, in order."""
        query = (
            sa.select(EVENTS)
            .where((EVENTS.c.job == id_) & (EVENTS.c.id > after))
            .order_by(EVENTS.c.id)
        )
        with self._engine.connect() as db:
            return [
                StoredEvent(id=row["id"], kind=row["kind"], data=json.loads(row["data"]))
                for row in db.execute(query).mappings()
            ]

    def expire(self, *, max_age_s: float, max_bytes: int) -> list[str]:
        """Expire old finished jobs and the oldest beyond ``max_bytes``.

        Returns:
            Digests of pictures that no job refers to any more.
        """
        cut = time.time() - max_age_s
        with self._engine.begin() as db:
            ended = JOBS.c.status.in_(["succeeded", "failed", "cancelled"])
            old = set(
                db.execute(sa.select(JOBS.c.id).where(ended & (JOBS.c.finished < cut))).scalars()
            )
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
            used: set[str] = set()
            for some in _pieces(gone):
                still = sa.select(IMAGES.c.digest).where(IMAGES.c.digest.in_(some))
                used.update(db.execute(still).scalars())
            forget = (JOBS.c.status == "expired") & (JOBS.c.finished < cut - max_age_s)
            forgotten = sa.select(JOBS.c.id).where(forget)
            db.execute(sa.delete(NOTES).where(NOTES.c.job.in_(forgotten)))
            db.execute(sa.delete(JOBS).where(forget))
        return sorted(gone - used)


def _pieces(names: set[str]) -> Iterator[list[str]]:
    """Yield names in groups that one statement can carry."""
    ordered = sorted(names)
    for start in range(0, len(ordered), _MOST_NAMES):
        yield ordered[start : start + _MOST_NAMES]


def _tune_sqlite(connection: Any, _: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()


def _event_row(id_: str, event: StoredEvent) -> dict[str, Any]:
    return {"job": id_, "id": event.id, "kind": event.kind, "data": json.dumps(event.data)}


def _image(row: Any) -> JobImage:
    return JobImage(
        index=row["position"],
        digest=row["digest"],
        bytes=row["bytes"],
        about=json.loads(row["about"]),
    )


def _job(row: Any, images: tuple[JobImage, ...], note: Mapping[str, Any]) -> Job:
    names = (
        "id", "seq", "client", "status", "priority", "request", "body_digest",
        "use_cache", "created", "started", "finished", "runs", "cancel",
    )  # fmt: skip
    values = {name: row[name] for name in names}
    return Job(**values, outcome=json.loads(row["outcome"]), images=images, note=note)
