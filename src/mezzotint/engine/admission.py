"""Admission: refuse early and honestly what cannot be done.

Pure: a picture of the load in, nothing or an error out. What is admitted has
room in the queue, fits the memory and, as far as is known, meets its deadline.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from mezzotint.engine.backlog import Load
from mezzotint.engine.config import EngineConfig
from mezzotint.errors import DeadlineExceeded, OutOfMemory, QueueFull
from mezzotint.planning.costs import Prediction

__all__ = ["Turns", "admit", "due_s", "finish_s"]

_STRETCH = 2.0  # times its own seconds, for which later ones that are shorter may pass
_KINDS = 1024  # kinds of requests whose latest one is remembered
_SHORTEST_RETRY_S = 0.1
_LONGEST_RETRY_S = 3600.0


def due_s(arrived_s: float, own: float) -> float:
    """Return when a request of ``own`` seconds that arrives now is due.

    It decides between requests of one client: who comes later than a request passes it
    only if it is shorter, and only within that many times the difference.
    """
    return arrived_s + _STRETCH * own


class Turns:
    """When requests are due: equal ones of one client in the order in which they came.

    What a request takes is known from measurements, which waver; without a memory the
    one that came while a picture was thought to be dear would be passed by all later ones.
    """

    def __init__(self) -> None:
        self._latest: OrderedDict[Hashable, float] = OrderedDict()

    def due_s(self, kind: Hashable, arrived_s: float, own: float) -> float:
        """Return when a request is due, not before an equal one that came earlier.

        Args:
            kind: Equal for equal work of one client.
            arrived_s: Clock time at which it came.
            own: Seconds it takes alone.
        """
        due = max(due_s(arrived_s, own), self._latest.get(kind, 0.0))
        self._latest[kind] = due
        self._latest.move_to_end(kind)
        if len(self._latest) > _KINDS:
            self._latest.popitem(last=False)
        return due


def finish_s(load: Load, own: float) -> float:
    """Predict the seconds until new work of ``own`` seconds is done.

    Clients share the device evenly: a newcomer waits for as much of each rival as it
    has to do itself, its client's earlier requests included, and never for more than
    the rivals still have.
    """
    work = own + load.ahead_s
    return load.before_s + work + min(load.rival_s, work * load.rivals)


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
        QueueFull: If the queue has no room for all its images, or its client no more.
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
    own_room = math.ceil(config.max_waiting * config.client_share) - load.own_images
    if load.own_images and len(costs) > own_room:
        raise QueueFull(
            f"this client has {load.own_images} of {config.max_waiting} pictures in the queue "
            f"and no room for {len(costs)} more: a share stays free for others",
            retry_after_s=_SHORTEST_RETRY_S,
        )
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
