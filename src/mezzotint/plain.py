"""Plain data: JSON and TOML values into frozen dataclasses and back.

One place that converts without guessing and names what is wrong by its path, so
that a request, a configuration file and a Python call get the same messages.
JSON names equal field names but for a trailing underscore (``from_``).
"""

import collections.abc
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.types import MAX_SEED, ImageInput

__all__ = ["Checked", "check_range", "convert", "exchange", "field_names", "read", "write"]

_T = TypeVar("_T")

_SCALARS = frozenset((bool, int, float, str))


def exchange(value: _T, **changes: Any) -> _T:
    """Return a copy of a frozen dataclass with some fields exchanged, nothing checked again.

    Args:
        value: A dataclass whose fields were checked when it was made.
        changes: Field values that have been checked too, as those of a plan.
    """
    cls = type(value)
    names = field_names(cls)
    if not changes.keys() <= set(names):
        raise TypeError(f"{cls.__name__} has no field {sorted(changes.keys() - set(names))}")
    copy = object.__new__(cls)
    for name in names:
        kept = changes[name] if name in changes else getattr(value, name)
        object.__setattr__(copy, name, kept)
    return copy


@functools.cache
def field_names(cls: Any) -> tuple[str, ...]:
    """Return the names of a dataclass's fields, in order."""
    return tuple(f.name for f in dataclasses.fields(cls))


def check_range(name: str, value: float | None, low: float, high: float, *, unit: str = "") -> None:
    """Refuse a number outside [low, high], NaN and infinity included."""
    if value is None:
        return
    if not (math.isfinite(value) and low <= value <= high):
        allowed = f"{_exact(low)} to {_exact(high)}{unit}"
        raise InvalidRequest(
            f"{name} must be {allowed}, got {value}", field=name, value=value, allowed=allowed
        )


def _exact(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


class Checked:
    """Converts and checks every field, whether it came from JSON or from Python."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for name, hint, settled in _checks(type(self)):
            value = getattr(self, name)
            if value is settled:
                continue
            converted = convert(value, hint, _json_name(name))
            if converted is not value:
                object.__setattr__(self, name, converted)
        self._validate()

    def _validate(self) -> None:
        """Refuse values that no model could honour."""


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _checks(cls: type) -> tuple[tuple[str, Any, Any], ...]:
    """Return name, type and default of every field; a default that needs no conversion.

    Where there is none it is an object that no field has, so that nothing equals it.
    """
    found: list[tuple[str, Any, Any]] = []
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, hint in field_types(cls).items():
        default = defaults.get(name, dataclasses.MISSING)
        settled = object()
        if default is not dataclasses.MISSING and convert(default, hint, name) is default:
            settled = default
        found.append((name, hint, settled))
    return tuple(found)


@functools.cache
def _fields_of(cls: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the field of each JSON name, and the JSON names that must be given."""
    fields = dataclasses.fields(cls)
    needed = tuple(
        _json_name(f.name)
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return {_json_name(f.name): f.name for f in fields}, needed


def _json_name(name: str) -> str:
    return name.rstrip("_")


def read(cls: Any, data: Any, path: str = "") -> Any:
    """Build the dataclass ``cls`` from a mapping, naming what is wrong by its path.

    Raises:
        UnknownName: If a field does not exist; names the nearest one.
        InvalidRequest: If a value has the wrong type or is out of range.
    """
    if not isinstance(data, Mapping):
        raise _wrong_type(path or "the request", data, "an object")
    entries = typing.cast(Mapping[Any, Any], data)
    if hasattr(cls, "from_plain"):
        return cls.from_plain(entries, path)
    hints = field_types(cls)
    fields, needed = _fields_of(cls)
    values: dict[str, Any] = {}
    for key, value in entries.items():
        if key not in fields:
            where = f"{path}.{key}" if path else str(key)
            raise UnknownName("field", str(where), fields, field=str(where))
        name = fields[key]
        values[name] = convert(value, hints[name], f"{path}.{key}" if path else key)
    missing = next((name for name in needed if name not in entries), None)
    if missing is not None:
        raise InvalidRequest(f"{path}.{missing} is needed", field=f"{path}.{missing}")
    try:
        return cls(**values)
    except InvalidRequest as error:
        if path and error.field and not error.field.startswith(path):
            error.field = f"{path}.{error.field.rpartition('.')[2]}"
        raise


def convert(value: Any, hint: Any, path: str) -> Any:
    """Convert a JSON value to the type of a field, or say what was expected."""
    if type(value) is hint and hint in _SCALARS:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        if callable(value) and any(_is_function(a) for a in arguments):
            return value
        options = [a for a in arguments if a is not type(None) and not _is_function(a)]
        if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
            options = [a for a in options if dataclasses.is_dataclass(a)] or options
        else:
            options = [a for a in options if not _is_object(a)] or options
        return convert(value, options[0], path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            listed = ", ".join(repr(a) for a in arguments)
            raise InvalidRequest(
                f"{path} must be one of {listed}, got {value!r}",
                field=path,
                value=value,
                allowed=listed,
            )
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _wrong_type(path, value, "a list")
        items = typing.cast("list[Any]", value)
        if arguments[-1] is not Ellipsis:  # a fixed pair, e.g. (gate name, settings)
            pairs = zip(items, arguments, strict=True)
            return tuple(convert(v, a, f"{path}[{k}]") for k, (v, a) in enumerate(pairs))
        return tuple(convert(v, arguments[0], f"{path}[{k}]") for k, v in enumerate(items))
    if hint is ImageInput:
        if isinstance(value, ImageInput | bytes):
            return value if isinstance(value, ImageInput) else ImageInput(value)
        if not isinstance(value, str):
            raise _wrong_type(path, value, "a picture as base64 text")
        return ImageInput.from_base64(value, field=path)
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else read(hint, value, path)  # type: ignore[arg-type]
    return _convert_scalar(value, hint, path)


def _is_function(hint: Any) -> bool:
    """Tell whether a field takes a Python function: nothing that JSON could hold."""
    return typing.get_origin(hint) is collections.abc.Callable


def _is_object(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and hint is not ImageInput


def _convert_scalar(value: Any, hint: Any, path: str) -> Any:
    """Convert numbers, texts and booleans without guessing."""
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong_type(path, value, "true or false")
        return value
    if hint is int:
        if isinstance(value, str) and path.endswith("seed"):  # beyond 2**53, JSON needs text
            if not value.strip().isdecimal():
                raise _wrong_type(path, value, f"a whole number 0 to {MAX_SEED}")
            return int(value) if len(value.strip()) <= 20 else MAX_SEED + 1
        if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(path, value, "a whole number")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(path, value, "a number")
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if not isinstance(value, str):
        raise _wrong_type(path, value, "a text")
    return value


def _wrong_type(path: str, value: object, expected: str) -> InvalidRequest:
    got = "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
    return InvalidRequest(
        f"{path} must be {expected}, got {got}", field=path, value=str(value)[:80], allowed=expected
    )


def write(value: Any) -> Any:
    """Turn dataclasses into plain data, leaving out what equals its default."""
    if isinstance(value, ImageInput):
        return value.to_base64()
    if hasattr(value, "to_plain"):
        return value.to_plain()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        result: dict[str, Any] = {}
        for f in dataclasses.fields(value):
            item = getattr(value, f.name)
            if item is not f.default and item != f.default:
                result[_json_name(f.name)] = write(item)
        return result
    if isinstance(value, tuple):
        return [write(v) for v in typing.cast("tuple[Any, ...]", value)]
    return value
