"""Access: the newest answers of this server, in memory, for whoever operates it."""

import time
from collections import deque
from typing import Any

__all__ = ["AccessLog"]

_MOST = 2000


class AccessLog:
    """Remembers what the access log says, the newest two thousand answers."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=_MOST)

    def note(self, request_id: str, **told: Any) -> None:
        """Remember an answer."""
        self._kept.append({"id": request_id, "time": time.time(), **told})

    def newest(self, word: str, most: int) -> list[dict[str, Any]]:
        """Return answers, the newest first, whose id, path, client or status hold ``word``."""
        found: list[dict[str, Any]] = []
        for answer in reversed(self._kept):
            text = " ".join(str(answer.get(n, "")) for n in ("id", "path", "client", "status"))
            if word in text.casefold():
                found.append(answer)
                if len(found) == most:
                    break
        return found
