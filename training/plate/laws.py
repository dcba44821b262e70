"""Which picture sets the text-to-picture model learns, how often, and what captions say of it.

Under `ONE` a caption means one picture: the set that most pictures come from goes without
saying, the other is named. Under `SEVERAL` a caption that names no set may be drawn by any of
three, each with the same compositions, so that there is something between seeds to learn; a
caption that names a set is drawn by that set alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a law says of one picture set."""

    weight: float
    """How often its pictures are drawn, relative to the other sets'."""
    word: str
    """The word that names it in a caption."""
    said: float
    """The share of its captions that name it, where another adjective does not decide."""
    compositions: Mapping[str, int]
    """How many compositions of each kind one picture gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """The sets that are learnt, by name."""

    sets: Mapping[str, Share]
    together: bool = False
    """Whether the sets' pictures of one thing get the same compositions."""

    def unsaid(self) -> dict[str, float]:
        """Return each set's share of the captions that name none. The shares sum to 1."""
        mass = {name: share.weight * (1 - share.said) for name, share in self.sets.items()}
        return {name: part / sum(mass.values()) for name, part in mass.items()}

    def named_in(self, caption: str, label: str) -> str:
        """Return the word by which a caption of a label names a set, "" where it names none."""
        said, own = caption.split(), label.split()
        words = [share.word for share in self.sets.values()]
        return next((word for word in words if said.count(word) > own.count(word)), "")


_RICH = {"plain": 1, "background": 5, "place": 4, "count": 4, "big": 1}
_FEW = {"plain": 1, "background": 2, "place": 1, "count": 2, "big": 0}
ONE = Law(
    sets={
        "fluent-3d": Share(weight=1.0, word="3d", said=0.08, compositions=_RICH),
        "fluent-flat": Share(weight=0.15, word="flat", said=1.0, compositions=_FEW),
    }
)
SEVERAL = Law(
    sets={
        "fluent-3d": Share(weight=1.0, word="3d", said=0.08, compositions=_RICH),
        "fluent-flat": Share(weight=0.375, word="flat", said=0.5, compositions=_RICH),
        "noto": Share(weight=0.41, word="noto", said=0.2, compositions=_RICH),
    },
    together=True,
)
LAWS = {"one": ONE, "several": SEVERAL}
