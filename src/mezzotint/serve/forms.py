"""Forms: a request as the parts of a form, read by the schema of its JSON.

A picture is a file (or base64 text), a list of pictures one part each. A part that may
be a text is that text, whatever it looks like; any other is JSON, so a number stands as
its digits and an object as it would in a body. What the document publishes for a form
and how its parts are read are derived from one schema.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, cast

from starlette.datastructures import UploadFile
from starlette.requests import Request

from mezzotint.errors import ImageError, InvalidRequest
from mezzotint.serve.schema import PICTURE
from mezzotint.serve.wire import MULTIPART, URLENCODED, Body, read_form
from mezzotint.types import ImageInput

__all__ = ["FILE", "form_body", "form_schema", "read_parts", "read_text"]

FILE: dict[str, Any] = {
    "type": "string",
    "contentMediaType": "application/octet-stream",
    "minLength": 1,
}
"""The schema of a part that is a picture's file."""
Kind = Literal["picture", "pictures", "text", "json"]
_NO_LIMITS: Mapping[str, int] = {}


def form_schema(schema: Mapping[str, Any], *, files: bool = True) -> dict[str, Any]:
    """Return the schema of a form that says what an object of ``schema`` says.

    The parts of a list of pictures may have ``[]`` behind their name.

    Args:
        schema: Of a JSON object, of whose needed fields one at most is a list of pictures.
        files: Whether parts may be files; pictures are base64 texts if not.
    """
    fields: Mapping[str, Any] = schema["properties"]
    parts = {name: _part(inner, files) for name, inner in fields.items()}
    lists = {name: part for name, part in parts.items() if _kind(part) == "pictures"}
    made = {**schema, "properties": parts | {f"{name}[]": part for name, part in lists.items()}}
    needed = [name for name in schema.get("required", ()) if name not in lists]
    either = [
        {"anyOf": [{"required": [name]}, {"required": [f"{name}[]"]}]}
        for name in schema.get("required", ())
        if name in lists
    ]
    if either:
        made |= {"required": needed, **either[0]}
    return made


def form_body(body: Body, *, urlencoded: bool = False, **parts: Any) -> Body:
    """Return what the document says about a body that may be a form too.

    Args:
        body: The body as JSON.
        urlencoded: Whether it may also be a form without files.
        **parts: Schemas of parts that are not what the field in JSON is, or that only the
            form has.
    """

    def schema(limits: Mapping[str, int], *, files: bool = True) -> dict[str, Any]:
        plain = body.schema(limits)
        return form_schema(plain | {"properties": plain["properties"] | parts}, files=files)

    without = (URLENCODED, functools.partial(schema, files=False))
    return replace(body, also=((MULTIPART, schema), *([without] if urlencoded else [])))


def _part(schema: Mapping[str, Any], files: bool) -> dict[str, Any]:
    """Return the schema of the part of one field."""
    said = {k: v for k, v in schema.items() if k == "description"}
    kind = _kind(schema)
    if kind == "picture":
        return (FILE if files else PICTURE) | said
    if kind == "pictures":
        many = next(o for o in _options(schema) if _is_picture(o.get("items", {})))
        return {**many, "items": FILE if files else PICTURE} | said  # a part is never null
    if kind == "json":
        return dict(schema)
    options = [made for option in _options(schema) if (made := _texts_of(option)) is not None]
    return (options[0] if len(options) == 1 else {"anyOf": options}) | said


def _options(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return schema.get("anyOf", [schema]) if "properties" not in schema else [schema]


def _texts_of(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the schema of the texts among what a schema allows; None if there are none."""
    if not schema.keys() - {"description"}:
        return {"type": "string"}
    if schema.get("type") == "string":
        return dict(schema)
    texts = [value for value in schema.get("enum", ()) if isinstance(value, str)]
    return {"enum": texts} if texts else None


def _is_picture(schema: Mapping[str, Any]) -> bool:
    return "contentEncoding" in schema or "contentMediaType" in schema


def _kind(schema: Mapping[str, Any]) -> Kind:
    """Return how a part is read."""
    options = _options(schema)
    if any(_is_picture(option) for option in options):
        return "picture"
    if any(_is_picture(option.get("items", {})) for option in options):
        return "pictures"
    is_text = any(_texts_of(option) is not None for option in options)
    return "text" if is_text else "json"


@functools.cache
def _kinds(body: Body) -> Mapping[str, Kind]:
    """Return how the parts of a body's form are read, by name."""
    schema = next((s for kind, s in body.also if kind == MULTIPART), body.schema)(_NO_LIMITS)
    return {name: _kind(inner) for name, inner in schema["properties"].items()}


def read_text(body: Body, name: str, text: str) -> Any:
    """Return what a text says in the place of a field.

    Args:
        body: Whose field.
        name: The field; of one that the body does not know, the text is the value.
        text: What came.
    """
    kind = _kinds(body).get(name, "text")
    if kind not in ("json", "pictures"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


async def read_parts(http: Request, body: Body) -> dict[str, Any]:
    """Read a form into the fields of a body.

    Args:
        http: The request.
        body: Whose fields they are; a list's name may have ``[]`` behind it.

    Raises:
        UnsupportedMedia: If the request is no form.
        Malformed: If the form cannot be read.
        ImageError: If a file is empty.
        InvalidRequest: If a field that holds one value is given twice, or a part of a text
            is a file that is no text.
    """
    found: dict[str, Any] = {}
    kinds = _kinds(body)
    async with read_form(http) as form:
        for part, value in form.multi_items():
            kind = kinds.get(part, "text")
            name = part.removesuffix("[]") if kind == "pictures" else part
            if isinstance(value, UploadFile):
                read = _file(name, kind, await value.read())
            else:
                read = read_text(body, name, value)
            if kind == "pictures":
                more = cast("list[Any]", read if isinstance(read, list) else [read])
                found[name] = [*found.get(name, ()), *more]
            elif name in found:
                raise InvalidRequest(f"{name} is given twice", field=name)
            else:
                found[name] = read
    return found


def _file(name: str, kind: Kind, data: bytes) -> Any:
    """Return what a file says in the place of a field: its text, or itself as a picture."""
    if kind == "text":
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"{name} must be a text, got a file of bytes", field=name
            ) from None
    if kind == "json":
        raise InvalidRequest(f"{name} must be a value, got a file", field=name)
    if not data:
        raise ImageError(f"{name} must be a picture, got a file without bytes", field=name)
    return ImageInput(data)
