"""Requests: a file, flags and ``--set`` put together, each refused in its own name."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mezzotint.cli import flags
from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.outputs import FORMATS, MOVING
from mezzotint.errors import InvalidRequest
from mezzotint.request import Animation, GenerationRequest

__all__ = ["build_request", "gate_fields", "read_seed", "with_format"]


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
