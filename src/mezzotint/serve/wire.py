"""Wire: what every dialect needs to read bodies and answer, and nothing of any dialect.

An endpoint is data (path, method, handler, words for the OpenAPI document), so
that routing, the document and the tests read the same table.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response

from mezzotint.errors import InvalidField
from mezzotint.plain import field_names, is_dict, json_name, read
from mezzotint.serve.config import Limits
from mezzotint.serve.errors import Malformed, Problem, UnsupportedMedia, WrongForeignField
from mezzotint.serve.json_faults import find_fault
from mezzotint.types import FileFormat, StageTimings

__all__ = [
    "CONTENT_TYPES",
    "MULTIPART",
    "URLENCODED",
    "Body",
    "Dialect",
    "Endpoint",
    "Visit",
    "any_bytes",
    "json_response",
    "media_type",
    "read_fields",
    "read_form",
    "read_json",
    "visit",
]

CONTENT_TYPES: Mapping[FileFormat, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "apng": "image/apng",
    "mp4": "video/mp4",
}
MULTIPART, URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
_FORM_FILES = 32
_FORM_FIELDS = 200
_FORM_PART_BYTES = 1 << 30  # the body as a whole is bounded before

Handler = Callable[[Any, Request], Awaitable[Any]]
Listener = Literal["generation", "management", "metrics"]


@dataclass(frozen=True, slots=True)
class Body:
    """What the OpenAPI document says about the body of an endpoint.

    Args:
        name: Of the schema among the document's components.
        schema: Makes the JSON Schema; told the operator's limits.
        parts: Schemas that it refers to.
        required: Whether there must be a body.
        also: Other media types that the endpoint takes, each with what makes its schema;
            a schema that says nothing is one of bytes.
        media: Media type of ``schema``.
    """

    name: str
    schema: Callable[[Mapping[str, int]], dict[str, Any]]
    parts: "tuple[Body, ...]" = ()
    required: bool = True
    also: "tuple[tuple[str, Callable[[Mapping[str, int]], dict[str, Any]]], ...]" = ()
    media: str = "application/json"

    @property
    def reference(self) -> dict[str, Any]:
        """The schema by its name."""
        return {"$ref": f"#/components/schemas/{self.name}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path and method, and what the OpenAPI document says about it.

    Args:
        method: HTTP method.
        path: Starlette path pattern.
        handler: ``async (front, http) -> ASGI response``.
        summary: One line for people.
        listener: Which port serves it.
        scope: Scope a key needs, or None for everybody.
        body: What a body may be, or None.
        answers: Content type -> JSON Schema (empty for bytes) of the 200 answer.
        status: Status of the good answer.
        parameters: Query parameters as OpenAPI objects.
        operation: Its ``operationId`` in the document; made of method and path if empty.
        body_bytes: Bytes that its body may have, of the operator's limits; None is what any
            body may have. The seconds that it may take grow with them.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    listener: Listener = "generation"
    scope: str | None = "generate"
    body: Body | None = None
    answers: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"application/json": {}}
    )
    status: int = 200
    parameters: tuple[Mapping[str, Any], ...] = ()
    operation: str = ""
    body_bytes: Callable[[Limits], int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One way to speak: its endpoints, the paths it owns, its error bodies.

    ``prefix`` is what its paths may also stand below.
    """

    name: str
    pattern: re.Pattern[str]
    endpoints: tuple[Endpoint, ...]
    render: Callable[[Problem, str], Response]
    prefix: str = ""


@dataclass(slots=True)
class Visit:
    """What is known about one HTTP exchange while it lasts.

    ``ran_code`` says that handler code answered, which has no ``timings``; ``problem`` is
    the code of the error that was answered, whatever status a dialect has for it.
    """

    request_id: str
    listener: Listener
    dialect: str = ""
    caller: Any = None
    cache: Literal["hit", "miss"] = "miss"
    timings: list[StageTimings] = field(default_factory=list[StageTimings])
    model: str = ""
    queue_s: float = 0.0
    ran_code: bool = False
    problem: str = ""


