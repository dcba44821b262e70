"""Plain data: JSON and TOML values into frozen dataclasses and back.

One place that converts without guessing and names what is wrong by its path, so
that a request, a configuration file and a Python call get the same messages.
JSON names equal field names but for a trailing underscore (``from_``).
"""

import collections.abc
import dataclasses
import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeGuard, TypeVar

from mezzotint.bounds import SPACE, Bound, Range
from mezzotint.errors import InvalidField, InvalidRequest, UnknownName
from mezzotint.types import ImageInput

__all__ = [
    "Checked",
    "allowed",
    "bounds_of",
    "check_range",
    "convert",
    "exchange",
    "field_docs",
    "field_hints",
    "field_names",
    "field_types",
    "is_dict",
    "is_list",
    "is_mapping",
    "json_name",
    "read",
    "write",
]

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
    if value is not None:
        Range(low, high, unit.strip()).check(name, value)


class Checked:
    """Converts and checks every field, whether it came from JSON or from Python.

    A field's type says what it may hold (:mod:`mezzotint.bounds`); ``_validate`` adds
    what fields say about each other.
    """

    __slots__ = ()

    where: ClassVar[str] = ""
    """Path of the part in a request, e.g. ``output.animation``, for messages."""

    any_of: ClassVar[tuple[str, ...]] = ()
    """JSON names of which one at least is given, where an object without them says nothing."""

    def __post_init__(self) -> None:
        cls = type(self)
        for name, hint, settled, own, items in _checks(cls):
            value = getattr(self, name)
            if value is settled:
                continue
            converted = convert(value, hint, json_name(name))
            if converted is not value:
                object.__setattr__(self, name, converted)
            if own or items:
                _check_bounds(cls, name, converted, own, items)
        self._validate()

    def _validate(self) -> None:
        """Refuse fields that do not fit together."""


def _check_bounds(
    cls: type[Checked], name: str, value: Any, own: tuple[Bound, ...], items: tuple[Bound, ...]
) -> None:
    """Refuse a field, or an entry of it, that is out of bounds."""
    shown = f"{cls.where}.{json_name(name)}" if cls.where else json_name(name)
    for bound in own:
        bound.check(shown, value)
    if items and isinstance(value, tuple):
        for position, item in enumerate(typing.cast("tuple[Any, ...]", value)):
            for bound in items:
                bound.check(f"{shown}[{position}]", item)


