"""Uploads: files of models that a browser puts into the model store.

Off unless the operator gives both a model store and ``serve.limits.model_bytes``. A file
is written beside its place and gets its name when it is whole; nothing that lies in the
store is replaced. It becomes a model when it is registered, which reads it as any other.
"""

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidRequest, NotReady
from mezzotint.serve.errors import Conflict, MethodNotAllowed, UnsupportedMedia
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Body, Endpoint, json_response

__all__ = ["ENDPOINTS", "sweep_store"]

_FILE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.(?:safetensors|gguf|mzt|mar|tar\.gz|tgz)", re.ASCII
)
_PART = re.compile(r"\.[0-9a-f]{16}\.part", re.ASCII)
_ABANDONED_S = 3600.0  # without a byte; a model store may be that of several servers
_MOST_LISTED = 1000


def _store(front: Front) -> Path | None:
    found = front.memory.get("model_store")
    return found if isinstance(found, Path) else None


async def list_files(front: Front, http: Request) -> Response:
    """List what lies in the model store, and how large a file may be that is sent there."""
    store = _store(front)
    names = await asyncio.to_thread(_names, store) if store is not None else []
    limit = front.config.limits.model_bytes if store is not None else 0
    return json_response({"files": names, "limit": limit})


def _names(store: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(n for n in os.listdir(store) if not n.startswith("."))[:_MOST_LISTED]
    return []


def sweep_store(store: Path) -> None:
    """Remove the beginnings of files whose server was killed an hour ago or earlier."""
    with contextlib.suppress(OSError):
        for path in store.iterdir():
            if _PART.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _ABANDONED_S:
                        path.unlink()


async def put_file(front: Front, http: Request) -> Response:
    """Put a model's file into the model store, whole or not at all.

    Raises:
        MethodNotAllowed: If there is no model store, or it takes no files.
        UnsupportedMedia: If the name is not that of a model's file.
        Conflict: If something of that name lies there.
        TooLarge: If it is larger than the operator allows.
        NotReady: If it cannot be written.
    """
    front.check_open()
    store, limits = _store(front), front.config.limits
    if store is None or not limits.model_bytes or not front.config.model_api:
        raise MethodNotAllowed(
            "this server takes no files of models: it needs --model-store FOLDER, "
            "serve.limits.model_bytes and serve.model_api; or copy the file there yourself"
        )
    name = http.path_params["name"]
    if not _FILE.fullmatch(name):
        raise UnsupportedMedia(
            "a model's file is called NAME.safetensors, .gguf, .mzt, .mar or .tar.gz, "
            f"got {name[:140]!r}"
        )
    target, part = store / name, store / f".{secrets.token_hex(8)}.part"
    if os.path.lexists(target):
        raise Conflict(f"the model store has a {name} already", field="name")
    digest, count = hashlib.sha256(), 0
    try:
        with await asyncio.to_thread(part.open, "xb") as stream:
            async for chunk in http.stream():
                count += len(chunk)
                digest.update(chunk)
                await asyncio.to_thread(stream.write, chunk)
        if not count:
            raise InvalidRequest("the file is empty", field="body")
        await asyncio.to_thread(os.link, part, target)  # never over what is there
    except FileExistsError:
        raise Conflict(f"the model store has a {name} already", field="name") from None
    except OSError as error:
        raise NotReady(f"the file cannot be kept: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    body = {"source": name, "bytes": count, "sha256": digest.hexdigest()}
    return json_response(body, 201)


_LIST = {
    "type": "object",
    "required": ["files", "limit"],
    "properties": {
        "files": {"type": "array", "items": {"type": "string"}},
        "limit": {"type": "integer"},
    },
}

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="GET",
        path="/v1/operations/files",
        handler=list_files,
        summary="What lies in the model store",
        scope="manage",
        answers={"application/json": _LIST},
    ),
    Endpoint(
        method="PUT",
        path="/v1/operations/files/{name}",
        handler=put_file,
        summary="Put a model's file into the model store",
        scope="manage",
        body=Body("ModelFile", lambda _: {}, media="application/octet-stream"),
        answers={"application/json": {"type": "object"}},
        status=201,
        body_bytes=lambda limits: max(1, limits.model_bytes),
    ),
)
