"""Requests: a file, flags and ``--set`` put together, each refused in its own name.

The flags of techniques are made from their rows (:mod:`mezzotint.techniques.table`): name,
help and what a text means, so that a new technique adds none here.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from mezzotint.bounds import Range
from mezzotint.cli import flags
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.local import completing
from mezzotint.cli.outputs import FORMATS, MOVING
from mezzotint.errors import InvalidRequest
from mezzotint.plain import bounds_of, field_hints, field_types
from mezzotint.request import Animation, GenerationRequest
from mezzotint.techniques.table import ADAPTERS, FLAGS, Flag
from mezzotint.types import ImageInput

__all__ = [
    "build_request",
    "gate_fields",
    "read_seed",
    "technique_fields",
    "with_format",
    "with_techniques",
]

_F = TypeVar("_F", bound=Callable[..., Any])


def with_techniques(before: str, *, panel: str) -> Callable[[_F], _F]:
    """Give a verb the flags of all techniques in place of its ``**techniques``.

    Args:
        before: The parameter that they stand before.
        panel: Where its help lists them.
    """

    def give(verb: _F) -> _F:
        signature = inspect.signature(verb, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        place = [p.name for p in own].index(before)
        made = [_parameter(field, flag, panel) for field, flag in FLAGS.items()]
        whole = signature.replace(parameters=[*own[:place], *made, *own[place:]])
        verb.__signature__ = whole  # type: ignore[attr-defined]
        return verb

    return give


def technique_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that flags of techniques set, None where one was not given.

    Args:
        given: What came for each parameter that :func:`with_techniques` made.

    Raises:
        WrongFlag: If a text cannot be understood.
    """
    found: dict[str, Any] = {}
    for field, flag in FLAGS.items():
        value = given.get(_name(flag))
        if flag.many:
            found[field] = [_read(field, flag, text) for text in value or ()] or None
        else:
            found[field] = None if value in (None, False) else _read(field, flag, value)
    return found


def _name(flag: Flag) -> str:
    return flag.name.removeprefix("--").replace("-", "_")


def _kind(field: str) -> Any:
    """Return what a flag's text becomes: the field's type, without None."""
    cls, name = flags.owner_of(field)
    hint = field_types(cls)[name]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def _part_of(field: str) -> Any:
    """Return the part of a request that a flag sets whole, None where it sets one value."""
    kinds = (_kind(field), *typing.get_args(_kind(field)))
    parts = (kind for kind in kinds if kind is not ImageInput and dataclasses.is_dataclass(kind))
    return next(parts, None)


def _is_seed(field: str) -> bool:
    """Whether a field holds numbers that are beyond those of JSON."""
    cls, name = flags.owner_of(field)
    own, _ = bounds_of(field_hints(cls)[name])
    return any(isinstance(bound, Range) and bound.as_text for bound in own)


def _parameter(field: str, flag: Flag, panel: str) -> inspect.Parameter:
    """Return the parameter of a flag."""
    kind = _kind(field)
    read: dict[str, Any] = {}
    if flag.name in flags.FORMS or _part_of(field) or _is_seed(field):
        kind = str
    elif kind is int:
        read = {"parser": flags.whole_number, "metavar": "INT"}
    elif kind is float:
        read = {"parser": flags.real_number, "metavar": "NUMBER"}
    about = flag.about or flags.field_help(field)
    known = completing.adapters(ADAPTERS[field]) if field in ADAPTERS else None
    option = typer.Option(
        flag.name, help=about, rich_help_panel=panel, autocompletion=known, **read
    )
    hint: Any = bool if kind is bool else kind if kind in (int, float) else str
    hint = list[hint] if flag.many else hint
    return inspect.Parameter(
        _name(flag),
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=Annotated[hint if kind is bool else hint | None, option],
    )


def _read(field: str, flag: Flag, value: Any) -> Any:
    """Return what the text of a flag means."""
    if flag.name in flags.FORMS:
        return flags.FORMS[flag.name](value)
    if part := _part_of(field):
        return flags.parse_fields(value, part, flag.name)
    if ImageInput in (_kind(field), *typing.get_args(_kind(field))):
        return flags.read_picture(value, flag.name)
    return read_seed(value, flag.name) if _is_seed(field) else value


def build_request(
    given: Mapping[str, Any],
    *,
    file: Path | None = None,
    overrides: list[tuple[str, Any]] | None = None,
) -> GenerationRequest:
    """Put a request together: file, then flags, then ``--set``.

    Args:
        given: Values by dotted field; None is "not given".
        file: JSON file with a whole request.
        overrides: What ``--set`` said.

    Raises:
        InvalidRequest: Named by flag where a flag is at fault.
    """
    data = flags.read_request_file(file) if file else {}
    for field, value in given.items():
        if value is not None:
            flags.merge(data, field, value)
    for field, value in overrides or ():
        flags.merge(data, field, value)
    if isinstance(data.get("walk"), dict) and "mode" not in data["walk"]:
        has_prompt, has_seed = "to" in data["walk"], "to_seed" in data["walk"]
        mode = "both" if has_prompt and has_seed else "seed" if has_seed else "prompt"
        data["walk"]["mode"] = mode
    try:
        return GenerationRequest.from_dict(data)
    except InvalidRequest as error:
        from_flag = {f.partition(".")[0] for f, v in given.items() if v is not None}
        top = (error.field or "").partition(".")[0].partition("[")[0]
        if overrides and any(f.partition(".")[0] == top for f, _ in overrides):
            error.field = "--set"
        elif file and top not in from_flag:
            error.field = "--request"
        raise


def gate_fields(
    gates: list[str] | None, max_attempts: int | None, keep: str | None
) -> dict[str, Any]:
    """Return the fields of the gates' object."""
    found: dict[str, Any] = {
        f"gates.{name}": settings for name, settings in flags.parse_gates(gates or ()).items()
    }
    return {**found, "gates.max_attempts": max_attempts, "gates.keep": keep}


def read_seed(text: str | None, flag: str) -> int | None:
    """Read a seed; larger than what JSON numbers hold is fine."""
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        allowed = "a whole number 0 to 18446744073709551615"
        raise WrongFlag(flag, f"must be {allowed}, got {text[:60]!r}", allowed) from None


def with_format(
    request: GenerationRequest, path: Path | None, *, given: str | None
) -> GenerationRequest:
    """Let the file name decide the encoding where no flag did."""
    named: Any = FORMATS.get(path.suffix.lower()) if path else None
    animation = request.output.animation
    if named in MOVING or animation is not None:
        return _with_animation(request, named)
    if named is None or named == request.output.format:
        return request
    if given is not None:
        raise WrongFlag("--output-format", f"{given} does not fit the name given with -o ({named})")
    output = dataclasses.replace(request.output, format=named)
    return dataclasses.replace(request, output=output)


def _with_animation(request: GenerationRequest, named: Any) -> GenerationRequest:
    """Let the name of a moving file decide its kind where --animate did not."""
    animation = request.output.animation
    if animation is None:
        if request.walk is None:
            raise WrongFlag("--output", f"{named} moves: it needs a walk (--walk-to or --to-seed)")
        output = dataclasses.replace(request.output, animation=Animation(format=named))
        return dataclasses.replace(request, output=output)
    fits = {animation.format, "png"} if animation.format == "apng" else {animation.format}
    if named is not None and named not in fits:
        raise WrongFlag(
            "--animate", f"{animation.format} does not fit the name given with -o ({named})"
        )
    return request
