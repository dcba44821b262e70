"""Letters: what others lay on the desk, beside the events of the engine."""

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from mezzotint.engine.state import ImageId
from mezzotint.gates.policy import Retry
from mezzotint.planning.plan import Plan
from mezzotint.service.orders import Order
from mezzotint.types import ImageOutput

__all__ = [
    "Accept",
    "Animated",
    "CancelOrder",
    "Close",
    "Enlarged",
    "Glanced",
    "Loaded",
    "Written",
]


@dataclass(frozen=True, slots=True)
class Accept:
    """An order, and where its predicted seconds or its refusal go."""

    order: Order
    answer: "Future[float]"


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """End an order; the answer is whether there was one."""

    id: str
    answer: "Future[bool]"


@dataclass(frozen=True, slots=True)
class Written:
    """What a picture came to in the writer."""

    image: ImageId
    plan: Plan
    outcome: ImageOutput | Exception | Retry


@dataclass(frozen=True, slots=True)
class Glanced:
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
    """The file that the frames of an order became."""

    order_id: str
    outcome: ImageOutput | Exception


@dataclass(frozen=True, slots=True)
class Loaded:
    """The model of an image is ready, or will not be."""

    image: ImageId
    error: Exception | None


@dataclass(frozen=True, slots=True)
class Close:
    """Finish what is being stepped and end."""

    answer: "Future[None]"
