"""ComfyUI files: pictures that a caller uploads, and those that were made for it."""

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from mezzotint.bounds import Length, Pattern
from mezzotint.errors import UnknownName
from mezzotint.plain import Checked
from mezzotint.request import Output
from mezzotint.serve.errors import NotFound, WrongField, WrongForeignField
from mezzotint.serve.forms import FILE
from mezzotint.serve.front import Front
from mezzotint.serve.queueing import kept_picture, own_job
from mezzotint.serve.schema import object_schema
from mezzotint.serve.wire import (
    CONTENT_TYPES,
    MULTIPART,
    Body,
    json_response,
    media_type,
    read_fields,
    read_form,
    visit,
)
from mezzotint.types import FileFormat, OutputFormat

__all__ = [
    "DOOR",
    "MASK_UPLOAD",
    "UPLOAD",
    "Upload",
    "find_picture",
    "has_alpha",
    "upload",
    "upload_mask",
    "uploads",
    "view",
]

DOOR = "comfyui"
_FILE = re.compile(r".*_(job-[0-9a-f]{24})_([0-9]{5})_\.\w+", re.DOTALL)
_PREVIEW = re.compile(r"(webp|jpeg|jpg|png)(?:;([0-9]{1,3}))?")
_ANNOTATION = re.compile(r"(.*?) ?\[(input|output|temp)\]", re.DOTALL)
_FOLDER = r"^(?![\s\S]*\.\.)[^\\\x00]*$"
_MOST_UPLOADS = 64
_MOST_UPLOAD_BYTES = 256 << 20
_MOST_CALLERS = 1000
_PREVIEW_QUALITY = 90
_SHOWN: dict[str, OutputFormat] = {"webp": "webp", "jpeg": "jpeg", "jpg": "jpeg", "png": "png"}


@dataclass(frozen=True, slots=True)
class Upload:
    """A picture that was uploaded.

    Args:
        data: The file.
        mask: A file that is transparent where the picture is to be repainted, if one was
            drawn for it.
    """

    data: bytes
    mask: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fields(Checked):
    """What may stand beside an uploaded picture.

    Args:
        overwrite: Whether to take the place of a picture of that name: ``true`` or ``1``.
        subfolder: The folder that the picture is kept under.
        type: Taken and not used: what is uploaded is an input.
        original_ref: JSON of the picture that a mask was drawn on.
    """

    overwrite: str = ""
    subfolder: Annotated[str, Length(most=200), Pattern(_FOLDER, "a plain folder name")] = ""
    type: str = "input"
    original_ref: str = ""


def _upload_schema(limits: Mapping[str, int]) -> dict[str, Any]:
    made = object_schema(_Fields, limits)
    del made["additionalProperties"]
    return made | {"properties": made["properties"] | {"image": FILE}, "required": ["image"]}


UPLOAD = Body("ComfyUpload", _upload_schema, media=MULTIPART)
MASK_UPLOAD = Body(
    "ComfyMaskUpload",
    lambda limits: _upload_schema(limits) | {"required": ["image", "original_ref"]},
    media=MULTIPART,
)


def uploads(front: Front, http: Request) -> "OrderedDict[str, Upload]":
    """Return the caller's pictures; of the callers that sent none for longest, none are kept."""
    kept: OrderedDict[str, OrderedDict[str, Upload]]
    kept = front.memory.setdefault("comfyui_uploads", OrderedDict())
    name = visit(http).caller.name
    mine = kept.setdefault(name, OrderedDict())
    kept.move_to_end(name)
    while len(kept) > _MOST_CALLERS:
        kept.popitem(last=False)
    return mine


async def find_picture(front: Front, http: Request, name: str) -> Upload | None:
    """Return a picture by the name that nodes load it by; None if the caller has none.

    Args:
        front: Knows what was uploaded and made.
        http: Who asks.
        name: ``picture.png``, ``folder/picture.png``, or the name of one that was made, with
            ``[output]`` behind it.
    """
    found = _ANNOTATION.fullmatch(name)
    plain, kind = (found[1], found[2]) if found is not None else (name, "input")
    if kind == "input":
        return uploads(front, http).get(plain)
    data = await _made(front, http, plain.rpartition("/")[2])
    return None if data is None else Upload(data[0])


async def _made(front: Front, http: Request, name: str) -> tuple[bytes, FileFormat] | None:
    """Return the file and format of a picture that was made for the caller."""
    found = _FILE.fullmatch(name)
    if found is None:
        return None
    try:
        job = await own_job(front, http, found[1], DOOR)
    except UnknownName:
        return None
    image = next((i for i in job.images if i.index == int(found[2]) - 1), None)
    if image is None:
        return None
    return await kept_picture(front, job, image.index), image.about["format"]


