"""Calls: what a Python call hands over, words and pictures, as one request.

``mz.generate``, ``mz.pipeline`` and the client of a server read their arguments here.
"""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.plain import read
from mezzotint.request import GenerationRequest
from mezzotint.types import ImageInput

__all__ = ["read_call", "read_picture"]

_PICTURES = ("image", "mask")


def read_call(
    prompt: str | GenerationRequest | None, fields: Mapping[str, Any]
) -> GenerationRequest:
    """Return the request of a call.

    Args:
        prompt: What to draw, or a whole request.
        fields: Fields of the request; with a whole one they replace its own.

    Raises:
        InvalidRequest: If a field is wrong, unknown or given twice.
    """
    given = dict(fields)
    for name in _PICTURES:
        if given.get(name) is not None:
            given[name] = read_picture(given[name], name)
    references = given.get("image_references")
    if isinstance(references, list | tuple):
        given["image_references"] = tuple(
            read_picture(value, f"image_references[{k}]") for k, value in enumerate(references)
        )
    if isinstance(prompt, GenerationRequest):
        return dataclasses.replace(prompt, **given) if given else prompt
    if prompt is not None:
        if "prompt" in given:
            raise InvalidRequest("prompt was given twice", field="prompt")
        given["prompt"] = prompt
    return read(GenerationRequest, given)


def read_picture(value: Any, field: str) -> Any:
    """Turn a path, encoded bytes or a PIL picture into an encoded picture.

    Raises:
        ImageError: If a file cannot be read.
    """
    if isinstance(value, Path):
        return ImageInput.from_file(value, field=field)
    if isinstance(value, str):
        is_path = len(value) < 4096 and Path(value).is_file()
        return ImageInput.from_file(value, field=field) if is_path else value
    if hasattr(value, "save") and hasattr(value, "mode"):
        stream = io.BytesIO()
        value.save(stream, "PNG")
        return ImageInput(stream.getvalue())
    return value
