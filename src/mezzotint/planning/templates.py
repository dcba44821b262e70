"""Templates: requests that differ in nothing but their seed are planned once.

Behind a server the same model is asked again and again for another picture of the same
kind. All but the seed of such a plan is known from the first: what was resolved, what it
costs in bytes, and, with the plan itself, the text that its digest is made of
(:meth:`~mezzotint.planning.plan.Plan.with_seed`). The seed is filled in.

Only requests that say it all by words and numbers are remembered: where planning asks for
a file, an adapter or a picture, the file may be another one the next time.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from mezzotint.models.spec import ModelSpec
from mezzotint.plain import exchange
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.memory import Footprint, measure
from mezzotint.planning.plan import Planned, image_seed
from mezzotint.planning.planner import draw_seed, plan
from mezzotint.request import GenerationRequest
from mezzotint.techniques.table import TECHNIQUES
from mezzotint.types import Size

__all__ = ["Templates"]


@dataclass(frozen=True, slots=True)
class _Template:
    """What a request came to, and against what."""

    spec: ModelSpec
    abilities: Abilities
    planned: Planned
    footprints: tuple[Footprint, ...]


class Templates:
    """Plans requests, the like of which it may have planned before; from any thread.

    Args:
        most: Kinds of requests that are remembered; the one not asked for longest goes first.
        draw_seed: Gives the seed where a request has none.
    """

    def __init__(self, most: int = 256, draw_seed: Callable[[], int] = draw_seed) -> None:
        self._most = most
        self._draw_seed = draw_seed
        self._known: OrderedDict[tuple[str, GenerationRequest], _Template] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def plan(
        self,
        request: GenerationRequest,
        spec: ModelSpec,
        abilities: Abilities,
        *,
        image_size: Size | None = None,
        owner: str = "",
    ) -> tuple[Planned, tuple[Footprint, ...]]:
        """Return the plans of a request and their bytes: what :func:`plan` and :func:`measure` do.

        Args:
            request: What was asked for.
            spec: The model that was named.
            abilities: What the engine can do.
            image_size: As :func:`~mezzotint.planning.planner.plan` has it.
            owner: Whose earlier requests count: from an answer that comes too fast another
                could tell what was asked for.

        Raises:
            InvalidRequest: If the model or the engine cannot honour a field.
        """
        if not _is_plain(request, spec):
            return self._whole(request, spec, abilities, image_size)
        kind = (owner, exchange(request, seed=None, priority=0, deadline_s=None))
        with self._lock:
            known = self._known.get(kind)
            if known is not None:
                self._known.move_to_end(kind)
        if known is None or known.spec is not spec or known.abilities != abilities:
            planned, footprints = self._whole(request, spec, abilities, image_size)
            for one in planned.plans:
                # From here on with every seed:
                _ = one.spelling, one.batch_key, one.cost_name, one.description
            with self._lock:
                self._known[kind] = _Template(spec, abilities, planned, footprints)
                while len(self._known) > self._most:
                    self._known.popitem(last=False)
            return planned, footprints
        seed = request.seed if request.seed is not None else self._draw_seed()
        plans = tuple(
            one.with_seed(image_seed(seed, k)) for k, one in enumerate(known.planned.plans)
        )
        return Planned(plans=plans, warnings=known.planned.warnings), known.footprints

    def _whole(
        self,
        request: GenerationRequest,
        spec: ModelSpec,
        abilities: Abilities,
        image_size: Size | None,
    ) -> tuple[Planned, tuple[Footprint, ...]]:
        planned = plan(request, spec, abilities, image_size=image_size, draw_seed=self._draw_seed)
        return planned, tuple(measure(one, spec) for one in planned.plans)


def _is_plain(request: GenerationRequest, spec: ModelSpec) -> bool:
    """Whether words and numbers are all that a plan is made of.

    Zeros are left out: there are two of them, which are equal and spelt differently.
    """
    has_parts = request.gates is not None or any(t.is_asked(request) for t in TECHNIQUES)
    scale = request.guidance_scale
    has_scale = scale is None or (isinstance(scale, float | int) and scale != 0)
    is_read_plainly = request.prompt_dialect == "plain" or not spec.takes_prompt
    has_extent = request.latent.truncation != 0 and request.strength != 0
    return has_scale and has_extent and is_read_plainly and not has_parts
