"""Abilities: what an engine can do, as far as planning has to know."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from mezzotint.errors import InvalidRequest

__all__ = ["Abilities"]


def _own_name(name: str) -> str:
    """Stand for an engine that reads no embedding files."""
    return name


def _no_names() -> Collection[str]:
    """Stand for an engine without embeddings."""
    return ()


def _no_digest(kind: str, name: str) -> str:
    """Stand for an engine without adapters."""
    raise InvalidRequest(f"{kind} {name!r} is not known here", field=kind)


def _no_precision(_model: str) -> str:
    """Stand for an engine that has one precision."""
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What the engine behind the planner can do, and where it runs.

    Args:
        techniques: Request fields whose operator is there (``"image"``, ``"mask"``,
            ``"regions"``, ...); any other technique field is refused.
        environment: Device, dtype and versions that arithmetic depends on.
        adapter_digest: ``(kind, name) -> sha256`` of a ``"lora"``, ``"control"``,
            ``"image_prompt"``, ``"embedding"``, ``"model"`` or ``"upscaler"``; raises
            UnknownName where there is none.
        embedding_token: The word that stands for an embedding where none is asked for.
        embedding_names: Every embedding there is, for dialects that name them in prompts.
        precision: ``model name -> int8``, ``int8 with 7-bit weights``, ``bfloat16`` or "", for
            ``turbo``.
        max_pixels: Pixels of one picture, at most.
        max_request_pixels: Pixels of all pictures of one request, at most.
        max_output_pixels: Pixels of one picture after ``upscale``, at most.
    """

    techniques: frozenset[str] = frozenset()
    environment: str = ""
    adapter_digest: Callable[[str, str], str] = field(default=_no_digest, compare=False)
    embedding_token: Callable[[str], str] = field(default=_own_name, compare=False)
    embedding_names: Callable[[], Collection[str]] = field(default=_no_names, compare=False)
    precision: Callable[[str], str] = field(default=_no_precision, compare=False)
    max_pixels: int = 4096 * 4096
    max_request_pixels: int = 4096 * 4096 * 64
    max_output_pixels: int = 40_000_000

    def upscaler(self, name: str) -> tuple[str, str]:
        """Return an upscaler by name and content; what is built in has no content of its own."""
        is_built_in = name in ("lanczos", "latent")
        return (name, "" if is_built_in else self.adapter_digest("upscaler", name))
