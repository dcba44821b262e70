"""Accept: which media type a client would rather have (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Choice", "choose"]

_MAX_CHARACTERS = 4000
_MAX_RANGES = 50


class Choice(NamedTuple):
    """A media type that is offered, and whether ``Accept`` named it itself."""

    media: str
    is_named: bool


class _Range(NamedTuple):
    """One entry: a media type or a part of one, its quality, and its place."""

    media: str
    quality: float
    place: int


def choose(accept: str, offered: Sequence[str], *, only_named: Sequence[str] = ()) -> Choice | None:
    """Choose among media types by the quality values of a header.

    Args:
        accept: The header; "" if there is none.
        offered: Media types, the preferred one first. Among those that the header names
            with one quality, what stands first in the header is chosen.
        only_named: Those of ``offered`` that no wildcard stands for. They are chosen
            first where they are named with the highest quality.

    Returns:
        The choice, or None if the header allows nothing that is offered, or is empty.

    Example:
        >>> choose("image/webp;q=0.5, image/png", ["image/png", "image/webp"])
        Choice(media='image/png', is_named=True)
    """
    ranges = _read(accept)
    best: tuple[tuple[float, bool, bool, int, int], Choice] | None = None
    for number, media in enumerate(offered):
        family = media.partition("/")[0]
        patterns = (media,) if media in only_named else (media, f"{family}/*", "*/*")
        found = next((r for p in patterns for r in ranges if r.media == p), None)
        if found is None or found.quality <= 0:
            continue
        is_named = found.media == media
        key = (found.quality, media in only_named, is_named, -found.place, -number)
        if best is None or key > best[0]:
            best = (key, Choice(media, is_named))
    return None if best is None else best[1]


def _read(accept: str) -> list[_Range]:
    """Read the entries of a header; a quality that is no number counts as 1."""
    entries = accept[:_MAX_CHARACTERS].lower().split(",")[:_MAX_RANGES]
    return [
        _Range(entry.partition(";")[0].strip(), _quality(entry), place)
        for place, entry in enumerate(entries)
    ]


def _quality(entry: str) -> float:
    for parameter in entry.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 1.0
    return 1.0
