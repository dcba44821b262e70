"""Adapters: LoRAs that clients bring along, list and drop.

What a key uploads is that key's: nobody else sees it, wears it or drops it, but keys that
manage the server. With ``shared=true`` a key that manages makes it everybody's, as all are
that the operator added; without keys everybody is one, so all are everybody's.
"""

import asyncio
import contextlib
from collections.abc import Generator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from mezzotint.bounds import SPACE
from mezzotint.errors import (
    InvalidField,
    InvalidRequest,
    ModelNotAllowed,
    NotReady,
    UnknownName,
)
from mezzotint.serve.auth import Caller, KeyRing
from mezzotint.serve.config import Limits
from mezzotint.serve.errors import Conflict, MethodNotAllowed, NotFound, UnsupportedMedia
from mezzotint.serve.front import Front
from mezzotint.serve.wire import Body, Endpoint, json_response, media_type, read_json, visit
from mezzotint.service.base import AdapterKeeper

__all__ = ["ENDPOINTS", "changeable_store"]

_MEDIA = "application/octet-stream"
_MOST_CHARACTERS = 1000  # of a source
_UPLOADS = 2  # of one key at once: what is on its way counts for no quota yet, and takes disk
_BOOLEANS = {"true": True, "false": False}


def changeable_store(front: Front) -> AdapterKeeper:
    """Return the LoRAs of this server, to change what they are.

    Raises:
        MethodNotAllowed: If adapters cannot be changed on this server.
        NotFound: If it has no home to keep any in.
    """
    _check_changeable(front)
    return _store(front)


def _store(front: Front) -> AdapterKeeper:
    """Return the LoRAs of this server.

    Raises:
        NotFound: If it has no home to keep any in.
    """
    if front.adapters is None:
        raise NotFound("this server keeps no adapters: it has no home folder")
    return front.adapters


def _asked(http: Request) -> tuple[str, bool]:
    """Return the caller's name, and whether it manages the server."""
    caller: Caller = visit(http).caller
    return caller.name, caller.manages


async def list_adapters(front: Front, http: Request) -> Response:
    """List the LoRAs that the caller may wear."""
    name, sees_all = _asked(http)
    found = await asyncio.to_thread(_store(front).listed, name, sees_all=sees_all)
    return json_response({"adapters": found})


async def show_adapter(front: Front, http: Request) -> Response:
    """Describe one LoRA."""
    client, sees_all = _asked(http)
    try:
        found = await asyncio.to_thread(
            _store(front).show, http.path_params["name"], client, sees_all=sees_all
        )
    except UnknownName as error:
        raise NotFound(str(error)) from None
    return json_response(found)


async def upload_adapter(front: Front, http: Request) -> Response:
    """Take a LoRA, the bytes of its safetensors file, as they come.

    Raises:
        MethodNotAllowed: If adapters cannot be changed on this server.
        Forbidden: If it shall be everybody's and the key may not manage.
        UnsupportedMedia: If the body is said to be anything but bytes.
        Conflict: If the name is taken; said before the body is read, as is a full quota.
        Refused: If the key has as many as it may.
        TooManyRequests: If as many uploads of the key are under way as may be.
        TooLarge: If it is larger than a LoRA may be.
        NotReady: If the disk is full.
    """
    _check_changeable(front)
    front.check_open()
    store, caller = _store(front), visit(http).caller
    if media_type(http) not in ("", _MEDIA):
        raise UnsupportedMedia(f"expected {_MEDIA}, got {media_type(http)}")
    owner = "" if _is_shared(front, http, caller) else caller.name
    name: str = http.path_params["name"]
    store.check_name(name)
    most = front.config.limits.adapters
    try:
        await asyncio.to_thread(store.check_free, name, owner, most=most)
        with _one_of_few(front, caller), store.incoming() as upload:
            with upload.open("wb") as stream:
                async for chunk in http.stream():
                    await asyncio.to_thread(stream.write, chunk)
            found = await asyncio.to_thread(store.take, name, upload, owner, most=most)
    except InvalidRequest as error:
        if error.field == "name":
            raise Conflict(str(error), field="name") from None
        raise
    except OSError as error:
        raise NotReady(f"the LoRA cannot be kept: {error.strerror or error}") from None
    return json_response(found, 201)


