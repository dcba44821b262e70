"""Messages to the device thread: all that it ever takes, and who sends each.

- The dispatcher: the engine's ``Submission`` (one image), :class:`Cancel`,
  :class:`Drain`, :class:`Stop`.
- The warm-up: :class:`Perform`.

It answers with the events of the engine (``EngineEvent``), which go to the dispatcher.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mezzotint.engine.state import ImageId
from mezzotint.engine.step_engine import Submission

__all__ = ["Cancel", "DeviceMessage", "Drain", "Perform", "Stop"]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel every image of a request, or one; what has ended is no error."""

    target: str | ImageId


@dataclass(frozen=True, slots=True)
class Drain:
    """Refuse what waits, finish what runs."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread; what is still held fails."""


@dataclass(frozen=True, slots=True)
class Perform:
    """Call something in this thread, e.g. to load a model; its own errors are its own."""

    action: Callable[[], Any]


DeviceMessage = Submission | Cancel | Drain | Stop | Perform
