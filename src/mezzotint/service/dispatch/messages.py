"""Messages to the dispatcher: all that it ever takes, and who sends each.

- Doors, through the service: :class:`Submit`, :class:`Cancel`, :class:`Close`.
- The writer: :class:`Written`, :class:`PreviewJudged`, :class:`Enlarged`, :class:`Animated`.
- The loader: :class:`Loaded`.
- The device thread: the events of the engine.

What the dispatcher sends to the device thread stands in
:mod:`~mezzotint.service.dispatch.device_messages`.
"""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mezzotint.engine.state import EngineEvent, ImageId
from mezzotint.gates.policy import Retry
from mezzotint.planning.plan import Plan
from mezzotint.service.requests import RequestSubmission
from mezzotint.types import ImageOutput

__all__ = [
    "Animated",
    "Cancel",
    "Close",
    "DispatcherMessage",
    "Enlarged",
    "Loaded",
    "PreviewJudged",
    "Submit",
    "Written",
]


@dataclass(frozen=True, slots=True)
class Submit:
    """A request, and where its predicted seconds or its refusal go."""

    submission: RequestSubmission
    answer: "Future[float]"


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request; the answer is whether there was one."""

    request: str
    answer: "Future[bool]"


@dataclass(frozen=True, slots=True)
class Close:
    """Finish what is being stepped and end."""

    answer: "Future[None]"


@dataclass(frozen=True, slots=True)
class Written:
    """What a picture came to in the writer."""

    image: ImageId
    plan: Plan
    outcome: ImageOutput | Exception | Retry


@dataclass(frozen=True, slots=True)
class PreviewJudged:
    """What gates said of a preview: True gives the attempt up."""

    image: ImageId
    outcome: Any


@dataclass(frozen=True, slots=True)
class Enlarged:
    """The start picture of a second pass, or why there is none."""

    image: ImageId
    outcome: Any


@dataclass(frozen=True, slots=True)
class Animated:
    """The file that the frames of a request became."""

    request: str
    outcome: ImageOutput | Exception


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model of an image is ready, or will not be."""

    image: ImageId
    error: Exception | None


DispatcherMessage = (
    Submit | Cancel | Close | Written | PreviewJudged | Enlarged | Animated | Loaded | EngineEvent
)
