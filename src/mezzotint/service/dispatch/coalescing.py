"""Sharing: pictures that are kept, and pictures that are being made, given to all who ask.

An exact picture is the same for everybody, so equal plans are drawn once: a later one
is answered from the result cache, one that comes meanwhile follows the first. Belongs
to the desk's thread and needs no lock.
"""

from dataclasses import dataclass, field
from typing import Any

from mezzotint.engine.cache import CachedImage, ResultCache
from mezzotint.engine.state import ImageId
from mezzotint.observe import metrics
from mezzotint.planning.plan import Plan
from mezzotint.service.orders import Order
from mezzotint.types import ImageOutput

__all__ = ["Sharing", "again", "may_share"]


@dataclass(slots=True)
class _Flight:
    """One computation and the other images that wait for the same picture."""

    leader: ImageId
    followers: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])


def may_share(plan: Plan, order: Order) -> bool:
    """Whether kept pictures may answer: exact ones, unjudged, where nobody said no."""
    return order.use_cache and order.policy is None and plan.reproducibility == "exact"


class Sharing:
    """Who shares which picture.

    Args:
        results: Kept pictures.
    """

    def __init__(self, results: ResultCache) -> None:
        self._results = results
        self._flights: dict[str, _Flight] = {}

    def is_known(self, plan: Plan) -> bool:
        """Whether a picture is kept or being made."""
        return plan.digest in self._flights or self._results.get(plan) is not None

    def leader(self, plan: Plan) -> ImageId | None:
        """Return who makes the same picture, if anybody does."""
        flight = self._flights.get(plan.digest)
        return None if flight is None else flight.leader

    def find(self, plan: Plan, index: int) -> ImageOutput | None:
        """Return a kept picture as the answer for image ``index``, or None."""
        kept = self._results.get(plan)
        metrics.count(
            "mezzotint_cache_lookups_total", cache="results", answer="hit" if kept else "miss"
        )
        return None if kept is None else _from_cache(kept, plan, index)

    def follow(self, plan: Plan, image: ImageId) -> bool:
        """Wait for whoever makes the same picture; False if nobody did, so that ``image`` leads."""
        digest = plan.digest
        flight = self._flights.get(digest)
        if flight is None:
            self._flights[digest] = _Flight(leader=image)
            return False
        flight.followers.append((image.request, image.index))
        return True

    def leave(self, order_id: str) -> None:
        """Take the followers of an order off all flights; what it leads flies on."""
        for flight in self._flights.values():
            flight.followers = [f for f in flight.followers if f[0] != order_id]

    def audience(self, image: ImageId, plan: Plan) -> list[tuple[str, int]]:
        """Return who waits for an image: its own order and the followers of its flight."""
        flight = self._flights.get(plan.digest)
        followers = flight.followers if flight is not None and flight.leader == image else []
        return [(image.request, image.index), *followers]

    def land(self, image: ImageId, plan: Plan, outcome: Any) -> list[tuple[str, int]]:
        """Keep the picture that an image became, end the flight it led, return the followers."""
        is_picture = isinstance(outcome, ImageOutput)
        if is_picture and plan.reproducibility == "exact" and not outcome.attempts:
            spent = outcome.timings
            drawn_s = spent.encode_s + spent.denoise_s + spent.decode_s + spent.write_s
            self._results.put(plan, _to_cache(outcome, plan), drawn_s=drawn_s)
        flight = self._flights.get(plan.digest)
        if flight is None or flight.leader != image:
            return []
        return self._flights.pop(plan.digest).followers

    def why_miss(self, plan: Plan) -> str:
        """Explain why a plan is not in the result cache."""
        return self._results.why_miss(plan)


def again(output: ImageOutput, plan: Plan, index: int) -> ImageOutput:
    """Return a finished picture as another image with the same plan gets it."""
    return _from_cache(_to_cache(output, plan), plan, index)


def _to_cache(output: ImageOutput, plan: Plan) -> CachedImage:
    """Return a finished picture as it is kept."""
    return CachedImage(
        canonical=plan.canonical,
        data=output.data,
        width=output.width,
        height=output.height,
        recipe=output.recipe,
        warnings=output.warnings,
    )


def _from_cache(kept: CachedImage, plan: Plan, index: int) -> ImageOutput:
    """Return a kept picture as an answer."""
    return ImageOutput(
        index=index,
        seed=plan.seed,
        data=kept.data,
        format=plan.output[0],
        width=kept.width,
        height=kept.height,
        recipe=kept.recipe,
        warnings=kept.warnings,
    )