def any_bytes(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of bytes, which says nothing of them."""
    return {}


def visit(http: Request) -> Visit:
    """Return the visit an HTTP request belongs to."""
    return http.scope["visit"]


def media_type(http: Request) -> str:
    """Return the content type of the body without its parameters, in lower case."""
    return http.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(
    http: Request, *, optional: bool = False, untyped: bool = False, any_type: bool = False
) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        http: The request.
        optional: Whether no body at all means an empty object.
        untyped: Whether a body without a content type is taken for JSON, as clients of
            the open inference protocol send it.
        any_type: Whether the body is JSON whatever its content type says.

    Raises:
        UnsupportedMedia: If the content type is something else, or is missing.
        Malformed: If it is not JSON or not an object.
    """
    kind = media_type(http)
    if any_type:
        kind = "application/json"
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMedia(f"expected application/json, got {kind}")
    body = await http.body()
    if not body and optional:
        return {}
    if body and not kind and not untyped:
        raise UnsupportedMedia("the body needs a content type: expected application/json, got none")
    value = parse_json(body)
    if not is_dict(value):
        raise Malformed(f"the body must be a JSON object, got {type(value).__name__}")
    return value


def parse_json(body: bytes) -> Any:
    """Parse JSON text.

    Raises:
        Malformed: If it is not JSON (NaN, lone surrogates and deep nesting included);
            names the field where one value is to blame.
        WrongForeignField: If a number is larger than any that a computer calculates with.
    """
    if not body:
        raise Malformed("the body must be a JSON object, got nothing")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fault = find_fault(body)
        if fault is None:
            raise Malformed(f"the body is not JSON: {error}") from None
        if fault.is_number:
            raise WrongForeignField(
                f"{fault.field} must be a finite number, got {fault.what}",
                field=fault.field,
                value=fault.what,
                allowed="a finite number",
            ) from None
        raise Malformed(
            f"{fault.field} is {fault.what}, which JSON cannot hold",
            field=fault.field,
            value=fault.what,
            allowed="a JSON value",
        ) from None


@contextlib.asynccontextmanager
async def read_form(http: Request) -> AsyncGenerator[FormData, None]:
    """Read a multipart or urlencoded form; its files are closed afterwards.

    Raises:
        UnsupportedMedia: If the body is neither.
        Malformed: If it cannot be parsed or has too many parts.
    """
    kind = media_type(http)
    if kind not in (MULTIPART, URLENCODED):
        raise UnsupportedMedia(f"expected a form, got {kind or 'no content type'}")
    body = await http.body()
    if kind == MULTIPART:
        _, _, boundary = http.headers["content-type"].partition("boundary=")
        end = b"--" + boundary.partition(";")[0].strip().strip('"').encode("latin-1") + b"--"
        if len(end) < 5 or end not in body:
            raise Malformed("the form has no end: its last boundary is missing")
    try:
        form = await http.form(
            max_files=_FORM_FILES, max_fields=_FORM_FIELDS, max_part_size=_FORM_PART_BYTES
        )
    except (HTTPException, MultiPartException, ValueError, KeyError) as error:
        detail = getattr(error, "detail", None) or getattr(error, "message", None) or error
        raise Malformed(f"the form cannot be read: {detail}") from None
    try:
        yield form
    finally:
        await form.close()


def json_response(
    value: Any,
    status: int = 200,
    *,
    headers: Mapping[str, str] | None = None,
    media: str = "application/json",
    indent: bool = False,
) -> Response:
    """Answer with JSON."""
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 if indent else None)
    return Response(body, status, headers=dict(headers or {}), media_type=media)


def read_fields(cls: Any, body: Mapping[str, Any], path: str = "") -> tuple[Any, dict[str, Any]]:
    """Read the fields of a foreign body that a dataclass declares; null is as good as absent.

    Args:
        cls: A :class:`mezzotint.plain.Checked` dataclass, named as the dialect has it.
        body: What came.
        path: Where it stands.

    Returns:
        The fields, and what ``cls`` does not know.

    Raises:
        WrongForeignField: If a field is wrong by itself; named as the dialect has it.
    """
    known = {json_name(name) for name in field_names(cls)}
    given = {k: v for k, v in body.items() if k in known and v is not None}
    try:
        return read(cls, given, path), {k: v for k, v in body.items() if k not in known}
    except InvalidField as error:
        raise WrongForeignField(
            str(error), field=error.field, value=error.value, allowed=error.allowed
        ) from None
