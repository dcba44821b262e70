"""Metadata: the recipe inside a picture.

A recipe is plain data from which the picture can be made again and proven::

    {"version": 1,
     "request": {...},        the request, everything resolved, for this one image
     "index": 0,              which image of that request (walks have more than one)
     "digest": "...",         sha256 over version, request and index
     "environment": {...}}    device, dtype, versions, model digest: where it was made

The digest says *what* was asked, not where it was made, so that one recipe has
one digest everywhere. Beside it stands A1111's text for everybody else's tools.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any, cast

from mezzotint.errors import ImageError
from mezzotint.infotext import format_infotext
from mezzotint.textchunks import RECIPE, read_texts
from mezzotint.vocabulary import a1111_sampler, a1111_schedule

__all__ = [
    "RECIPE_VERSION",
    "build_recipe",
    "digest_recipe",
    "library_versions",
    "make_infotext",
    "read_recipe",
    "spell_seed",
]

RECIPE_VERSION = 1

# Fields that decide when or how often, but not what: they are no part of a recipe.
_NOT_THE_PICTURE = ("num_images", "priority", "deadline_s", "gates")


def canonical_json(value: Any) -> str:
    """Return the one JSON text of plain data: sorted keys, no spaces."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_recipe(request: Mapping[str, Any], index: int = 0) -> str:
    """Return the sha256 over a recipe's version, request and index, 64 hex digits."""
    text = canonical_json({"version": RECIPE_VERSION, "request": dict(request), "index": index})
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_LIBRARIES = ("diffusers", "numpy", "pillow", "tokenizers", "torch", "transformers")


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of what decides a picture's bytes: networks, tokens, files."""
    return MappingProxyType({name: metadata.version(name) for name in _LIBRARIES})


def build_recipe(
    request: Mapping[str, Any],
    *,
    resolved: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    index: int = 0,
) -> dict[str, Any]:
    """Make the recipe of one image.

    Args:
        request: The request as :meth:`GenerationRequest.to_dict` gives it.
        resolved: What the planner decided for this image and overrides: ``seed``
            (of the attempt that was kept), ``width``, ``height``,
            ``num_inference_steps``, ``scheduler``, ... Request fields only.
        environment: Where it is made; JSON data.
        index: Which image of the request this is, where images of one request
            differ by more than their seed (walks); 0 otherwise.

    Returns:
        The recipe; ``digest`` is the same for equal requests everywhere.
    """
    merged = {**request, **{k: v for k, v in (resolved or {}).items() if v is not None}}
    asked = {key: value for key, value in merged.items() if key not in _NOT_THE_PICTURE}
    seed = asked.get("seed")
    if isinstance(seed, int):
        asked["seed"] = spell_seed(seed)
    return {
        "version": RECIPE_VERSION,
        "request": asked,
        "index": index,
        "digest": digest_recipe(asked, index),
        "environment": dict(environment or {}),
    }


def spell_seed(seed: int) -> int | str:
    """Return a seed as recipes hold it: beyond 2**53 as text, or JavaScript would round it."""
    return str(seed) if seed > 2**53 else seed


def read_recipe(data: bytes) -> dict[str, Any] | None:
    """Read our recipe from an encoded picture.

    Args:
        data: PNG, JPEG or WebP.

    Returns:
        The recipe, or None if the picture carries none of ours.

    Raises:
        ImageError: If there is a recipe that is broken, of a later version, or
            was changed (its digest does not fit).
    """
    text = read_texts(data).get(RECIPE)
    if text is None:
        return None
    try:
        recipe = json.loads(text)
        version, request, digest = recipe["version"], recipe["request"], recipe["digest"]
        index = int(recipe.get("index", 0))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ImageError("the picture's recipe is broken: it is not a recipe as JSON") from None
    if version != RECIPE_VERSION:
        raise ImageError(f"the recipe has version {version!r}; this program reads {RECIPE_VERSION}")
    if not isinstance(request, dict) or digest != digest_recipe(
        cast("dict[str, Any]", request), index
    ):
        raise ImageError("the picture's recipe was changed: its digest does not fit its request")
    return recipe


def make_infotext(recipe: Mapping[str, Any], *, has_steps: bool = True, version: str = "") -> str:
    """Write A1111's text for a recipe.

    Args:
        recipe: As :func:`build_recipe` makes it; ``environment.model_digest`` gives
            the model hash.
        has_steps: False for a GAN: no sampler, no steps.
        version: Program and version, e.g. ``"mezzotint 0.1.0"``.
    """
    request = recipe["request"]
    environment = recipe.get("environment", {})
    # Readers in the field split at commas even inside quotes.
    model = str(request.get("model", "plate")).replace(",", "_")
    fields: dict[str, object] = {}
    if has_steps:
        scheduler = request.get("scheduler")
        fields["Steps"] = request.get("num_inference_steps")
        fields["Sampler"] = a1111_sampler(scheduler) if scheduler else None
        if request.get("sigma_schedule"):
            fields["Schedule type"] = a1111_schedule(request["sigma_schedule"])
        fields["CFG scale"] = _scale(request.get("guidance_scale"))
    fields["Seed"] = request.get("seed")
    if request.get("width") and request.get("height"):
        fields["Size"] = f"{request['width']}x{request['height']}"
    fields["Model hash"] = str(environment.get("model_digest", ""))[:10] or None
    fields["Model"] = model
    if request.get("image"):
        fields["Denoising strength"] = request.get("strength", 0.8)
    fields["RNG"] = "CPU"
    fields["Version"] = version or None
    tags = "".join(f" <lora:{x['name']}:{x.get('scale', 1.0):g}>" for x in request.get("loras", ()))
    prompt = str(request.get("prompt", "")) + tags
    return format_infotext(prompt, str(request.get("negative_prompt", "")), fields)


def _scale(value: Any) -> float | None:
    """Return the one number that stands for a guidance scale."""
    if isinstance(value, Mapping):
        schedule = cast("Mapping[str, Any]", value)
        values = schedule.get("values") or [schedule.get("start", 1.0)]
        return float(values[0])
    return None if value is None else float(value)
