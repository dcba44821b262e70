"""Calls: what a Python call hands over, words and pictures, as one request.

``mz.generate``, ``mz.pipeline`` and the client of a server read their arguments here.
"""

import dataclasses
import inspect
import io
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from mezzotint.errors import ImageError, InvalidField, InvalidRequest
from mezzotint.plain import allowed, field_docs, field_hints, field_types, read
from mezzotint.request import GenerationRequest
from mezzotint.types import ImageInput

__all__ = ["read_call", "read_picture", "with_fields"]

F = TypeVar("F", bound=Callable[..., Any])

_PICTURES = ("image", "mask")
_LONGEST_PATH = 4096
_COLOURS = {
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "RGBX": "RGB",
    "PA": "RGBA",
    "RGBa": "RGBA",
}
"""What PIL turns a mode into that no PNG has, and nothing of the picture is lost."""


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
    for name, parts in fields.items():
        if isinstance(parts, list | tuple):
            given[name] = [
                _with_pictures(part, f"{name}[{k}]")
                for k, part in enumerate(cast("Sequence[Any]", parts))
            ]
    if isinstance(model := given.get("model"), os.PathLike):
        path = os.fspath(cast("os.PathLike[str]", model))
        given["model"] = path if os.path.dirname(path) else os.path.join(os.curdir, path)
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


def _with_pictures(part: Any, where: str) -> Any:
    """Read the pictures of a part of a request that came as a mapping."""
    if not isinstance(part, Mapping):
        return part
    given = dict(cast("Mapping[Any, Any]", part))
    for name in _PICTURES:
        if given.get(name) is not None:
            given[name] = read_picture(given[name], f"{where}.{name}")
    return given


def read_picture(value: Any, field: str) -> Any:
    """Turn a path, encoded bytes, an open file or a PIL picture into an encoded picture.

    Raises:
        ImageError: If a file cannot be read, or a picture has a mode that no PNG has.
        InvalidField: If it is none of these.
    """
    if isinstance(value, ImageInput | bytes):
        return value
    if isinstance(value, Path) or (isinstance(value, str) and _is_path(value)):
        return ImageInput.from_file(value, field=field)
    if isinstance(value, str):
        return value
    if hasattr(value, "save") and hasattr(value, "mode"):
        return ImageInput(_encoded(value, field))
    data = value.read() if callable(getattr(value, "read", None)) else None
    if isinstance(data, bytes):
        return ImageInput(data)
    raise InvalidField(
        f"{field} must be a picture: a path, encoded bytes or a PIL picture, "
        f"got {type(value).__name__}",
        field=field,
        value=type(value).__name__,
        allowed="a path, encoded bytes or a PIL picture",
    )


def _is_path(text: str) -> bool:
    """Whether a text is a file, or could be the name of one that is not there, and no base64."""
    if len(text) >= _LONGEST_PATH:
        return False
    return os.path.isfile(text) or ("." in text and ":" not in text)


def _encoded(picture: Any, field: str) -> bytes:
    """Write a PIL picture as PNG.

    Raises:
        ImageError: If it was closed, or holds numbers without a range (modes I and F).
    """
    stream, mode = io.BytesIO(), picture.mode
    try:
        written = picture.convert(_COLOURS[mode]) if mode in _COLOURS else picture
        written.save(stream, "PNG")
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{field} must be a picture that can be written, of mode RGB, RGBA, L or the like: "
            f"mode {mode}: {error}",
            field=field,
        ) from None
    return stream.getvalue()
