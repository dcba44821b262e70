"""Calls: what a Python call hands over, words and pictures, as one request.

``mz.generate``, ``mz.pipeline`` and the client of a server read their arguments here.
"""

import dataclasses
import inspect
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from mezzotint.errors import InvalidRequest
from mezzotint.plain import allowed, field_docs, field_hints, field_types, read
from mezzotint.request import GenerationRequest
from mezzotint.types import ImageInput

__all__ = ["read_call", "read_picture", "with_fields"]

F = TypeVar("F", bound=Callable[..., Any])

_PICTURES = ("image", "mask")


def with_fields(call: F) -> F:
    """Show the fields of a request in the signature and the docstring of a call that takes them.

    ``help`` and editors that ask a running program see them; what is called stays as it is.

    Args:
        call: Has ``**fields``, and ``fields:`` among the arguments of its docstring.
    """
    given = inspect.signature(call)
    plain = [p for p in given.parameters.values() if p.kind is not p.VAR_KEYWORD]
    own = {p.name for p in plain if p.kind is p.KEYWORD_ONLY}
    hints, types = field_hints(GenerationRequest), field_types(GenerationRequest)
    fields = [
        inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default if f.default is not dataclasses.MISSING else None,
            annotation=types[f.name],
        )
        for f in dataclasses.fields(GenerationRequest)
        if f.name not in own and f.name != "prompt"
    ]
    call.__signature__ = given.replace(parameters=[*plain, *fields])  # type: ignore[attr-defined]
    docs = field_docs(GenerationRequest)
    lines = [f"{f.name}: {docs[f.name]}{_bounds(hints[f.name])}" for f in fields if f.name in docs]
    told = "\n".join(
        textwrap.fill(line, 88, initial_indent=" " * 12, subsequent_indent=" " * 16)
        for line in lines
    )
    call.__doc__ = f"{inspect.cleandoc(call.__doc__ or '')}\n\nFields:\n{textwrap.dedent(told)}\n"
    return call


def _bounds(hint: Any) -> str:
    """Return what a field may hold, in brackets, where its type says so."""
    bounds = allowed(hint)
    return f" ({bounds})" if bounds else ""


def read_call(
    prompt: str | GenerationRequest | None, fields: Mapping[str, Any]
) -> GenerationRequest:
    """Return the request of a call.

    Args:
        prompt: What to draw, or a whole request.
        fields: Fields of the request; with a whole one they replace its own.

    Raises:
        InvalidRequest: If a field is wrong, unknown or given twice.
    """
    given = dict(fields)
    for name in _PICTURES:
        if given.get(name) is not None:
            given[name] = read_picture(given[name], name)
    references = given.get("image_references")
    if isinstance(references, list | tuple):
        given["image_references"] = tuple(
            read_picture(value, f"image_references[{k}]")
            for k, value in enumerate(cast("Sequence[Any]", references))
        )
    if isinstance(prompt, GenerationRequest):
        return dataclasses.replace(prompt, **given) if given else prompt
    if prompt is not None:
        if "prompt" in given:
            raise InvalidRequest("prompt was given twice", field="prompt")
        given["prompt"] = prompt
    return read(GenerationRequest, given)


def read_picture(value: Any, field: str) -> Any:
    """Turn a path, encoded bytes or a PIL picture into an encoded picture.

    Raises:
        ImageError: If a file cannot be read.
    """
    if isinstance(value, Path):
        return ImageInput.from_file(value, field=field)
    if isinstance(value, str):
        is_path = len(value) < 4096 and Path(value).is_file()
        return ImageInput.from_file(value, field=field) if is_path else value
    if hasattr(value, "save") and hasattr(value, "mode"):
        stream = io.BytesIO()
        value.save(stream, "PNG")
        return ImageInput(stream.getvalue())
    return value
