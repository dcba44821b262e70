"""Recipes: what goes into a picture's file beside its pixels, and with it through the service.

The recipe of a plan without words is spelt once; that of another seed differs in the seed
and in the digest, which are filled in.
"""

import hashlib
import json
import secrets
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mezzotint.images.metadata import (
    RECIPE_VERSION,
    build_recipe,
    canonical_json,
    make_infotext,
    spell_seed,
)
from mezzotint.planning.plan import Plan, Techniques
from mezzotint.request import GenerationRequest
from mezzotint.service.requests import standalone
from mezzotint.vocabulary import FULL_PRECISION

__all__ = ["Recipes", "Spelt"]

_SEED = secrets.token_hex(16)  # stands for the seed; no text of anybody holds it
_DIGEST = secrets.token_hex(32)
_MOST = 256


@dataclass(frozen=True, slots=True)
class Spelt:
    """A recipe, as data and as the texts that stand in a file.

    Args:
        recipe: Plain data.
        infotext: A1111's text.
        text: The recipe as JSON.
    """

    recipe: dict[str, Any]
    infotext: str
    text: str


@dataclass(frozen=True, slots=True)
class _Skeleton:
    """A recipe without its seed and digest: the parts between which they stand."""

    recipe: dict[str, Any]
    infotext: tuple[str, ...]
    text: tuple[str, ...]
    sealed: tuple[str, ...]

    def fill(self, seed: int) -> Spelt:
        """Return the recipe of a seed."""
        told = spell_seed(seed)
        spelt = json.dumps(told)
        digest = hashlib.sha256(spelt.join(self.sealed).encode()).hexdigest()
        recipe = {
            **self.recipe,
            "request": {**self.recipe["request"], "seed": told},
            "digest": digest,
            "environment": dict(self.recipe["environment"]),
        }
        text = spelt.join(self.text).replace(_DIGEST, digest)
        return Spelt(recipe, str(told).join(self.infotext), text)


class Recipes:
    """Writes recipes for one service; used by one thread at a time or several.

    Args:
        environment: Device, dtype and versions.
        program: Name and version of this program.
    """

    def __init__(self, environment: Mapping[str, Any], program: str) -> None:
        self._environment = environment
        self._program = program
        self._skeletons: OrderedDict[tuple[str, ...], _Skeleton] = OrderedDict()

    def write(self, request: GenerationRequest, plan: Plan, warnings: Sequence[str] = ()) -> Spelt:
        """Return the recipe of one image: its request alone, resolved, and where it was made.

        Args:
            request: What was asked.
            plan: What was made.
            warnings: What was changed on the way.
        """
        if not _is_wordless(plan):
            return self._spell(self._build(request, plan, warnings), plan)
        skeleton = self._skeletons.get(plan.spelling)
        if skeleton is None:
            skeleton = self._skeletons[plan.spelling] = self._outline(request, plan, warnings)
            while len(self._skeletons) > _MOST:
                self._skeletons.popitem(last=False)
        return skeleton.fill(plan.seed)

    def environment(self, plan: Plan) -> dict[str, Any]:
        """Return where an image is made; a model may have a placement of its own."""
        of_plan: dict[str, Any] = json.loads(plan.environment) if plan.environment else {}
        own = {name: of_plan[name] for name in ("dtype", "placement") if name in of_plan}
        return {**self._environment, **own, "model_digest": plan.model_digest}

    def _build(
        self, request: GenerationRequest, plan: Plan, warnings: Sequence[str]
    ) -> dict[str, Any]:
        environment = self.environment(plan)
        if plan.shortcuts:
            notes = [w for w in warnings if w.startswith(FULL_PRECISION)]
            environment["shortcuts"] = [*plan.shortcuts, *notes]
        walk = plan.techniques.walk
        return build_recipe(
            standalone(request, plan).to_dict(),
            resolved={"model": plan.model, "width": plan.size.width, "height": plan.size.height},
            environment=environment,
            index=walk.frame if walk else 0,
        )

    def _spell(self, recipe: dict[str, Any], plan: Plan) -> Spelt:
        infotext = make_infotext(recipe, has_steps=bool(plan.steps), version=self._program)
        return Spelt(recipe, infotext, canonical_json(recipe))

    def _outline(
        self, request: GenerationRequest, plan: Plan, warnings: Sequence[str]
    ) -> _Skeleton:
        """Spell a recipe with marks in the places of its seed and its digest."""
        recipe = self._build(request, plan, warnings)
        asked = {**recipe["request"], "seed": _SEED}
        spelt = self._spell({**recipe, "request": asked, "digest": _DIGEST}, plan)
        sealed = {"version": RECIPE_VERSION, "request": asked, "index": recipe["index"]}
        mark = f'"{_SEED}"'
        return _Skeleton(
            recipe=recipe,
            infotext=tuple(spelt.infotext.split(_SEED)),
            text=tuple(spelt.text.split(mark)),
            sealed=tuple(canonical_json(sealed).split(mark)),
        )


_BARE = Techniques()


def _is_wordless(plan: Plan) -> bool:
    """Whether nobody's words or pictures are in a plan: such texts are kept for nobody else."""
    if plan.prompt or plan.negative_prompt or plan.shortcuts or plan.second is not None:
        return False
    t = plan.techniques
    return t == _BARE or t == replace(_BARE, truncation=t.truncation, class_label=t.class_label)
