"""Messages to the device thread: all that it ever takes, and who sends each.

- The dispatcher: the engine's ``Submission`` (one image), :class:`Cancel`,
  :class:`Drain`, :class:`Stop`.
- The warm-up: :class:`Learn`.

It answers with the events of the engine (``EngineEvent``), which go to the dispatcher.
"""

from dataclasses import dataclass

from mezzotint.engine.learning import Lesson
from mezzotint.engine.state import ImageId
from mezzotint.engine.step_engine import Submission

__all__ = ["Cancel", "DeviceMessage", "Drain", "Learn", "Stop"]


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
class Learn:
    """Take a lesson when nothing else is to be done."""

    lesson: Lesson


DeviceMessage = Submission | Cancel | Drain | Stop | Learn
