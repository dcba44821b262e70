"""Collection: every kept picture in short, what people think of each, and many as one file.

The list is what the page searches in: all of it, in pages, so that a search asks nobody.
"""

import io
import re
import time
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from mezzotint.bounds import Count, Length, Range
from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.plain import Checked, read
from mezzotint.serve.errors import Gone
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import kept_picture, owner_of, queue_of
from mezzotint.serve.schema import object_schema
from mezzotint.serve.wire import Body, Endpoint, json_response, read_json
from mezzotint.service.jobs.store import Job

__all__ = ["ENDPOINTS"]

_MOST = 1000
_ENDINGS = {"jpeg": "jpg", "apng": "png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marks(Checked):
    """What somebody thinks of a picture.

    Args:
        star: Whether it is starred.
        rating: 1 to 5; 0 is none.
        boards: Names of the boards that it lies on.
    """

    star: bool = False
    rating: Annotated[int, Range(0, 5)] = 0
    boards: Annotated[tuple[Annotated[str, Length(1, 60)], ...], Count(0, 50, "boards")] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen(Checked):
    """One picture.

    Args:
        job: Id of its job.
        index: Which of the job's pictures.
    """

    job: Annotated[str, Length(1, 80)]
    index: Annotated[int, Range(0, 1_000_000)] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Archive(Checked):
    """Pictures for one file.

    Args:
        pictures: Which, in order.
    """

    pictures: Annotated[tuple[_Chosen, ...], Count(1, _MOST, "pictures")]


async def pictures(front: Front, http: Request) -> Response:
    """List the pictures of ended jobs in short, newest job first."""
    text = http.query_params.get("limit", "500")
    limit = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    if not 1 <= limit <= _MOST:
        raise InvalidRequest(
            f"limit must be 1 to {_MOST}, got {text[:40]}", field="limit", value=text[:40]
        )
    found, following = await queue_of(front).pictures(
        client=owner_of(http), limit=limit, after=http.query_params.get("after")
    )
    return json_response({"pictures": found, "next": following})


def _has(job: Job, index: int) -> bool:
    return any(image.index == index for image in job.images)


async def mark(front: Front, http: Request) -> Response:
    """Keep the star, the rating and the boards of a picture, in place of those before."""
    marks = read(_Marks, await read_json(http))
    queue, text = queue_of(front), http.path_params["k"]
    job = await queue.get(http.path_params["id"], client=owner_of(http))
    index = int(text) if re.fullmatch(r"[0-9]{1,7}", text) else -1
    if not _has(job, index):
        raise UnknownName("job", f"{job.id}/images/{text[:40]}", (), field="k")
    kept: dict[str, Any] = {}
    if marks.star:
        kept["star"] = True
    if marks.rating:
        kept["rating"] = marks.rating
    if marks.boards:
        kept["boards"] = sorted(set(marks.boards))
    await queue.mark(job.id, index, kept)
    return json_response(kept)


async def archive(front: Front, http: Request) -> Response:
    """Answer with pictures as one ZIP, made while it is sent.

    Raises:
        UnknownName: If one of them is not there, or not the caller's.
    """
    wanted = read(_Archive, await read_json(http)).pictures
    queue, found = queue_of(front), list[tuple[Job, int]]()
    jobs: dict[str, Job] = {}
    for one in dict.fromkeys(wanted):
        if one.job not in jobs:
            jobs[one.job] = await queue.get(one.job, client=owner_of(http))
        if not _has(jobs[one.job], one.index):
            raise UnknownName("job", f"{one.job}/images/{one.index}", (), field="pictures")
        found.append((jobs[one.job], one.index))
    headers = {"Content-Disposition": 'attachment; filename="pictures.zip"'}
    return StreamingResponse(_pack(front, found), headers=headers, media_type="application/zip")


async def _pack(front: Front, chosen: list[tuple[Job, int]]) -> AsyncIterator[bytes]:
    """Yield a ZIP; pictures are packed already, so they are stored as they are."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED) as file:
        for job, index in chosen:
            about = next(image.about for image in job.images if image.index == index)
            try:
                data = await kept_picture(front, job, index)
            except Gone:  # deleted meanwhile; the others are still wanted
                continue
            made = time.localtime(job.created)
            ending = _ENDINGS.get(about["format"], about["format"])
            name = f"{time.strftime('%Y%m%d-%H%M%S', made)}-{about['seed']}-{job.id[4:10]}"
            info = zipfile.ZipInfo(f"{name}-{index}.{ending}", made[:6])
            file.writestr(info, data)
            yield pipe.take()
    yield pipe.take()


class _Pipe(io.RawIOBase):
    """Holds what was written until it is taken; cannot go back."""

    def __init__(self) -> None:
        super().__init__()
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._held += data
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last time."""
        held = bytes(self._held)
        self._held.clear()
        return held


_PICTURE = {
    "type": "object",
    "required": [
        "job", "index", "created", "seed", "format", "width", "height", "frames", "asked", "marks"
    ],
    "properties": {
        "job": {"type": "string"},
        "index": {"type": "integer"},
        "created": {"type": "number"},
        "seed": {"type": "integer"},
        "format": {"type": "string"},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "frames": {"type": "integer"},
        "asked": {"type": "object"},
        "marks": {"type": "object"},
    },
}  # fmt: skip
_PICTURES = {
    "type": "object",
    "required": ["pictures", "next"],
    "properties": {
        "pictures": {"type": "array", "items": _PICTURE},
        "next": {"type": ["string", "null"]},
    },
}

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="GET",
        path="/v1/gallery/pictures",
        handler=pictures,
        summary="Every kept picture in short",
        answers={"application/json": _PICTURES},
        parameters=(
            {
                "name": "limit",
                "in": "query",
                "schema": {"type": "integer", "minimum": 1, "maximum": _MOST},
            },
            {"name": "after", "in": "query", "schema": {"type": "string"}},
        ),
    ),
    Endpoint(
        method="PUT",
        path="/v1/jobs/{id}/images/{k}/marks",
        handler=mark,
        summary="Star a picture, rate it, lay it on boards",
        body=Body("Marks", lambda limits: object_schema(_Marks, limits)),
        answers={"application/json": {"type": "object"}},
    ),
    Endpoint(
        method="POST",
        path="/v1/gallery/archive",
        handler=archive,
        summary="Pictures as one ZIP",
        body=Body("Archive", lambda limits: object_schema(_Archive, limits)),
        answers={"application/zip": {}},
    ),
)