def has_alpha(data: bytes) -> bool:
    """Whether a file may hold transparency, by its head."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return data[25:26] in (b"\4", b"\6") or b"tRNS" in data[:4096]
    return data[:4] == b"RIFF" and (b"ALPH" in data[:4096] or b"VP8L" in data[:32])


def _format(data: bytes) -> FileFormat:
    is_jpeg, is_webp = data[:2] == b"\xff\xd8", data[:4] == b"RIFF"
    return "jpeg" if is_jpeg else "webp" if is_webp else "png"


async def view(front: Front, http: Request) -> Response:
    """Return a picture that was made for the caller, or that it uploaded."""
    query = http.query_params
    name, kind = query.get("filename", ""), query.get("type", "output")
    if kind == "input":
        folder = query.get("subfolder", "")
        kept = uploads(front, http).get(f"{folder}/{name}" if folder else name)
        found = None if kept is None else (kept.data, _format(kept.data))
    else:
        found = await _made(front, http, name)
    if found is None:
        raise NotFound("there is no such picture")
    data, format_ = found
    wanted = _PREVIEW.fullmatch(query.get("preview", ""))
    if wanted is not None:
        asked = _SHOWN[wanted[1]]
        quality = min(100, max(1, int(wanted[2] or _PREVIEW_QUALITY)))
        output = Output(format=asked, quality=quality, metadata=False)
        data = await front.service.grid([data], columns=1, padding_px=0, output=output)
        format_ = asked
    shown = name.replace('"', "").replace("\\", "").encode("ascii", "replace").decode()
    headers = {"content-disposition": f'filename="{shown[:200]}"'}
    return Response(data, headers=headers, media_type=CONTENT_TYPES[format_])


async def upload(front: Front, http: Request) -> Response:
    """Keep a picture for the caller's graphs, until newer ones take its room."""
    if media_type(http) == "application/json":
        raise WrongForeignField("image must be a file of a form", field="image")
    async with read_form(http) as form:
        data, name = await _file(form)
        fields = _fields(form)
    return _keep(front, http, Upload(data), name, fields)


async def upload_mask(front: Front, http: Request) -> Response:
    """Keep a picture that was uploaded before with a mask that was drawn on it."""
    if media_type(http) == "application/json":
        raise WrongForeignField("image must be a file of a form", field="image")
    async with read_form(http) as form:
        mask, name = await _file(form)
        fields = _fields(form)
    original = await _original(front, http, fields.original_ref)
    if not has_alpha(mask):
        text = "image must be a mask: a picture that is transparent where to repaint"
        raise WrongField(text, field="image")
    marked = Upload(original.data, mask)
    return _keep(front, http, marked, name, fields)


async def _original(front: Front, http: Request, reference: str) -> Upload:
    """Return the picture that a mask was drawn on.

    Raises:
        WrongField: If ``original_ref`` names none.
    """
    try:
        said: Any = json.loads(reference)
        name, kind = str(said["filename"]), str(said.get("type") or "output")
        folder = str(said.get("subfolder") or "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        text = "original_ref must be a JSON object with filename, subfolder and type"
        raise WrongField(text, field="original_ref", value=reference[:80]) from None
    if kind == "input":
        found = uploads(front, http).get(f"{folder}/{name}" if folder else name)
    else:
        found = await find_picture(front, http, f"{name} [output]")
    if found is None:
        text = f"original_ref: there is no such picture: {name[:80]}"
        raise WrongField(text, field="original_ref", value=name[:80])
    return found


async def _file(form: FormData) -> tuple[bytes, str]:
    """Return the picture of a form and its name.

    Raises:
        WrongForeignField: If there is none.
    """
    file = form.get("image")
    if not isinstance(file, UploadFile):
        raise WrongForeignField("image must be a file of a form", field="image")
    data = await file.read()
    if not data:
        raise WrongForeignField("image is empty", field="image")
    return data, (file.filename or "image.png").replace("\\", "/").rpartition("/")[2][:200]


def _fields(form: FormData) -> _Fields:
    """Return what stands beside the picture of a form.

    Raises:
        WrongForeignField: If a field is not what it must be.
    """
    texts = {name: value for name, value in form.items() if isinstance(value, str)}
    return read_fields(_Fields, texts)[0]


def _keep(front: Front, http: Request, kept: Upload, name: str, fields: _Fields) -> Response:
    """Keep a picture under a name that is free, or its own, or taken on purpose."""
    mine = uploads(front, http)
    folder = fields.subfolder.strip("/")
    wants_same = fields.overwrite.lower() in ("true", "1")
    lead = f"{folder}/" if folder else ""
    stem, dot, extension = name.rpartition(".")
    number, chosen = 1, name
    while not wants_same and mine.get(lead + chosen, kept) != kept:
        chosen = f"{stem if dot else name} ({number}){dot}{extension if dot else ''}"
        number += 1
    mine[lead + chosen] = kept
    mine.move_to_end(lead + chosen)
    while len(mine) > _MOST_UPLOADS or _num_bytes(mine) > _MOST_UPLOAD_BYTES:
        mine.popitem(last=False)
    return json_response({"name": chosen, "subfolder": folder, "type": "input"})


def _num_bytes(mine: "OrderedDict[str, Upload]") -> int:
    return sum(len(kept.data) + len(kept.mask) for kept in mine.values())
