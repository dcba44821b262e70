"""Schema: the OpenAPI document, made from the endpoints and the request's own types.

The schema of the native request is derived from the dataclasses, so it cannot
drift from what :meth:`GenerationRequest.from_dict` accepts.
"""

import dataclasses
import functools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from mezzotint.plain import field_types
from mezzotint.request import Gates, GateSettings, GenerationRequest
from mezzotint.serve.wire import Endpoint
from mezzotint.types import (
    MAX_GUIDANCE,
    MAX_IMAGES,
    MAX_SEED,
    MAX_SIDE_PX,
    MAX_STEPS,
    MAX_TEXT,
    ImageInput,
)

__all__ = ["ANY_OBJECT", "document", "request_schema"]

ANY_OBJECT: dict[str, Any] = {"type": "object"}
_LIMITS: Mapping[str, dict[str, Any]] = {
    "width": {"minimum": 1, "maximum": MAX_SIDE_PX},
    "height": {"minimum": 1, "maximum": MAX_SIDE_PX},
    "num_images": {"minimum": 1, "maximum": MAX_IMAGES},
    "num_inference_steps": {"minimum": 1, "maximum": MAX_STEPS},
    "strength": {"minimum": 0, "maximum": 1},
    "priority": {"minimum": -100, "maximum": 100},
    "deadline_s": {"minimum": 0, "maximum": 604800},
    "prompt": {"maxLength": MAX_TEXT},
    "negative_prompt": {"maxLength": MAX_TEXT},
}


@functools.cache
def request_schema() -> dict[str, Any]:
    """Return the JSON Schema of the native generation request."""
    schema = _object(GenerationRequest)
    for name, limits in _LIMITS.items():
        options = schema["properties"][name].get("anyOf", [schema["properties"][name]])
        options[0].update(limits)
    schema["properties"]["guidance_scale"]["anyOf"][0] |= {"minimum": 0, "maximum": MAX_GUIDANCE}
    schema["properties"]["model"]["minLength"] = 1
    schema["properties"]["seed"] = {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
            {"type": "string", "pattern": r"^[0-9]{1,19}$"},
            {"type": "null"},
        ]
    }
    return schema


def _object(cls: Any) -> dict[str, Any]:
    """Return the schema of a dataclass."""
    if cls is Gates:
        return {
            "type": "object",
            "properties": {
                "max_attempts": {"type": "integer", "minimum": 1, "maximum": 64},
                "keep": {"enum": ["first_pass", "best"]},
            },
            "additionalProperties": _object(GateSettings),
        }
    hints = field_types(cls)
    properties = {f.name.rstrip("_"): _schema(hints[f.name]) for f in dataclasses.fields(cls)}
    needed = [
        f.name.rstrip("_")
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    return schema | ({"required": needed} if needed else {})


def _schema(hint: Any) -> dict[str, Any]:
    """Return the schema of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        plain = [a for a in arguments if typing.get_origin(a) is not Callable]
        return {"anyOf": [_schema(a) for a in plain]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0])}
    if hint is ImageInput:
        return {"type": "string", "contentEncoding": "base64", "description": "a picture"}
    if dataclasses.is_dataclass(hint):
        return _object(hint)
    names = {int: "integer", float: "number", bool: "boolean", str: "string"}
    return {"type": names.get(hint, "null")}


_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "field": {"type": "string"},
        "value": {"type": "string"},
        "allowed": {"type": "string"},
    },
}


def document(
    endpoints: Iterable[Endpoint], *, title: str, version: str, secured: bool = False
) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the endpoints.

    Args:
        endpoints: What to describe.
        title: Name of the API.
        version: Mezzotint's version.
        secured: Whether keys are needed where an endpoint has a scope.
    """
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = re.sub(r"{(\w+):\w+}", r"{\1}", endpoint.path)
        operation: dict[str, Any] = {
            "summary": endpoint.summary,
            "operationId": re.sub(r"\W+", "_", f"{endpoint.method}_{path}").strip("_").lower(),
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
            content = {"application/json": {"schema": endpoint.body}}
            operation["requestBody"] = {"required": True, "content": content}
        if secured and endpoint.scope is not None:
            operation["security"] = [{"bearer": []}]
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
    }