async def add_adapter(front: Front, http: Request) -> Response:
    """Take a LoRA from a path of the server's machine or from the Hub; it is everybody's.

    Raises:
        MethodNotAllowed: If adapters cannot be changed on this server.
        ModelNotAllowed: If the operator lets nothing be named by path.
        InvalidRequest: If ``source`` or ``name`` is not what it must be.
        Conflict: If the name is taken.
        WeightsError: If there is no LoRA at the source.
    """
    _check_changeable(front)
    front.check_open()
    store, body = _store(front), await read_json(http)
    source, name = (body.get(field) for field in ("source", "name"))
    if not isinstance(source, str) or not source.strip(SPACE) or len(source) > _MOST_CHARACTERS:
        raise InvalidField(
            "source must be a path on the server's machine, or on the Hub OWNER/NAME or "
            "OWNER/NAME/FILE.safetensors",
            field="source",
        )
    if not isinstance(name, str):
        raise InvalidField(
            "name must be what requests will call it: letters, digits, '.', '_' or '-'",
            field="name",
        )
    store.check_name(name)
    if not front.config.register_paths:
        raise ModelNotAllowed(
            "source: LoRAs are named by path or Hub id only where the operator has set "
            f"serve.register_paths; send the file itself with PUT /v1/adapters/loras/{name}"
        )
    front.check_source(f"./{source}", "source")
    try:
        found = await asyncio.to_thread(store.bring, name, source)
    except InvalidRequest as error:
        if error.field == "name":
            raise Conflict(str(error), field="name") from None
        raise
    except OSError as error:
        raise NotReady(f"the LoRA cannot be kept: {error.strerror or error}") from None
    return json_response(found, 201)


@contextlib.contextmanager
def _one_of_few(front: Front, caller: Caller) -> Generator[None]:
    """Count an upload of the caller while the block runs.

    Raises:
        TooManyRequests: If it has as many under way as it may have.
    """
    front.meter.take(caller, "uploads of LoRAs", _UPLOADS)
    try:
        yield
    finally:
        front.meter.give(caller, "uploads of LoRAs")


def _is_shared(front: Front, http: Request, caller: Caller) -> bool:
    """Whether an upload shall be everybody's."""
    ring: KeyRing = front.memory["keys"]
    text = http.query_params.get("shared", "true" if ring.is_open else "false")
    if text not in _BOOLEANS:
        raise InvalidField(
            f"shared must be true or false, got {text[:40]!r}", field="shared", value=text[:40]
        )
    if _BOOLEANS[text]:
        caller.require("manage")
    return _BOOLEANS[text]


async def drop_adapter(front: Front, http: Request) -> Response:
    """Remove a LoRA: one's own, or any with a key that manages."""
    _check_changeable(front)
    client, sees_all = _asked(http)
    name: str = http.path_params["name"]
    try:
        await asyncio.to_thread(_store(front).drop, name, client, sees_all=sees_all)
    except UnknownName as error:
        raise NotFound(str(error)) from None
    return json_response({"kind": "lora", "name": name, "status": "removed"})


def _check_changeable(front: Front) -> None:
    if not front.config.adapter_api:
        raise MethodNotAllowed("adapters cannot be changed: serve.adapter_api is off")


def _most_bytes(limits: Limits) -> int:
    return limits.adapter_bytes


_ADAPTER: dict[str, Any] = {
    "type": "object",
    "required": ["kind", "name", "bytes", "about", "error", "owner"],
    "properties": {
        "kind": {"const": "lora"},
        "name": {"type": "string"},
        "path": {"type": "string"},
        "bytes": {"type": "integer"},
        "about": {"type": "string"},
        "error": {"type": "string"},
        "owner": {"type": "string", "description": "whose it is; empty for everybody's"},
        "ranks": {"type": "array", "items": {"type": "integer"}},
        "layers": {"type": "integer"},
        "networks": {"type": "array", "items": {"type": "string"}},
        "metadata": {"type": "object"},
    },
}
_LIST = {
    "type": "object",
    "required": ["adapters"],
    "properties": {"adapters": {"type": "array", "items": _ADAPTER}},
}
_ONE = "/v1/adapters/loras/{name}"
_SOURCE = {
    "type": "object",
    "required": ["name", "source"],
    "properties": {
        "source": {"type": "string", "maxLength": _MOST_CHARACTERS, "pattern": f"[^{SPACE}]"},
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"},
    },
}
_SHARED = {
    "name": "shared",
    "in": "query",
    "description": "whether it is everybody's; needs a key that manages",
    "schema": {"enum": ["true", "false"]},
}

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        method="GET", path="/v1/adapters", handler=list_adapters,
        summary="LoRAs that a request may wear", answers={"application/json": _LIST},
    ),
    Endpoint(
        method="POST", path="/v1/adapters/loras", handler=add_adapter, scope="manage",
        summary="Add a LoRA by path or from the Hub, where the operator allows it", status=201,
        body=Body("LoraSource", lambda _: _SOURCE), answers={"application/json": _ADAPTER},
    ),
    Endpoint(
        method="GET", path=_ONE, handler=show_adapter, summary="One LoRA",
        answers={"application/json": _ADAPTER},
    ),
    Endpoint(
        method="PUT", path=_ONE, handler=upload_adapter, summary="Bring a LoRA along",
        body=Body("LoraFile", lambda _: {}, media=_MEDIA), status=201, parameters=(_SHARED,),
        answers={"application/json": _ADAPTER}, body_bytes=_most_bytes,
    ),
    Endpoint(method="DELETE", path=_ONE, handler=drop_adapter, summary="Drop a LoRA"),
)  # fmt: skip
