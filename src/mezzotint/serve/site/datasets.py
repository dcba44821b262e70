"""Data sets: pictures and captions that a browser brings along for training runs.

They lie beside the runs: a folder for each data set, a picture a file, its caption in a
text of the same name. Each file is sent, read and removed by itself, so that a caption is
mended without sending the picture again. Off where runs cannot be started.
"""

import asyncio
import os
import re
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest
from mezzotint.files import write_atomically
from mezzotint.request import Output
from mezzotint.serve.errors import Conflict, NotFound, UnsupportedMedia
from mezzotint.serve.front import Front
from mezzotint.serve.site.runs import RUN_NAME
from mezzotint.serve.site.training import DATASETS, do, trainings
from mezzotint.serve.wire import Body, Endpoint, json_response, visit

__all__ = ["ENDPOINTS"]

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(?:png|jpe?g|webp|bmp|txt)", re.ASCII)
_MOST_FILES = 20_000
_MOST_CAPTION = 10_000  # bytes; longer texts are no captions, and are not shown
_SMALL_PX = 160


async def list_datasets(front: Front, http: Request) -> Response:
    """List the data sets that came from browsers."""
    root = trainings(front).folder / DATASETS
    found = await asyncio.to_thread(_datasets, root)
    return json_response({"folder": str(root), "datasets": found})


async def show_dataset(front: Front, http: Request) -> Response:
    """List the pictures of a data set by name, each with its caption ("" for none)."""
    folder = _folder(front, http)
    pictures = await asyncio.to_thread(_pictures, folder)
    return json_response({"name": folder.name, "path": str(folder), "pictures": pictures})


async def small_file(front: Front, http: Request) -> Response:
    """Answer with a small WebP of a picture of a data set, cut to a square.

    Raises:
        NotFound: If there is no such picture.
        ImageError: If the file is none.
    """
    path = _folder(front, http) / _file(http)
    try:
        data = await asyncio.to_thread(_read, path)
    except OSError:
        raise NotFound(f"the data set has no file {path.name}") from None
    made = await front.service.upscale(
        data,
        factor=1.0,
        output=Output(format="webp", quality=82, metadata=False),
        client=visit(http).caller.name,
        cover=(_SMALL_PX, _SMALL_PX),
        crop=True,
    )
    return Response(
        made.data, headers={"Cache-Control": "private, no-cache"}, media_type="image/webp"
    )


