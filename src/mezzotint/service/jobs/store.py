"""Job store: the rows behind durable jobs, in SQLite (WAL) or PostgreSQL.

Every method is one transaction and blocks; :mod:`mezzotint.service.jobs.access` calls
them from a thread of their own. Every write of a running job shows its lease; see
:mod:`mezzotint.service.jobs.leases`. What other servers should hear of at once is told
with the transaction that changes it, by PostgreSQL's ``NOTIFY``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event as sa_event
from sqlalchemy import exc

from mezzotint.errors import UnknownName
from mezzotint.service.jobs import allowances, cluster, leases
from mezzotint.service.jobs.browsing import delete_ended, find_ids
from mezzotint.service.jobs.clock import now
from mezzotint.service.jobs.cluster import Cluster
from mezzotint.service.jobs.expiry import expire
from mezzotint.service.jobs.leases import PutBack
from mezzotint.service.jobs.marks import list_pictures, write_marks
from mezzotint.service.jobs.rows import (
    ENDED,
    Job,
    JobImage,
    Lease,
    Progress,
    Status,
    StoredEvent,
    event_row,
    read_image,
    read_job,
)
from mezzotint.service.jobs.schema import EVENTS, IMAGES, JOBS, NOTES, PROGRESS, WEBHOOKS, migrate

__all__ = ["ENDED", "Job", "JobImage", "JobStore", "Status", "StoredEvent"]

_WEBHOOK_S = 180.0  # for which a server that took a message has it for itself
_ANSWER_S = 5  # in which a database has to take a connection


class JobStore:
    """The tables.

    Args:
        url: SQLAlchemy URL.
        owner: Name of this server process, unique.
        cluster: Name of the cluster that the database has to be, "" for any.
        version: Of this program, for the other servers' operators.

    Raises:
        NewerSchema: If a newer Mezzotint wrote the database.
        OtherCluster: If the database is another cluster's.
    """

    def __init__(self, url: str, owner: str, *, cluster: str = "", version: str = "") -> None:
        self.owner = owner
        self._version = version
        self.is_sqlite = url.startswith("sqlite")
        arguments = {} if self.is_sqlite else {"connect_timeout": _ANSWER_S}
        self._engine = sa.create_engine(
            url, pool_pre_ping=not self.is_sqlite, connect_args=arguments
        )
        if self.is_sqlite:
            sa_event.listen(self._engine, "connect", _tune_sqlite)
        try:
            migrate(self._engine)
            self.cluster = self._join(cluster)
        except BaseException:  # whatever it was, no connection stays open; it goes on
            self._engine.dispose()
            raise

    def _join(self, name: str) -> Cluster:
        try:
            with self._engine.begin() as db:
                return cluster.join(db, name)
        except exc.IntegrityError:  # two servers came first
            with self._engine.begin() as db:
                return cluster.join(db, name)

    @property
    def channel(self) -> str:
        """What PostgreSQL's notices of this cluster are sent on."""
        return f"mezzotint_{self.cluster.id}"

    @property
    def connection_arguments(self) -> dict[str, Any]:
        """What ``psycopg.connect`` takes to reach the same database."""
        return dict(self._engine.dialect.create_connect_args(self._engine.url)[1])

    def _tell(self, db: sa.Connection, kind: str, id_: str = "") -> None:
        """Let the other servers know, once the transaction is written."""
        if not self.is_sqlite:
            db.execute(sa.select(sa.func.pg_notify(self.channel, f"{kind} {id_}".strip())))

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def add(
        self,
        values: Mapping[str, Any],
        event: StoredEvent,
        note: Mapping[str, Any] | None = None,
        webhook: str | None = None,
    ) -> Job | None:
        """Insert a queued job; None if the client used the idempotency key before."""
        row = {"status": "queued", "runs": 0, "cancel": False, "outcome": "{}", **values}
        row["created"] = now()
        id_ = values["id"]
        try:
            with self._engine.begin() as db:
                db.execute(sa.insert(JOBS).values(row))
                db.execute(sa.insert(EVENTS).values(event_row(id_, event)))
                if note is not None:
                    db.execute(sa.insert(NOTES).values(job=id_, note=json.dumps(note)))
                if webhook is not None:
                    db.execute(sa.insert(WEBHOOKS).values(job=id_, url=webhook, tries=0))
                self._tell(db, "wake")
        except exc.IntegrityError:
            return None
        return self.get(id_)

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
        found = self._many([id_]) if "\0" not in id_ else []  # which PostgreSQL's texts cannot hold
        if not found:
            raise UnknownName("job", id_[:80], (), field="id")
        return found[0]

    def page(
        self, *, client: str | None, status: str | None, limit: int, after: str | None
    ) -> list[Job]:
        """Return jobs, newest first, that come after (are older than) job ``after``."""
        query = sa.select(JOBS.c.id).order_by(JOBS.c.seq.desc()).limit(limit)
        if client is not None:
            query = query.where(JOBS.c.client == client)
        if status is not None:
            query = query.where(JOBS.c.status == status)
        if after is not None:
            query = query.where(JOBS.c.seq < self.get(after).seq)
        with self._engine.connect() as db:
            ids = list(db.execute(query).scalars())
        return self._many(ids)

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
        """Return jobs with their pictures, in the order of ``ids``, by a query for each table."""
        with self._engine.connect() as db:
            rows = db.execute(sa.select(JOBS).where(JOBS.c.id.in_(ids))).mappings().all()
            images: dict[str, list[JobImage]] = {}
            query = sa.select(IMAGES).where(IMAGES.c.job.in_(ids)).order_by(IMAGES.c.position)
            for image in db.execute(query).mappings():
                images.setdefault(image["job"], []).append(read_image(image))
            query = sa.select(NOTES).where(NOTES.c.job.in_(ids))
            notes = {row["job"]: json.loads(row["note"]) for row in db.execute(query).mappings()}
            done = {id_: (0, 0) for id_ in ids}
            columns = (PROGRESS.c.job, PROGRESS.c.run, PROGRESS.c.step, PROGRESS.c.steps)
            runs = {row["id"]: row["runs"] for row in rows if row["status"] == "running"}
            if runs:
                for row in db.execute(sa.select(*columns).where(PROGRESS.c.job.in_(list(runs)))):
                    if runs[row.job] == row.run:
                        done[row.job] = (row.step, row.steps)
        found = {
            row["id"]: read_job(
                row,
                tuple(images.get(row["id"], ())),
                notes.get(row["id"], {}),
                done[row["id"]],
            )
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

    def progress(self, id_: str) -> Progress | None:
        """Return the latest step of a running job that its server has told of."""
        query = (
            sa.select(PROGRESS)
            .join(JOBS, (JOBS.c.id == PROGRESS.c.job) & (JOBS.c.runs == PROGRESS.c.run))
            .where((JOBS.c.id == id_) & (JOBS.c.status == "running") & (PROGRESS.c.step > 0))
        )
        with self._engine.connect() as db:
            row = db.execute(query).mappings().first()
        return Progress(**row) if row is not None else None

    def claim(self, lease_s: float, environment: str = "") -> Job | None:
        """Take the next queued job; see :func:`~mezzotint.service.jobs.leases.claim`."""
        with self._engine.begin() as db:
            id_ = leases.claim(db, owner=self.owner, lease_s=lease_s, environment=environment)
            if id_ is not None:
                self._tell(db, "event", id_)
        return self.get(id_) if id_ is not None else None

    def renew(
        self, held: Sequence[Lease], lease_s: float, environment: str | None = None
    ) -> tuple[set[Lease], set[str]]:
        """Renew leases, and say that this server lives.

        Returns:
            The leases in force, and the ids of jobs that somebody wants cancelled.

        Raises:
            NewerSchema: If a newer program has changed the tables meanwhile.
        """
        with self._engine.begin() as db:
            found = leases.renew(db, held, owner=self.owner, lease_s=lease_s)
            cluster.beat(db, owner=self.owner, version=self._version, environment=environment)
        return found

    def leave(self) -> None:
        """Say that this server stops."""
        with self._engine.begin() as db:
            cluster.leave(db, owner=self.owner)
            self._tell(db, "wake")

    def others(self, alive_s: float) -> list[str]:
        """Return the hosts of other servers that were heard of within ``alive_s`` seconds."""
        with self._engine.connect() as db:
            return cluster.others(db, owner=self.owner, alive_s=alive_s)

    def spend(self, client: str, per_minute: int) -> float:
        """Take a request from a client's bucket; see :mod:`.allowances`, as the next two."""
        with self._engine.begin() as db:
            return allowances.spend(db, client=client, per_minute=per_minute)

    def hold(self, client: str, most: int, own: Callable[[], int], alive_s: float) -> bool:
        """Count a generation of a client; False if all servers together hold too many."""
        with self._engine.begin() as db:
            return allowances.hold(
                db, owner=self.owner, client=client, own=own, most=most, alive_s=alive_s
            )

    def tell_held(self, client: str, own: Callable[[], int]) -> None:
        """Say how many generations a client holds here."""
        with self._engine.begin() as db:
            allowances.tell(db, owner=self.owner, client=client, own=own)

    def servers(self, alive_s: float) -> list[dict[str, Any]]:
        """Describe the servers on this database that were heard of within ``alive_s`` seconds."""
        with self._engine.connect() as db:
            return cluster.servers(db, owner=self.owner, alive_s=alive_s)

    def to_cancel(self, held: Sequence[Lease]) -> set[str]:
        """Return the ids of jobs among these that somebody wants cancelled."""
        wanted = JOBS.c.id.in_([lease.job for lease in held]) & JOBS.c.cancel
        with self._engine.connect() as db:
            return set(db.execute(sa.select(JOBS.c.id).where(wanted)).scalars())

    def reclaim(self, *, everything: bool) -> PutBack:
        """Put back what nobody runs; see :func:`~mezzotint.service.jobs.leases.reclaim`."""
        with self._engine.begin() as db:
            return self._told(db, leases.reclaim(db, everything=everything))

    def put_back(self, lease: Lease) -> PutBack:
        """Queue a job again that this server does not run to its end.

        Raises:
            LeaseLost: If it is not this server's any more; it stays as it is.
        """
        with self._engine.begin() as db:
            return self._told(db, leases.put_back(db, lease, owner=self.owner))

    def _told(self, db: sa.Connection, gone: PutBack) -> PutBack:
        """Let the other servers know what was put back, once it is written."""
        for id_ in (*gone.queued, *gone.cancelled):
            self._tell(db, "event", id_)
        if gone.queued:
            self._tell(db, "wake")
        return gone

    def stranded(self, *, alive_s: float, wait_s: float) -> list[str]:
        """Return exact jobs that waited ``wait_s`` for a server like the one they began on."""
        with self._engine.connect() as db:
            alive = cluster.environments(db, alive_s=alive_s)
            return leases.stranded(db, environments=alive, wait_s=wait_s)

    def ask_cancel(self, id_: str) -> None:
        """Note that somebody wants the job cancelled, and tell the server that runs it."""
        open_ = (JOBS.c.id == id_) & JOBS.c.status.in_(["queued", "running"])
        with self._engine.begin() as db:
            db.execute(sa.update(JOBS).where(open_).values(cancel=True))
            self._tell(db, "cancel", id_)

    def finish(
        self,
        id_: str,
        status: Status,
        outcome: Mapping[str, Any],
        event: StoredEvent,
        *,
        lease: Lease | None = None,
    ) -> bool:
        """End a job once; see :func:`~mezzotint.service.jobs.leases.finish`."""
        with self._engine.begin() as db:
            done = leases.finish(db, id_, status, outcome, event, owner=self.owner, lease=lease)
            if done:
                self._tell(db, "event", id_)
        return done

    def keep_event(
        self, lease: Lease, event: StoredEvent, image: JobImage | None = None, *, lease_s: float
    ) -> None:
        """Keep an event, and the picture it is about; doing it again changes nothing.

        Raises:
            LeaseLost: If the run is not this server's any more.
        """
        with self._engine.begin() as db:
            leases.keep_event(db, lease, event, image, owner=self.owner, lease_s=lease_s)
            self._tell(db, "event", lease.job)

    def report(self, steps: Sequence[Progress]) -> None:
        """Tell the other servers of the latest steps of jobs that run here."""
        with self._engine.begin() as db:
            for id_ in leases.report(db, steps, owner=self.owner):
                self._tell(db, "event", id_)

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

    def due_webhook(self) -> tuple[str, str, int] | None:
        """Take one address that is to be told of a job's ending; None if none is due."""
        with self._engine.begin() as db:
            row = db.execute(
                sa.select(WEBHOOKS)
                .where(WEBHOOKS.c.due <= now())
                .order_by(WEBHOOKS.c.due)
                .limit(1)
                .with_for_update(skip_locked=True)
            ).first()
            if row is None:
                return None
            same = (WEBHOOKS.c.job == row.job) & (WEBHOOKS.c.due == row.due)
            held = sa.update(WEBHOOKS).where(same).values(due=now() + _WEBHOOK_S)
            return (row.job, row.url, row.tries) if db.execute(held).rowcount else None

    def settle_webhook(self, id_: str, again_s: float | None) -> None:
        """Say when an address is to be told again; None if it need not be."""
        where = WEBHOOKS.c.job == id_
        with self._engine.begin() as db:
            if again_s is None:
                db.execute(sa.delete(WEBHOOKS).where(where))
                return
            values = {"tries": WEBHOOKS.c.tries + 1, "due": now() + again_s}
            db.execute(sa.update(WEBHOOKS).where(where).values(values))

    def expire(self, *, max_age_s: float, max_bytes: int) -> list[str]:
        """Expire old finished jobs; see :func:`~mezzotint.service.jobs.expiry.expire`."""
        with self._engine.begin() as db:
            return expire(db, max_age_s=max_age_s, max_bytes=max_bytes)


def _tune_sqlite(connection: Any, _: object) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000"):
        connection.execute(f"PRAGMA {pragma}").close()
