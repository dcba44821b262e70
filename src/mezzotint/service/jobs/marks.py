"""Marks: what people think of kept pictures, and the short list of all of them.

A star, a rating and boards stand in the note of the job, by the picture's index. The
list says of every picture what one searches by, and nothing else, so that thousands fit
into one answer. Functions on the job store's tables; each is one transaction and blocks.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from mezzotint.service.jobs.schema import IMAGES, JOBS, NOTES

__all__ = ["MARKS", "list_pictures", "write_marks"]

MARKS = "marks"
"""Name within a job's note."""

_MOST_TEXT = 400  # characters of a prompt that the list holds
_ASKED = ("prompt", "negative_prompt", "model", "scheduler")


def write_marks(engine: sa.Engine, id_: str, index: int, marks: Mapping[str, Any]) -> None:
    """Keep the marks of one picture; none removes them."""
    with engine.begin() as db:
        where = NOTES.c.job == id_
        text = db.execute(sa.select(NOTES.c.note).where(where).with_for_update()).scalar()
        note: dict[str, Any] = json.loads(text or "{}")
        kept = {k: v for k, v in note.get(MARKS, {}).items() if k != str(index)}
        note[MARKS] = {**kept, str(index): dict(marks)} if marks else kept
        values = {"note": json.dumps(note)}
        if text is None:
            db.execute(sa.insert(NOTES).values(job=id_, **values))
        else:
            db.execute(sa.update(NOTES).where(where).values(values))


def list_pictures(
    engine: sa.Engine,
    *,
    client: str | None,
    statuses: Sequence[str],
    limit: int,
    before: int | None,
) -> tuple[list[dict[str, Any]], str | None]:
    """List the pictures of the newest jobs, newest job first.

    Args:
        engine: Of the store.
        client: Whose; None is everybody's.
        statuses: Of which jobs.
        limit: Jobs that are looked at, at most.
        before: Sequence number that all are older than; None begins with the newest.

    Returns:
        The pictures, and the id of the last job where older ones may be left.
    """
    chosen = sa.select(JOBS.c.seq, JOBS.c.id, JOBS.c.created, JOBS.c.request)
    chosen = chosen.where(JOBS.c.status.in_(list(statuses))).order_by(JOBS.c.seq.desc())
    if client is not None:
        chosen = chosen.where(JOBS.c.client == client)
    if before is not None:
        chosen = chosen.where(JOBS.c.seq < before)
    with engine.connect() as db:
        rows = db.execute(chosen.limit(limit)).all()
        if not rows:
            return [], None
        ids = [row.id for row in rows]
        images: dict[str, list[Any]] = {}
        query = sa.select(IMAGES.c.job, IMAGES.c.position, IMAGES.c.about)
        query = query.where(IMAGES.c.job.in_(ids)).order_by(IMAGES.c.position)
        for image in db.execute(query):
            images.setdefault(image.job, []).append(image)
        query = sa.select(NOTES.c.job, NOTES.c.note).where(NOTES.c.job.in_(ids))
        notes = {row.job: json.loads(row.note).get(MARKS, {}) for row in db.execute(query)}
    found: list[dict[str, Any]] = []
    for row in rows:
        if row.id not in images:
            continue
        asked: dict[str, Any] = json.loads(row.request)
        told = {name: str(asked[name])[:_MOST_TEXT] for name in _ASKED if asked.get(name)}
        loras = [str(lora.get("name")) for lora in asked.get("loras", ())]
        for image in images[row.id]:
            about = json.loads(image.about)
            found.append(
                {
                    "job": row.id,
                    "index": image.position,
                    "created": row.created,
                    **{k: about[k] for k in ("seed", "format", "width", "height")},
                    "frames": about.get("frames", 1),
                    "asked": {**told, **({"loras": loras} if loras else {})},
                    "marks": notes.get(row.id, {}).get(str(image.position), {}),
                }
            )
    return found, rows[-1].id if len(rows) == limit else None
