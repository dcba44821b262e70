"""Admission: refuse early and honestly what cannot be done.

Pure: a picture of the load in, nothing or an error out. What is admitted has
room in the queue, fits the memory and, as far as is known, meets its deadline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.costs import Prediction
from mezzotint.errors import DeadlineExceeded, OutOfMemory, QueueFull

__all__ = ["Load", "admit", "finish_s"]

_SHORTEST_RETRY_S = 0.1
_LONGEST_RETRY_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine has before it.

    Args:
        images: Images accepted and not ended.
        seconds: Predicted device seconds that they still need.
        clients: Clients among them.
        own_seconds: The part of ``seconds`` that belongs to the client who asks.
        own_requests: The same, request by request; () if that is not known.
    """

    images: int = 0
    seconds: float = 0.0
    clients: int = 0
    own_seconds: float = 0.0
    own_requests: tuple[float, ...] = ()


def finish_s(load: Load, own: float) -> float:
    """Predict the seconds until new work of ``own`` seconds is done.

    Clients share the device evenly, and so do the requests of one client: a newcomer
    waits for as much of each rival as it needs itself, and never for more than the
    rival still has.
    """
    work = own + (sum(min(r, own) for r in load.own_requests) or load.own_seconds)
    others = load.seconds - load.own_seconds
    rivals = max(load.clients - (1 if load.own_seconds else 0), 0)
    return work + min(others, work * rivals)


def admit(
    load: Load,
    costs: Sequence[Prediction],
    *,
    config: EngineConfig,
    budget_bytes: int,
    deadline_s: float | None = None,
    pace: float = 1.0,
) -> float:
    """Let a request in, or say why not.

    Args:
        load: What the engine has before it.
        costs: Prediction for each image of the request.
        config: Limits.
        budget_bytes: Bytes that tensors of requests may take together.
        deadline_s: Seconds from now by which the request must be done.
        pace: Seconds that pass for each predicted one, by experience.

    Returns:
        Predicted seconds until the request is done.

    Raises:
        OutOfMemory: If an image does not fit the memory even alone.
        QueueFull: If the queue has no room for all its images.
        DeadlineExceeded: If the deadline cannot be met by measured times.
    """
    largest = max(costs, key=lambda cost: cost.peak_bytes)
    if largest.peak_bytes > budget_bytes:
        raise OutOfMemory(
            f"the picture needs about {largest.peak_bytes >> 20} MiB, "
            f"the engine has {budget_bytes >> 20} MiB for pictures; ask for a smaller one",
            retry_after_s=_LONGEST_RETRY_S,
        )
    own = sum(cost.seconds for cost in costs)
    room = config.max_waiting - load.images
    if len(costs) > room:
        share = pace * load.seconds / max(load.images, 1)
        wait = min(max(share * (len(costs) - room), _SHORTEST_RETRY_S), _LONGEST_RETRY_S)
        raise QueueFull(
            f"the queue holds {load.images} of {config.max_waiting} pictures and has no room "
            f"for {len(costs)} more",
            retry_after_s=wait,
        )
    eta = finish_s(load, own) * pace
    measured = all(cost.measured for cost in costs)
    alone = own / max(len(costs), 1)  # pictures of one request may share calls
    if deadline_s is not None and deadline_s <= 0:
        raise DeadlineExceeded("deadline_s has passed before the request was accepted")
    if deadline_s is not None and measured and alone > deadline_s:
        raise DeadlineExceeded(
            f"deadline_s of {deadline_s:g} s cannot be met: the work alone takes {alone:.3g} s"
        )
    if deadline_s is not None and measured and eta > deadline_s and load.images:
        raise DeadlineExceeded(
            f"deadline_s of {deadline_s:g} s cannot be met: about {eta:.3g} s with what is queued"
        )
    return eta
