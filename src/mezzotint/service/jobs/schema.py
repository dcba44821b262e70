"""Schema: the tables of durable jobs, which version they are, and the steps between versions.

Version 1 had no mark; a database with jobs and without one is of version 1. Every later
version is a step in :data:`STEPS`, taken in one transaction when a server starts.
"""

import sqlalchemy as sa

from mezzotint.errors import InvalidRequest

__all__ = ["EVENTS", "IMAGES", "JOBS", "NOTES", "VERSION", "NewerSchema", "migrate"]

VERSION = 2
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
_SCHEMA = sa.Table(
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
    _SCHEMA.create(db)
    db.execute(sa.insert(_SCHEMA).values(one=1, version=2))


STEPS = {1: _mark}
"""What leads from a version to the next."""


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
            db.execute(sa.insert(_SCHEMA).values(one=1, version=VERSION))
            return
        found = 1
        if _SCHEMA.name in names:
            found = int(db.execute(sa.select(_SCHEMA.c.version)).scalar_one())
        if found > VERSION:
            raise NewerSchema(
                f"the job database has schema version {found}, written by a newer Mezzotint; "
                f"this one knows versions up to {VERSION}: upgrade it, or give it another jobs.url "
                "or home",
                field="jobs.url",
            )
        for version in range(found, VERSION):
            STEPS[version](db)
        db.execute(sa.update(_SCHEMA).values(version=VERSION))
