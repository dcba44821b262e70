"""Coalescing: pictures that are kept, and pictures that are being made, given to all who ask.

An exact picture is the same whenever it is drawn, so equal plans of one client are drawn
once: a later one is answered from the result cache, one that comes meanwhile follows the
first. Clients share with each other only where the operator wants it: an answer that
comes too fast tells what others have asked for. Belongs to the dispatcher's thread and needs
no lock.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from mezzotint.engine.cache import ResultCache
from mezzotint.engine.state import ImageId
from mezzotint.observe import metrics
from mezzotint.planning.plan import Plan
from mezzotint.service.requests import RequestSubmission
from mezzotint.types import ImageOutput, StageTimings

__all__ = ["Coalescing", "again", "may_share"]


@dataclass(slots=True)
class _Flight:
    """One computation and the other images that wait for the same picture."""

    leader: ImageId
    followers: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])


def may_share(plan: Plan, submission: RequestSubmission) -> bool:
    """Whether kept pictures may answer: exact ones, unjudged, where nobody said no."""
    return submission.use_cache and submission.policy is None and plan.reproducibility == "exact"


class Coalescing:
    """Who shares which picture.

    Args:
        results: Kept pictures.
        among_clients: Whether one client's picture answers another's request.
    """

    def __init__(self, results: ResultCache, *, among_clients: bool) -> None:
        self._results = results
        self._among_clients = among_clients
        self._flights: dict[tuple[str, str], _Flight] = {}  # by owner and plan
        self._led: dict[ImageId, tuple[str, str]] = {}

    def _owner(self, client: str) -> str:
        return "" if self._among_clients else client

    def is_known(self, plan: Plan, client: str) -> bool:
        """Whether a picture is kept or being made for this client."""
        owner = self._owner(client)
        return (owner, plan.digest) in self._flights or self._results.get(plan, owner) is not None

    def leader(self, plan: Plan, client: str) -> ImageId | None:
        """Return who makes the same picture for this client, if anybody does."""
        flight = self._flights.get((self._owner(client), plan.digest))
        return None if flight is None else flight.leader

    def find(self, plan: Plan, index: int, client: str) -> ImageOutput | None:
        """Return a kept picture as the answer for image ``index``, or None."""
        kept = self._results.get(plan, self._owner(client))
        metrics.count(
            "mezzotint_cache_lookups_total", cache="results", answer="hit" if kept else "miss"
        )
        return None if kept is None else again(kept, plan, index)

    def follow(self, plan: Plan, image: ImageId, client: str) -> bool:
        """Wait for whoever makes the same picture; False if nobody did, so that ``image`` leads."""
        key = (self._owner(client), plan.digest)
        flight = self._flights.get(key)
        if flight is None:
            self._flights[key] = _Flight(leader=image)
            self._led[image] = key
            return False
        flight.followers.append((image.request, image.index))
        return True

    def leave(self, request_id: str) -> None:
        """Take the followers of a request off all flights; what it leads flies on."""
        for flight in self._flights.values():
            flight.followers = [f for f in flight.followers if f[0] != request_id]

    def audience(self, image: ImageId) -> list[tuple[str, int]]:
        """Return who waits for an image: its own request and the followers of its flight."""
        key = self._led.get(image)
        followers = self._flights[key].followers if key is not None else []
        return [(image.request, image.index), *followers]

    def land(self, image: ImageId, plan: Plan, outcome: Any, client: str) -> list[tuple[str, int]]:
        """Keep the picture that an image became, end the flight it led, return the followers."""
        is_picture = isinstance(outcome, ImageOutput)
        if is_picture and plan.reproducibility == "exact" and not outcome.attempts:
            spent = outcome.timings
            drawn_s = spent.encode_s + spent.denoise_s + spent.decode_s + spent.write_s
            self._results.put(plan, outcome, self._owner(client), drawn_s=drawn_s)
        key = self._led.pop(image, None)
        return [] if key is None else self._flights.pop(key).followers

    def why_miss(self, plan: Plan, client: str) -> str:
        """Explain why a plan is not among the pictures kept for this client."""
        return self._results.why_miss(plan, self._owner(client))


def again(output: ImageOutput, plan: Plan, index: int) -> ImageOutput:
    """Return a finished picture as another image with the same plan gets it."""
    return replace(
        output, index=index, seed=plan.seed, pixels=None, timings=StageTimings(), attempts=()
    )
