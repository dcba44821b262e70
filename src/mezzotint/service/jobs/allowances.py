"""Allowances: what each client may still ask of all servers together, and holds of them.

Rows that servers on one PostgreSQL share, on the database's clock. What a server that died
held counts no longer once it has not been heard of for two leases.

Functions on connections in a transaction.
"""

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from mezzotint.service.jobs.clock import now
from mezzotint.service.jobs.schema import HOLDS, RATES, SERVERS

__all__ = ["hold", "spend", "tell"]

_LOCK = 0x6D7A6864  # of PostgreSQL: one server at a time counts what a client holds


def spend(db: sa.Connection, *, client: str, per_minute: int) -> float:
    """Take one request from a client's token bucket.

    Args:
        db: A transaction.
        client: Whose.
        per_minute: Size of the bucket, and what flows into it in a minute.

    Returns:
        0 if it was taken, else the seconds until there is one.
    """
    full, rate = float(per_minute), per_minute / 60
    fresh = insert(RATES).values(client=client, tokens=full, filled=now())
    db.execute(fresh.on_conflict_do_nothing())
    theirs = RATES.c.client == client
    query = sa.select(RATES.c.tokens, RATES.c.filled, now().label("now")).where(theirs)
    row = db.execute(query.with_for_update()).one()
    seconds = max(0.0, row.now - row.filled)
    tokens = min(full, row.tokens + seconds * rate)
    if tokens < 1:
        return (1 - tokens) / rate
    filled = max(row.now, row.filled)
    db.execute(sa.update(RATES).where(theirs).values(tokens=tokens - 1, filled=filled))
    return 0.0


def hold(
    db: sa.Connection,
    *,
    owner: str,
    client: str,
    most: int,
    own: Callable[[], int],
    alive_s: float,
) -> bool:
    """Write what a client holds of this server, if all servers together may give so much.

    Args:
        db: A transaction.
        owner: This server.
        client: Whose generations they are.
        most: How many it may hold.
        own: Tells how many it holds here, the new one included.
        alive_s: Seconds after which a server that says nothing holds nothing.
    """
    db.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK, sa.func.hashtext(client))))
    alive = sa.select(SERVERS.c.id).where(SERVERS.c.seen > now() - alive_s)
    others = (HOLDS.c.client == client) & (HOLDS.c.server != owner) & HOLDS.c.server.in_(alive)
    held = db.execute(sa.select(sa.func.coalesce(sa.func.sum(HOLDS.c.count), 0)).where(others))
    if int(held.scalar_one()) + own() > most:
        return False
    tell(db, owner=owner, client=client, own=own)
    return True


def tell(db: sa.Connection, *, owner: str, client: str, own: Callable[[], int]) -> None:
    """Write what a client holds of this server."""
    count = own()
    written = insert(HOLDS).values(server=owner, client=client, count=count)
    db.execute(
        written.on_conflict_do_update(
            index_elements=[HOLDS.c.server, HOLDS.c.client], set_={"count": count}
        )
    )
