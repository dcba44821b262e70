"""Gates: scorers of finished pictures.

A gate looks at pixels and returns a number with a reason. It does not retry,
write logs of policy, or change the picture. Which gates exist is told by
:mod:`mezzotint.gates.registry`.
"""

from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Gate", "GateInfo", "Score"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateInfo:
    """What a gate measures and how its scores are read.

    Args:
        name: Name in the request.
        doc: One sentence: what is measured, in which unit.
        default_threshold: Used where the request names none.
        passes_below: True if low scores are good.
        spread: A typical difference between good and bad, > 0.
        blocks: Whether failing ends the image without another attempt.
    """

    name: str
    doc: str
    default_threshold: float
    passes_below: bool = True
    spread: float = 1.0
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """A measurement and one sentence about it."""

    value: float
    reason: str = ""


class Gate(Protocol):
    """Measures one picture."""

    @property
    def info(self) -> GateInfo:
        """How the scores are read."""
        ...

    def score(self, pixels: Any) -> Score:
        """Measure a picture.

        Args:
            pixels: uint8 array of shape (H, W, 3), RGB.

        Returns:
            The score on the gate's own scale, with a reason for people.
        """
        ...
