"""Event stream: server-sent events (WHATWG ``text/event-stream``) from the bytes that come."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["EventReader", "ServerEvent"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerEvent:
    """One event: its id (0 if it has none), its name, its data as JSON had it."""

    id: int
    kind: str
    data: Any


class EventReader:
    """Puts events together, however the bytes of a stream are cut.

    Lines end with a line feed, with or without a carriage return before it; other
    separators that Unicode has may stand inside of the data.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._fields: dict[str, list[str]] = {}

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """Take bytes and yield the events that they complete."""
        self._rest += chunk
        *lines, rest = self._rest.split(b"\n")
        self._rest = rest
        for line in lines:
            event = self._line(line.removesuffix(b"\r").decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> ServerEvent | None:
        if line:
            name, _, value = line.partition(":")
            if name:  # a comment has none
                self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        text = fields.get("id", ["0"])[-1]
        return ServerEvent(
            id=int(text) if text.isdecimal() else 0,
            kind=fields.get("event", ["message"])[-1],
            data=json.loads("\n".join(fields["data"])),
        )
