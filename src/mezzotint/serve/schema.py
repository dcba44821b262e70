"""Schema: the OpenAPI document, made from the endpoints and the request's own types.

The schema of a body is derived from the dataclass that reads it, bounds and doc lines
included (:mod:`mezzotint.bounds`), so it cannot drift from what the server accepts. It
says all that one field may hold; what fields say about each other, which names exist
and what only a model can tell is refused when the request is read or planned.
"""

import collections.abc
import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

from mezzotint.bounds import Bound, Range
from mezzotint.plain import field_docs, field_hints, json_name
from mezzotint.request import Gates, GenerationRequest
from mezzotint.serve.wire import Endpoint
from mezzotint.types import PICTURE_TEXT, ImageInput

__all__ = ["ANY_OBJECT", "PICTURE", "document", "foreign", "object_schema", "request_schema"]

ANY_OBJECT: dict[str, Any] = {"type": "object"}
PICTURE: dict[str, Any] = {
    "type": "string", "contentEncoding": "base64", "pattern": PICTURE_TEXT,
}  # fmt: skip
"""The schema of a picture in JSON."""
_NULL = {"type": "null"}
_NAMES = {int: "integer", float: "number", bool: "boolean", str: "string"}

_FUNCTION = cast("object", collections.abc.Callable)  # of a field that only Python can set


def request_schema(limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the JSON Schema of the native generation request.

    Args:
        limits: Upper ends that the operator lowered, by the name that bounds know
            them by (:attr:`mezzotint.serve.config.Limits.ends`).
    """
    return object_schema(GenerationRequest, limits)


def object_schema(cls: Any, limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a dataclass that is read from JSON.

    Args:
        cls: The dataclass.
        limits: As of :func:`request_schema`.
    """
    hints, docs = field_hints(cls), field_docs(cls)
    properties: dict[str, Any] = {}
    needed: list[str] = []
    for field in dataclasses.fields(cls):
        said = {"description": docs[field.name]} if field.name in docs else {}
        properties[json_name(field.name)] = _schema(hints[field.name], limits) | said
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            needed.append(json_name(field.name))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    if cls is Gates:  # in JSON the gates stand beside the common fields, by name
        gate = typing.get_args(typing.get_args(hints["gates"])[0])[1]
        del properties["gates"]
        schema["additionalProperties"] = object_schema(gate, limits)
    wanted: tuple[str, ...] = getattr(cls, "any_of", ())
    one_of_them = {"anyOf": [{"required": [name]} for name in wanted]} if wanted else {}
    return schema | ({"required": needed} if needed else {}) | one_of_them


def foreign(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object whose fields may also be null, as if they were absent.

    Clients of other dialects send null for what they do not set.
    """
    needed = schema.get("required", [])
    properties = {
        name: inner if name in needed else _nullable(inner)
        for name, inner in schema["properties"].items()
    }
    return schema | {"properties": properties}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    if not schema.keys() - {"description"}:
        return schema  # anything may come, null included
    options = schema.get("anyOf")
    if options is not None:
        return schema | {"anyOf": [o for o in options if o != _NULL] + [_NULL]}
    said = {k: v for k, v in schema.items() if k == "description"}
    return {"anyOf": [{k: v for k, v in schema.items() if k not in said}, _NULL]} | said


def _schema(hint: Any, limits: Mapping[str, int]) -> dict[str, Any]:
    """Return the schema of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bounded(_schema(arguments[0], limits), arguments[1:], limits)
    if origin in (typing.Union, types.UnionType):
        plain = [a for a in arguments if typing.get_origin(a) is not _FUNCTION]
        options: list[dict[str, Any]] = []
        for schema in (_schema(a, limits) for a in plain):
            options += schema["anyOf"] if schema.keys() == {"anyOf"} else [schema]
        return {"anyOf": options}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], limits)}
    if hint is Any:
        return {}
    if hint is ImageInput:
        return dict(PICTURE)
    if dataclasses.is_dataclass(hint):
        return object_schema(hint, limits)
    return {"type": _NAMES.get(hint, "null")}


def _bounded(
    schema: dict[str, Any], marks: tuple[Any, ...], limits: Mapping[str, int]
) -> dict[str, Any]:
    """Add what the bounds of a field say."""
    text: list[dict[str, Any]] = []
    for mark in marks:
        if isinstance(mark, Bound):
            schema |= mark.schema(limits)
        if isinstance(mark, Range) and mark.as_text:
            text.append(mark.text_schema())
    return {"anyOf": [schema, *text]} if text else schema


_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "error": {"type": "string"},
        "instance": {"type": "string"},
        "field": {"type": "string"},
        "value": {"type": "string"},
        "allowed": {"type": "string"},
    },
}


def document(
    endpoints: Iterable[Endpoint],
    *,
    limits: Mapping[str, int],
    title: str,
    version: str,
    secured: bool = False,
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the endpoints.

    Args:
        endpoints: What to describe.
        limits: As of :func:`request_schema`: those of the server that answers with it.
        title: Name of the API.
        version: Mezzotint's version.
        secured: Whether keys are needed where an endpoint has a scope.
    """
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for endpoint in endpoints:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", endpoint.path)
        operation: dict[str, Any] = {
            "summary": endpoint.summary,
            "operationId": endpoint.operation
            or re.sub(r"\W+", "_", f"{endpoint.method}_{path}").strip("_").lower(),
            "responses": {
                str(endpoint.status): {
                    "description": "done",
                    "content": {
                        kind: ({"schema": schema} if schema else {})
                        for kind, schema in endpoint.answers.items()
                    },
                },
                "default": {
                    "description": "an error in the words of the dialect",
                    "content": {
                        "application/problem+json": {"schema": _PROBLEM},
                        "application/json": {"schema": ANY_OBJECT},
                    },
                },
            },
        }
        names = re.findall(r"{(\w+)}", path)
        parameters = [
            {"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names
        ]
        operation["parameters"] = [*parameters, *endpoint.parameters]
        if endpoint.body is not None:
            for body in (endpoint.body, *endpoint.body.parts):
                schemas[body.name] = body.schema(limits)
            others = {kind: make(limits) for kind, make in endpoint.body.also}
            operation["requestBody"] = {
                "required": endpoint.body.required,
                "content": {
                    endpoint.body.media: {"schema": endpoint.body.reference},
                    **{kind: ({"schema": made} if made else {}) for kind, made in others.items()},
                },
            }
        if secured and endpoint.scope is not None:
            operation["security"] = [{"bearer": []}]
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
