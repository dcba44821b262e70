"""Row sizes: how many rows a network may take in one call without changing a bit of any.

For networks that draw whole pictures in one call, as a GAN's do. Every row of a trial is compared
with the same row alone. A few sizes are tried when they are first asked for. Those between them
fill a call better, but trying each takes as long as drawing twice its rows, so that is left to
whoever has the time, one call after the other; until then rows go in several calls.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["RowSizes"]

_AT_ONCE = (2, 4, 8, 16)
_SIZES = range(2, 17)


class RowSizes:
    """The sizes of calls of one network.

    Args:
        ask: Calls the network: inputs by name, each of shape (R, ...), to its answer, of shape
            (R, ...).
        draw: Returns inputs of so many random rows.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, Tensor]], Tensor],
        draw: Callable[[int], Mapping[str, Tensor]],
    ) -> None:
        self._ask = ask
        self._draw = draw
        self._passed: dict[int, bool] = {}
        self._trial: _Trial | None = None

    def largest(self, rows: int) -> int:
        """Return the largest size up to so many rows that may be used; 1 always may."""
        return next((s for s in reversed(_SIZES) if s <= rows and self._may_have(s)), 1)

    @property
    def next_rows(self) -> int:
        """Rows of the call that the next trial needs; 0 if every size was tried."""
        trial = self._next()
        return 0 if trial is None else trial.next_rows

    def advance(self) -> None:
        """Make the next call of the next trial. One that raises changes nothing."""
        trial = self._next()
        if trial is None:
            return
        trial.advance(self._ask)
        if trial.passed is not None:
            self._passed[trial.rows] = trial.passed

    def _may_have(self, size: int) -> bool:
        """Tell whether a size passed; some are tried now."""
        if size in _AT_ONCE and size not in self._passed:
            trial = _Trial(size, self._draw(size))
            while trial.passed is None:
                trial.advance(self._ask)
            self._passed[size] = trial.passed
        return self._passed.get(size, False)

    def _next(self) -> "_Trial | None":
        """Return the trial of the smallest size that was not tried, begun or gone on with."""
        if self._trial is None or self._trial.rows in self._passed:
            size = next((s for s in _SIZES if s not in self._passed), 0)
            self._trial = _Trial(size, self._draw(size)) if size else None
        return self._trial


class _Trial:
    """A size on trial.

    Attributes:
        passed: Whether every row kept its bits; None while calls are still to be made.
    """

    def __init__(self, rows: int, inputs: Mapping[str, Tensor]) -> None:
        self.rows = rows
        self.passed: bool | None = None
        self._inputs = inputs
        self._whole: Tensor | None = None
        self._row = 0

    @property
    def next_rows(self) -> int:
        """Rows of the call that comes next."""
        return self.rows if self._whole is None else 1

    def advance(self, ask: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        """Call the network with all rows, or with the next one alone."""
        if self._whole is None:
            self._whole = ask(self._inputs)
            return
        here = slice(self._row, self._row + 1)
        alone = ask({name: tensor[here] for name, tensor in self._inputs.items()})
        same = torch.equal(alone, self._whole[here])
        self._row += 1
        if not same or self._row == self.rows:
            self.passed, self._whole = same, None
