"""Cluster: the servers that share one database of jobs, and what makes them one cluster.

Functions on connections in a transaction.
"""

import base64
import secrets
import socket
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from mezzotint.errors import InvalidRequest
from mezzotint.service.jobs.clock import now
from mezzotint.service.jobs.schema import CLUSTER, HOLDS, SCHEMA, SERVERS, check_version

__all__ = ["Cluster", "OtherCluster", "beat", "environments", "join", "leave", "others", "servers"]

_GONE_S = 86400.0


class OtherCluster(InvalidRequest):
    """The database, or the place of the pictures, is another cluster's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What servers on one database have in common.

    Args:
        id: Drawn when the database was made.
        name: ``jobs.cluster`` of the first server that gave one.
        secret: 32 bytes in base64 that messages to outside are signed with.
    """

    id: str
    name: str
    secret: str


def join(db: sa.Connection, name: str) -> Cluster:
    """Return the database's cluster, made by whoever comes first.

    Raises:
        OtherCluster: If it has another name.
    """
    row = db.execute(sa.select(CLUSTER)).mappings().first()
    if row is None:
        secret = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
        fresh = {"id": secrets.token_hex(8), "name": name, "secret": secret}
        db.execute(sa.insert(CLUSTER).values(one=1, **fresh))
        return Cluster(**fresh)
    if name and not row["name"]:
        db.execute(sa.update(CLUSTER).values(name=name))
    elif name and row["name"] != name:
        raise OtherCluster(
            f"the job database belongs to the cluster {row['name']!r}, and jobs.cluster of this "
            f"server is {name!r}: give each cluster a database of its own (jobs.url)",
            field="jobs.cluster",
            value=name,
        )
    return Cluster(id=row["id"], name=row["name"] or name, secret=row["secret"])


def beat(db: sa.Connection, *, owner: str, version: str, environment: str | None) -> None:
    """Say that this server lives.

    Raises:
        NewerSchema: If a newer program has changed the tables meanwhile.
    """
    check_version(int(db.execute(sa.select(SCHEMA.c.version)).scalar_one()))
    values = {"environment": environment, "seen": now()}
    if not db.execute(sa.update(SERVERS).where(SERVERS.c.id == owner).values(values)).rowcount:
        host = socket.gethostname()[:255]
        fresh = {"id": owner, "host": host, "version": version[:64], **values}
        db.execute(sa.insert(SERVERS).values(fresh))


def leave(db: sa.Connection, *, owner: str) -> None:
    """Say that this server stops, and forget those that have long been gone."""
    gone = (SERVERS.c.id == owner) | (SERVERS.c.seen < now() - _GONE_S)
    db.execute(sa.delete(HOLDS).where(HOLDS.c.server.in_(sa.select(SERVERS.c.id).where(gone))))
    db.execute(sa.delete(SERVERS).where(gone))


def others(db: sa.Connection, *, owner: str, alive_s: float) -> list[str]:
    """Return the hosts of the other servers that were heard of within ``alive_s`` seconds."""
    alive = (SERVERS.c.seen > now() - alive_s) & (SERVERS.c.id != owner)
    return list(db.execute(sa.select(SERVERS.c.host).where(alive)).scalars())


def servers(db: sa.Connection, *, owner: str, alive_s: float) -> list[dict[str, Any]]:
    """Describe the servers that were heard of within ``alive_s`` seconds, oldest silence last."""
    silent = (now() - SERVERS.c.seen).label("silent_s")
    query = sa.select(SERVERS, silent).where(SERVERS.c.seen > now() - alive_s).order_by(silent)
    return [
        {
            "host": row.host,
            "version": row.version,
            "environment": row.environment,
            "silent_s": round(max(row.silent_s, 0.0), 1),
            "is_this": row.id == owner,
        }
        for row in db.execute(query)
    ]


def environments(db: sa.Connection, *, alive_s: float) -> list[str]:
    """Return what the arithmetic of the servers that live depends on, as digests."""
    alive = (SERVERS.c.seen > now() - alive_s) & SERVERS.c.environment.is_not(None)
    return list(db.execute(sa.select(SERVERS.c.environment).where(alive).distinct()).scalars())