@functools.cache
def field_hints(cls: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass, its bounds included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in field_names(cls)}


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass, without bounds."""
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in field_names(cls)}


@functools.cache
def field_docs(cls: Any) -> dict[str, str]:
    """Return what the docstring of a dataclass says about each field, on one line."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("Args:\n")[2]
    section = re.split(r"\n(?=\S)", text)[0]
    entries = re.finditer(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {entry[1]: " ".join(entry[2].split()) for entry in entries}


def bounds_of(hint: Any) -> tuple[tuple[Bound, ...], tuple[Bound, ...]]:
    """Return the bounds of a field's type, and those of its entries if it is a list."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        own, items = bounds_of(arguments[0])
        return own + tuple(a for a in arguments[1:] if isinstance(a, Bound)), items
    if origin in (typing.Union, types.UnionType):
        found = [bounds_of(a) for a in arguments]
        return sum((own for own, _ in found), ()), sum((items for _, items in found), ())
    if origin is tuple and arguments[-1] is Ellipsis:
        return (), bounds_of(arguments[0])[0]
    return (), ()


def allowed(hint: Any) -> str:
    """Return what a field may hold, for people: its choices and its bounds.

    "" stands for any value of its type.

    Example:
        >>> allowed(Literal["png", "jpeg"] | None)
        'png, jpeg'
    """
    own, items = bounds_of(hint)
    said = [", ".join(map(str, _choices(hint)))] if _choices(hint) else []
    said += [bound.words for bound in own] + [f"each {bound.words}" for bound in items]
    return "; ".join(said)


def _choices(hint: Any) -> tuple[Any, ...]:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return arguments
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return sum((_choices(a) for a in arguments), ())
    return ()


@functools.cache
def _checks(
    cls: type,
) -> tuple[tuple[str, Any, Any, tuple[Bound, ...], tuple[Bound, ...]], ...]:
    """Return name, type, default and bounds of every field; a default that needs no check.

    Where there is none it is an object that no field has, so that nothing equals it.
    """
    found: list[tuple[str, Any, Any, tuple[Bound, ...], tuple[Bound, ...]]] = []
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name, hint in field_hints(cls).items():
        default = defaults[name]
        settled = object()
        if default is not dataclasses.MISSING and convert(default, hint, name) is default:
            settled = default
        found.append((name, hint, settled, *bounds_of(hint)))
    return tuple(found)


@functools.cache
def _fields_of(cls: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the field of each JSON name, and the JSON names that must be given."""
    fields = dataclasses.fields(cls)
    needed = tuple(
        json_name(f.name)
        for f in fields
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    )
    return {json_name(f.name): f.name for f in fields}, needed


def json_name(name: str) -> str:
    """Return what a field is called in JSON: without the underscore of ``from_``."""
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
    hints = field_hints(cls)
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
        where = f"{path}.{missing}" if path else missing
        raise InvalidField(f"{where} is needed", field=where)
    wanted: tuple[str, ...] = getattr(cls, "any_of", ())
    if wanted and not entries.keys() & set(wanted):
        where = f"{path}.{wanted[0]}" if path else wanted[0]
        raise InvalidField(
            f"{where} is needed{f', or {wanted[1]}' if wanted[1:] else ''}",
            field=where,
            allowed=allowed(hints[fields[wanted[0]]]),
        )
    try:
        return cls(**values)
    except InvalidRequest as error:
        if path and error.field and not error.field.startswith(path):
            error.field = f"{path}.{error.field.rpartition('.')[2]}"
        raise


def convert(value: Any, hint: Any, path: str) -> Any:
    """Convert a JSON value to the type of a field, or say what was expected."""
    if hint is Any or (type(value) is hint and hint in _SCALARS):
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        text = next((b for b in arguments[1:] if isinstance(b, Range) and b.as_text), None)
        if isinstance(value, str) and text is not None:
            value = _read_digits(value, text, path)
        return convert(value, arguments[0], path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        if callable(value) and any(_is_function(a) for a in arguments):
            return value
        options = [a for a in arguments if a is not type(None) and not _is_function(a)]
        is_object = isinstance(value, Mapping) or dataclasses.is_dataclass(value)
        if is_object and not isinstance(value, ImageInput):
            options = [a for a in options if _is_object(a)] or options
        else:
            options = [a for a in options if not _is_object(a)] or options
        return convert(value, options[0], path)
    if origin is Literal:
        if not any(
            value == a and isinstance(value, bool) == isinstance(a, bool) for a in arguments
        ):
            listed = ", ".join(repr(a) for a in arguments)
            raise InvalidField(
                f"{path} must be one of {listed}, got {value!r}",
                field=path,
                value=value,
                allowed=listed,
            )
        return value
    if origin is collections.abc.Mapping:
        if not isinstance(value, Mapping):
            raise _wrong_type(path, value, "an object")
        return typing.cast("Mapping[Any, Any]", value)
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
    return typing.get_origin(hint) is collections.abc.Callable  # pyright: ignore[reportUnknownMemberType]


def _is_object(hint: Any) -> bool:
    return hint is not ImageInput and dataclasses.is_dataclass(hint)


def _convert_scalar(value: Any, hint: Any, path: str) -> Any:
    """Convert numbers, texts and booleans without guessing."""
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong_type(path, value, "true or false")
        return value
    if hint is int:
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**64:
            return int(value)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise _wrong_type(path, value, "a whole number")
        return int(value)  # numpy's too
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise _wrong_type(path, value, "a number")
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if not isinstance(value, str):
        raise _wrong_type(path, value, "a text")
    return value


def _read_digits(text: str, bound: Range, path: str) -> int:
    """Read a whole number that came as text, which JSON needs beyond 2**53."""
    digits = text.strip(SPACE)
    if not (digits.isascii() and digits.isdecimal()):
        raise _wrong_type(path, text, f"a whole number {bound.words}")
    digits = digits.lstrip("0") or "0"
    high = int(bound.high)
    return int(digits) if len(digits) <= len(str(high)) else high + 1


def _wrong_type(path: str, value: object, expected: str) -> InvalidField:
    got = "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
    return InvalidField(
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
                result[json_name(f.name)] = write(item)
        wanted: tuple[str, ...] = getattr(value, "any_of", ())
        if wanted and not result.keys() & set(wanted):
            result[wanted[0]] = write(getattr(value, wanted[0]))
        return result
    if isinstance(value, tuple):
        return [write(v) for v in typing.cast("tuple[Any, ...]", value)]
    return value


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether plain data is an object; its names are texts."""
    return isinstance(value, Mapping)


def is_dict(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether plain data is an object that can be changed; its names are texts."""
    return isinstance(value, dict)


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether plain data is a list."""
    return isinstance(value, list)
