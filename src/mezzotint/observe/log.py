"""Logs: one structured line per event, with the request's id and without prompts.

An event has a dotted name and fields, no sentence: ``log.info("engine.started",
model="plate", images=4)``. The id of the request that is being served comes from
the context, so nobody hands it around. What people type stays out: fields that
hold prompts are replaced by their length unless the configuration asks for them,
and bytes are replaced by their number always.
"""

import contextlib
import contextvars
import json
import logging
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Final, TextIO, cast

from mezzotint.observe.config import LogConfig

__all__ = ["configure", "debug", "error", "info", "request", "request_id", "warning"]

_LOGGER: Final = logging.getLogger("mezzotint")
_LOGGER.addHandler(logging.NullHandler())  # a library stays silent until somebody asks
_REQUEST: contextvars.ContextVar[str] = contextvars.ContextVar("mezzotint_request_id", default="")
_TYPED_BY_PEOPLE = frozenset({"prompt", "negative_prompt", "prompts", "text", "to", "inputs"})
_LONGEST = 2000


def configure(config: LogConfig, stream: TextIO | None = None) -> None:
    """Write events to ``stream`` (standard error if None) from here on.

    Calling again replaces what was configured before.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(config))
    for old in list(_LOGGER.handlers):
        _LOGGER.removeHandler(old)
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(config.level.upper())
    _LOGGER.propagate = False


@contextlib.contextmanager
def request(identifier: str) -> Generator[None]:
    """Mark everything logged inside, in this thread or task, as part of one request."""
    token = _REQUEST.set(identifier)
    try:
        yield
    finally:
        _REQUEST.reset(token)


def request_id() -> str:
    """Return the id of the request being served, "" outside of one."""
    return _REQUEST.get()


def debug(event: str, *, exception: BaseException | None = None, **fields: Any) -> None:
    """Log what only somebody who looks for a fault wants to see."""
    _write(logging.DEBUG, event, fields, exception)


def info(event: str, **fields: Any) -> None:
    """Log what happened in the ordinary course of things."""
    _write(logging.INFO, event, fields)


def warning(event: str, **fields: Any) -> None:
    """Log what went on, but not as it should."""
    _write(logging.WARNING, event, fields)


def error(event: str, *, exception: BaseException | None = None, **fields: Any) -> None:
    """Log what failed, with the trace of ``exception`` if there is one."""
    _write(logging.ERROR, event, fields, exception)


def _write(
    level: int, event: str, fields: Mapping[str, Any], exception: BaseException | None = None
) -> None:
    """Hand an event to the standard library with its fields unformatted."""
    if _LOGGER.isEnabledFor(level):
        extra = {"mezzotint_fields": dict(fields), "mezzotint_request": _REQUEST.get()}
        _LOGGER.log(level, event, extra=extra, exc_info=exception)


class _Formatter(logging.Formatter):
    """Renders an event as JSON or as a line for people."""

    def __init__(self, config: LogConfig) -> None:
        super().__init__()
        self._config = config

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            key: self._shown(key, value)
            for key, value in getattr(record, "mezzotint_fields", {}).items()
        }
        identifier = getattr(record, "mezzotint_request", "")
        trace = self.formatException(record.exc_info) if record.exc_info else ""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        stamp = f"{moment}.{int(record.msecs):03d}Z"
        if self._config.format == "json":
            line = {"time": stamp, "level": record.levelname.lower(), "event": record.getMessage()}
            if identifier:
                line["request_id"] = identifier
            line |= {key: value for key, value in fields.items() if key not in line}
            if trace:
                line["trace"] = trace
            return json.dumps(line, ensure_ascii=False, default=str)
        told = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
        head = f"{stamp} {record.levelname.lower():7} {record.getMessage()}"
        tail = f" request={identifier}" if identifier else ""
        return f"{head}{tail}{' ' + told if told else ''}{chr(10) + trace if trace else ''}"

    def _shown(self, key: str, value: Any) -> Any:
        """Return what of a value may be written."""
        if isinstance(value, bytes | bytearray | memoryview):
            return f"<{len(cast('bytes', value))} bytes>"
        if key in _TYPED_BY_PEOPLE and not self._config.prompts:
            return f"<{len(value)} characters>" if isinstance(value, str) else "<withheld>"
        if isinstance(value, Mapping):
            pairs = cast("Mapping[Any, Any]", value).items()  # whatever was logged
            return {str(k): self._shown(str(k), v) for k, v in pairs}
        if isinstance(value, list | tuple):
            return [self._shown(key, item) for item in cast("Sequence[Any]", value)]
        if isinstance(value, str) and len(value) > _LONGEST:
            return f"{value[:_LONGEST]}… ({len(value)} characters)"
        return value


def _quoted(value: Any) -> str:
    """Quote a value where it would break the line into the wrong words."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return (
        json.dumps(text, ensure_ascii=False) if not text or set(text) & set(' "\n\r\t=') else text
    )
