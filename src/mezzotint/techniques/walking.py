"""Walking: every picture, name and text of a request, wherever a technique put it.

What a field holds is said by its type, so a new technique's are found without being told.
"""

import functools
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, cast

from mezzotint.plain import field_hints, field_names, json_name
from mezzotint.types import ImageInput, PromptText

__all__ = ["Names", "Pass", "may_show", "names_of", "pictures_of", "texts_of"]


@dataclass(frozen=True, slots=True)
class Names:
    """Stands in a field's type: its text names something that was installed.

    Args:
        kind: ``model``, ``upscaler`` or a kind of adapter.
    """

    kind: str


@dataclass(frozen=True, slots=True)
class Pass:
    """What a request says of one pass over a picture.

    Args:
        num_inference_steps: Solver steps, or None.
        width: Pixels before any enlargement after decoding, or None.
        height: As ``width``.
        steps_field: The field that says how many steps.
        size_field: The field that says how large.
    """

    num_inference_steps: int | None
    width: float | None
    height: float | None
    steps_field: str = "num_inference_steps"
    size_field: str = "width"


def pictures_of(value: Any, path: str = "") -> Iterator[tuple[str, ImageInput]]:
    """Yield every picture of a request with its field, in the order of the fields.

    Args:
        value: The request, or a part of it.
        path: Where the part stands.

    Example:
        >>> from mezzotint.request import Control, GenerationRequest
        >>> control = Control(model="canny", image=ImageInput(b"png"))
        >>> [path for path, _ in pictures_of(GenerationRequest(controls=(control,)))]
        ['controls[0].image']
    """
    if isinstance(value, ImageInput):
        yield path, value
    elif isinstance(value, tuple):
        for position, item in enumerate(typing.cast("tuple[Any, ...]", value)):
            yield from pictures_of(item, f"{path}[{position}]")
    elif is_dataclass(value):
        for name in field_names(type(value)):
            inner = f"{path}.{json_name(name)}" if path else json_name(name)
            yield from pictures_of(getattr(value, name), inner)


@functools.cache
def may_show(part: type) -> bool:
    """Whether a part of a request may hold pictures, by the types of its fields."""
    return is_dataclass(part) and any(map(_shows, field_hints(part).values()))


def _shows(hint: Any) -> bool:
    """Whether a type holds pictures."""
    if hint is ImageInput:
        return True
    if isinstance(hint, type) and is_dataclass(hint):
        return may_show(hint)
    return any(map(_shows, typing.get_args(hint)))


def names_of(value: Any) -> Iterator[tuple[str, str, str]]:
    """Yield field, kind and name of all that a request names."""
    if isinstance(value, tuple):
        for item in typing.cast("tuple[Any, ...]", value):
            yield from names_of(item)
    elif is_dataclass(value) and not isinstance(value, ImageInput):
        for field, kind in _looked_into(type(value)):
            inner = getattr(value, field)
            if kind and inner is not None:
                where: str = getattr(cast("type[Any]", type(value)), "where", "")
                yield f"{where}.{field}" if where else field, kind, inner
            elif inner:
                yield from names_of(inner)


@functools.cache
def _looked_into(part: type) -> tuple[tuple[str, str], ...]:
    """Return the fields of a part that name something, with its kind, or may hold parts ("")."""
    found: list[tuple[str, str]] = []
    for field, hint in field_hints(part).items():
        kind = next((n.kind for n in _marks(hint) if isinstance(n, Names)), "")
        if kind or not _is_plain(hint):
            found.append((field, kind))
    return tuple(found)


def _is_plain(hint: Any) -> bool:
    """Whether a type holds texts and numbers alone."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _is_plain(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return all(map(_is_plain, typing.get_args(hint)))
    return origin is typing.Literal or hint in (str, bytes, int, float, bool, types.NoneType)


def texts_of(value: Any) -> Iterator[str]:
    """Yield every text of a request that a model reads; "" where one is empty."""
    prompt = _marks(PromptText)
    for part, field, hint in _fields(value):
        text = getattr(part, field)
        if text is not None and _marks(hint) == prompt:
            yield text


def _fields(value: Any) -> Iterator[tuple[Any, str, Any]]:
    """Yield every part of a request with the name and type of each of its fields."""
    if isinstance(value, tuple):
        for item in typing.cast("tuple[Any, ...]", value):
            yield from _fields(item)
    elif is_dataclass(value) and not isinstance(value, ImageInput):
        for field, hint in field_hints(type(value)).items():
            yield value, field, hint
            yield from _fields(getattr(value, field))


@functools.cache
def _marks(hint: Any) -> tuple[Any, ...]:
    """Return what stands beside a field's type, or beside that of its choices."""
    if typing.get_origin(hint) is typing.Annotated:
        return typing.get_args(hint)[1:]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(mark for choice in typing.get_args(hint) for mark in _marks(choice))
    return ()