async def put_file(front: Front, http: Request) -> Response:
    """Keep one picture, or the caption beside one, in a data set.

    Raises:
        MethodNotAllowed: If runs cannot be started on this server.
        Conflict: If the data set is full.
        UnsupportedMedia: If the file is neither a picture nor a text.
    """
    folder, file = _folder(front, http), _file(http)
    data = await http.body()
    if not data:
        raise InvalidRequest("the file is empty", field="file")

    def keep() -> None:
        _refuse_links(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if len(os.listdir(folder)) >= _MOST_FILES:
            raise Conflict(f"data set {folder.name} is full: {_MOST_FILES} files", field="name")
        write_atomically(folder / file, data)

    await do(keep)
    return json_response({"dataset": folder.name, "file": file, "bytes": len(data)}, 201)


async def remove_file(front: Front, http: Request) -> Response:
    """Remove one picture with its caption, or a caption alone, from a data set.

    Raises:
        NotFound: If there is no such file.
    """
    folder, file = _folder(front, http), _file(http)

    def remove() -> None:
        _refuse_links(folder)
        try:
            (folder / file).unlink()
        except FileNotFoundError:
            raise NotFound(f"data set {folder.name} has no file {file}") from None
        caption = (folder / file).with_suffix(".txt")
        if not any(p.stem == caption.stem and p != caption for p in folder.iterdir()):
            caption.unlink(missing_ok=True)  # else it is another picture's too

    await do(remove)
    return json_response({"dataset": folder.name, "file": file, "status": "removed"})


def _folder(front: Front, http: Request) -> Path:
    """Return the folder of the data set that the path names; it need not be there."""
    root, name = trainings(front).folder / DATASETS, http.path_params["name"]
    if not RUN_NAME.fullmatch(name):
        raise NotFound(f"no data set can be called {name[:100]!r}")
    return root / name


def _file(http: Request) -> str:
    """Return the file that the path names."""
    file = http.path_params["file"]
    if not _FILE.fullmatch(file):
        raise UnsupportedMedia(
            "a file of a data set is called like 0001.png (png, jpg, webp, bmp) or 0001.txt, "
            f"got {file[:140]!r}"
        )
    return file


def _refuse_links(folder: Path) -> None:
    """Refuse a data set that lies somewhere else."""
    if folder.parent.is_symlink() or folder.is_symlink():
        raise NotFound(f"no data set can be called {folder.name[:100]!r}")


def _read(path: Path) -> bytes:
    _refuse_links(path.parent)
    if path.is_symlink():
        raise NotFound(f"the data set has no file {path.name}")
    return path.read_bytes()


def _datasets(root: Path) -> list[dict[str, Any]]:
    """Describe each data set: its path, pictures and captions."""
    found: list[dict[str, Any]] = []
    for path in sorted(root.iterdir()) if root.is_dir() and not root.is_symlink() else ():
        if not RUN_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        files = [file for file in os.listdir(path) if _FILE.fullmatch(file)]
        captions = sum(file.endswith(".txt") for file in files)
        found.append(
            {
                "name": path.name,
                "path": str(path),
                "pictures": len(files) - captions,
                "captions": captions,
            }
        )
    return found


def _pictures(folder: Path) -> list[dict[str, str]]:
    """Return the pictures of a data set and their captions.

    Raises:
        NotFound: If there is no such data set.
    """
    _refuse_links(folder)
    if not folder.is_dir():
        raise NotFound(f"there is no data set {folder.name}")
    files = {file for file in os.listdir(folder) if _FILE.fullmatch(file)}
    return [
        {"file": file, "caption": _caption((folder / file).with_suffix(".txt"), files)}
        for file in sorted(files)
        if not file.endswith(".txt")
    ]


def _caption(path: Path, files: set[str]) -> str:
    """Return the text beside a picture, as the trainer reads it; "" where there is none."""
    try:
        if path.name not in files or path.is_symlink() or path.stat().st_size > _MOST_CAPTION:
            return ""
        return path.read_text("utf-8", errors="replace").strip()
    except FileNotFoundError:  # removed meanwhile
        return ""


_DATASET = {
    "type": "object",
    "required": ["name", "path", "pictures"],
    "properties": {
        "name": {"type": "string"},
        "path": {"type": "string"},
        "pictures": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["file", "caption"],
                "properties": {"file": {"type": "string"}, "caption": {"type": "string"}},
            },
        },
    },
}
_OBJECT: dict[str, Any] = {"application/json": {"type": "object"}}


def _endpoint(method: str, path: str, handler: Any, summary: str, **more: Any) -> Endpoint:
    given: dict[str, Any] = {"answers": _OBJECT, **more}
    return Endpoint(
        method=method, path=f"/v1/datasets{path}", handler=handler, summary=summary,
        scope="manage", **given,
    )  # fmt: skip


ENDPOINTS: tuple[Endpoint, ...] = (
    _endpoint("GET", "", list_datasets, "List data sets for training runs"),
    _endpoint(
        "GET", "/{name}", show_dataset, "List the pictures of a data set and their captions",
        answers={"application/json": _DATASET},
    ),
    _endpoint(
        "PUT", "/{name}/{file}", put_file, "Keep a picture in a data set",
        body=Body("DatasetFile", lambda _: {}, media="application/octet-stream"), status=201,
    ),
    _endpoint("DELETE", "/{name}/{file}", remove_file, "Remove a picture from a data set"),
    _endpoint(
        "GET", "/{name}/{file}/small", small_file, "A small square of a picture of a data set",
        answers={"image/webp": {}},
    ),
)  # fmt: skip
