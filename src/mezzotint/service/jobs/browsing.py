"""Browsing: finding jobs by the words of their requests, and deleting them.

Functions on the job store's tables; each is one transaction and blocks.
"""

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from mezzotint.service.jobs.schema import EVENTS, IMAGES, JOBS, NOTES, WEBHOOKS

__all__ = ["delete_ended", "find_ids"]

_BATCH = 500


def find_ids(
    engine: sa.Engine,
    *,
    client: str | None,
    statuses: Sequence[str],
    words: Sequence[str],
    limit: int,
    before: int | None,
) -> list[str]:
    """Return the ids of jobs, newest first, whose texts hold every word.

    Args:
        engine: Of the store.
        client: Whose jobs; None is everybody's.
        statuses: Which of them.
        words: Looked for, in whatever case, in the prompts, the model, the scheduler, the
            names of LoRAs and the seed.
        limit: Jobs at most.
        before: Sequence number that all are older than; None begins with the newest.
    """
    wanted = [word.casefold() for word in words]
    found: list[str] = []
    with engine.connect() as db:
        while len(found) < limit:
            query = sa.select(JOBS.c.id, JOBS.c.seq, JOBS.c.request).order_by(JOBS.c.seq.desc())
            query = query.where(JOBS.c.status.in_(list(statuses)))
            if client is not None:
                query = query.where(JOBS.c.client == client)
            if before is not None:
                query = query.where(JOBS.c.seq < before)
            rows = db.execute(query.limit(limit if not wanted else _BATCH)).all()
            found += [row.id for row in rows if not wanted or _has_all(row.request, wanted)]
            if len(rows) < (limit if not wanted else _BATCH):
                break
            before = rows[-1].seq
    return found[:limit]


def _has_all(request: str, words: Sequence[str]) -> bool:
    """Whether the texts of a request hold every word."""
    asked: dict[str, Any] = json.loads(request)
    texts = [asked.get(name) for name in ("prompt", "negative_prompt", "model", "scheduler")]
    texts += [lora.get("name") for lora in asked.get("loras", ())]
    texts += [region.get("prompt") for region in asked.get("regions", ())]
    texts.append(asked.get("seed"))
    if "model" not in asked:
        texts.append("plate")
    text = "\n".join(str(value) for value in texts if value is not None).casefold()
    return all(word in text for word in words)


def delete_ended(engine: sa.Engine, id_: str, ended: Sequence[str]) -> list[str] | None:
    """Delete a job that has ended with everything kept of it.

    Returns:
        Digests of pictures that no job refers to any more, None if it has not ended.
    """
    with engine.begin() as db:
        where = (JOBS.c.id == id_) & JOBS.c.status.in_(list(ended))
        if not db.execute(sa.delete(JOBS).where(where)).rowcount:
            return None
        digests = set(db.execute(sa.select(IMAGES.c.digest).where(IMAGES.c.job == id_)).scalars())
        for table in (IMAGES, EVENTS, NOTES, WEBHOOKS):
            db.execute(sa.delete(table).where(table.c.job == id_))
        used = set(
            db.execute(sa.select(IMAGES.c.digest).where(IMAGES.c.digest.in_(digests))).scalars()
        )
    return sorted(digests - used)
