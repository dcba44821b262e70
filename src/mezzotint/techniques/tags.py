"""Tags: LoRAs that a prompt of A1111 names in its text, and with them all that a request names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mezzotint.techniques.walking import names_of

__all__ = ["LoraTag", "lora_tags", "named_by", "weight_of"]

_LORA = re.compile(r"<lora:([^:<>]+)(?::([+-]?[\d.]+))?(?::[^<>]*)?>")


@dataclass(frozen=True, slots=True)
class LoraTag:
    """A ``<lora:name:scale>`` tag found in a prompt."""

    name: str
    scale: float


def weight_of(text: str) -> float:
    """Read a weight such as ``1.3``; what is no number weighs 1."""
    try:
        return float(text)
    except ValueError:
        return 1.0


def lora_tags(text: str) -> tuple[str, tuple[LoraTag, ...]]:
    """Take ``<lora:name:scale>`` tags out of a prompt.

    Returns:
        The text without the tags, and the tags in order; a tag without a scale
        has scale 1.

    Example:
        >>> lora_tags("a cat <lora:ink:0.8>")
        ('a cat ', (LoraTag(name='ink', scale=0.8),))
    """
    found = tuple(LoraTag(m[1], weight_of(m[2]) if m[2] else 1.0) for m in _LORA.finditer(text))
    return _LORA.sub("", text), found


def named_by(request: Any) -> Iterator[tuple[str, str, str]]:
    """Yield field, kind and name of all that a request names, in its prompt's tags too.

    Args:
        request: A :class:`~mezzotint.request.GenerationRequest`, whole.

    Example:
        >>> from mezzotint.request import GenerationRequest
        >>> [*named_by(GenerationRequest(prompt="<lora:ink:1>", prompt_dialect="a1111"))]
        [('model', 'model', 'plate'), ('prompt', 'lora', 'ink')]
    """
    yield from names_of(request)
    if request.prompt_dialect == "a1111":
        for tag in lora_tags(request.prompt)[1]:
            yield "prompt", "lora", tag.name
