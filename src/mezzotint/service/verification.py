"""Verification: a picture made again from its recipe, and the two files compared.

For whoever has a service before it, or a server. What the command line compares beside
whole files is :mod:`mezzotint.cli.comparison`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.errors import InvalidRequest, WorkFailed
from mezzotint.plain import is_mapping
from mezzotint.request import GenerationRequest
from mezzotint.types import GenerationResult, ImageOutput

__all__ = ["Verification", "compare_files", "recipe_request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What came of making a picture again from its recipe.

    Args:
        identical: Whether the file is the one that its recipe makes, byte for byte.
        request: The request in the recipe.
        made: The picture that the recipe makes at the server.
    """

    identical: bool
    request: GenerationRequest = field(repr=False)
    made: ImageOutput = field(repr=False)


def recipe_request(about: Mapping[str, Any]) -> tuple[GenerationRequest, int]:
    """Return the request in a picture's recipe, and which picture of it this is.

    Args:
        about: What the server reads in the picture.

    Raises:
        InvalidRequest: If there is no recipe of ours.
    """
    recipe = about.get("recipe")
    if not is_mapping(recipe) or "request" not in recipe:
        raise InvalidRequest("the picture carries no recipe of ours", field="image")
    return GenerationRequest.from_dict(recipe["request"]), int(recipe.get("index", 0))


def compare_files(
    data: bytes, request: GenerationRequest, index: int, result: GenerationResult
) -> Verification:
    """Hold a file against the one that its recipe makes.

    Raises:
        WorkFailed: If the recipe did not make the picture.
    """
    made = next((image for image in result.images if image.index == index), None)
    if made is None:
        raise WorkFailed(f"the recipe names picture {index}, which its request does not make")
    return Verification(identical=made.data == data, request=request, made=made)
