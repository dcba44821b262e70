"""Registry: which gates exist, by the names that requests use.

Plug-ins add theirs through the entry-point group ``mezzotint.gates``: a callable
without arguments that returns a :class:`~mezzotint.gates.base.Gate`.
"""

from collections.abc import Callable

from mezzotint.gates.base import Gate
from mezzotint.registry import Registry

__all__ = ["GATES"]


def _craft() -> Gate:
    from mezzotint.gates.craft import CraftGate

    return CraftGate()


def _nsfw() -> Gate:
    from mezzotint.gates.nsfw import NsfwGate

    return NsfwGate()


def _open_nsfw() -> Gate:
    from mezzotint.gates.open_nsfw import OpenNsfwGate

    return OpenNsfwGate()


def _quality() -> Gate:
    from mezzotint.gates.quality import QualityGate

    return QualityGate()


GATES: Registry[Callable[[], Gate]] = Registry(
    "gate",
    {"aesthetic": _craft, "nsfw": _nsfw, "open_nsfw": _open_nsfw, "quality": _quality},
    group="mezzotint.gates",
)
"""Gate name -> factory. Weights load when the factory runs."""
