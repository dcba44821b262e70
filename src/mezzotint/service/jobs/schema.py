"""Schema: the tables of durable jobs, which version they are, and the steps between versions.

Version 1 had no mark; a database with jobs and without one is of version 1. Every later
version is a step in :data:`STEPS`, taken in one transaction when a server starts.
"""

import sqlalchemy as sa

from mezzotint.errors import InvalidRequest

__all__ = [
    "CLUSTER",
    "EVENTS",
    "HOLDS",
    "IMAGES",
    "JOBS",
    "NOTES",
    "PROGRESS",
    "RATES",
    "SCHEMA",
    "SERVERS",
    "VERSION",
    "WEBHOOKS",
    "NewerSchema",
    "check_version",
    "migrate",
]

VERSION = 4
_LOCK = 0x6D657A7A  # of PostgreSQL: one server at a time looks at the version

META = sa.MetaData()
JOBS = sa.Table(
    "jobs",
    META,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("client", sa.String(200), nullable=False),
    sa.Column("status", sa.String(16), nullable=False, index=True),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("body_digest", sa.String(64), nullable=False),
    sa.Column("idempotency_key", sa.String(300), nullable=True),
    sa.Column("use_cache", sa.Boolean, nullable=False),
    sa.Column("created", sa.Float, nullable=False),
    sa.Column("started", sa.Float, nullable=True),
    sa.Column("finished", sa.Float, nullable=True),
    sa.Column("runs", sa.Integer, nullable=False),
    sa.Column("owner", sa.String(64), nullable=True),
    sa.Column("lease", sa.Float, nullable=True),
    sa.Column("cancel", sa.Boolean, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("exact", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("environment", sa.String(64), nullable=True),
    sa.Column("put_back", sa.Float, nullable=True),
    sa.UniqueConstraint("client", "idempotency_key"),
)
IMAGES = sa.Table(
    "images",
    META,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, index=True),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("about", sa.Text, nullable=False),
)
EVENTS = sa.Table(
    "events",
    META,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)
NOTES = sa.Table(
    "notes",
    META,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("note", sa.Text, nullable=False),
)
PROGRESS = sa.Table(
    "progress",
    META,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("run", sa.Integer, nullable=False),
    sa.Column("event", sa.BigInteger, nullable=False),
    sa.Column("image", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("preview", sa.LargeBinary, nullable=True),
)
SERVERS = sa.Table(
    "servers",
    META,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("version", sa.String(64), nullable=False),
    sa.Column("environment", sa.String(64), nullable=True),
    sa.Column("seen", sa.Float, nullable=False),
)
CLUSTER = sa.Table(
    "cluster",
    META,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("id", sa.String(64), nullable=False),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("secret", sa.String(64), nullable=False),
)
WEBHOOKS = sa.Table(
    "webhooks",
    META,
    sa.Column("job", sa.String(64), primary_key=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("tries", sa.Integer, nullable=False),
    sa.Column("due", sa.Float, nullable=True),
)
RATES = sa.Table(
    "rates",
    META,
    sa.Column("client", sa.String(200), primary_key=True),
    sa.Column("tokens", sa.Float, nullable=False),
    sa.Column("filled", sa.Float, nullable=False),
)
HOLDS = sa.Table(
    "holds",
    META,
    sa.Column("server", sa.String(64), primary_key=True),
    sa.Column("client", sa.String(200), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
)
SCHEMA = sa.Table(
    "schema_version",
    META,
    sa.Column("one", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("version", sa.Integer, nullable=False),
)


class NewerSchema(InvalidRequest):
    """The database was written by a newer version of this program."""


def _mark(db: sa.Connection) -> None:
    """1 to 2: notes of jobs, which some of version 1 have already, and the version itself."""
    NOTES.create(db, checkfirst=True)
    SCHEMA.create(db)
    db.execute(sa.insert(SCHEMA).values(one=1, version=2))


def _share(db: sa.Connection) -> None:
    """2 to 3: what several servers on one database have to know of each other."""
    is_sqlite = db.dialect.name == "sqlite"
    true = "1" if is_sqlite else "true"
    number = "FLOAT" if is_sqlite else "DOUBLE PRECISION"
    for column in (
        f"exact BOOLEAN NOT NULL DEFAULT {true}",
        "environment VARCHAR(64)",
        f"put_back {number}",
    ):
        db.execute(sa.text(f"ALTER TABLE jobs ADD COLUMN {column}"))
    for table in (PROGRESS, SERVERS, CLUSTER, WEBHOOKS):
        table.create(db)


def _count(db: sa.Connection) -> None:
    """3 to 4: what clients may ask of all servers together."""
    for table in (RATES, HOLDS):
        table.create(db)


STEPS = {1: _mark, 2: _share, 3: _count}
"""What leads from a version to the next."""


def check_version(found: int) -> None:
    """Refuse a version that is later than this one.

    Raises:
        NewerSchema: If it is.
    """
    if found > VERSION:
        raise NewerSchema(
            f"the job database has schema version {found}, written by a newer Mezzotint; "
            f"this one knows versions up to {VERSION}: upgrade it, or give it another jobs.url "
            "or home",
            field="jobs.url",
        )


def migrate(engine: sa.Engine) -> None:
    """Make the tables, or bring them to this version.

    Raises:
        NewerSchema: If they are of a later version.
    """
    with engine.begin() as db:
        if db.dialect.name == "postgresql":
            db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        names = sa.inspect(db).get_table_names()
        if JOBS.name not in names:
            META.create_all(db)
            db.execute(sa.insert(SCHEMA).values(one=1, version=VERSION))
            return
        found = 1
        if SCHEMA.name in names:
            found = int(db.execute(sa.select(SCHEMA.c.version)).scalar_one())
        check_version(found)
        for version in range(found, VERSION):
            STEPS[version](db)
        db.execute(sa.update(SCHEMA).values(version=VERSION))
