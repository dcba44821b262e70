"""Lessons about call sizes: which leave every row's bits alone, and what they take.

Until a size is certified it is not used: two rows a call are always right. Trying one costs
calls of that size, so it is done while nobody waits; while somebody does, only as far as a
small share of the time that their pictures took, and only where a larger call could be used and
would be quicker, row by row, as the sizes before it are.
Trials go on where they were left, and certificates are kept on disk.

Dimensions: R rows.
"""

import math
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.execution.certify import REFERENCE, Certificates, Rows, Trial, random_rows
from mezzotint.engine.learning import Learner, Lesson
from mezzotint.models.base import Model
from mezzotint.observe import log
from mezzotint.observe.spans import span
from mezzotint.planning.costs import CostTable, cost_key
from mezzotint.planning.memory import measure
from mezzotint.planning.plan import Plan

__all__ = ["Lessons"]

_SIZES = (1, 2, 4, 6, 8)
"""Sizes that are learnt while nobody waits; larger ones are learnt where they are wanted."""

_WORTH = 1.03  # times the rows a second of a size before, or the one after it is not tried
_MOST_SHAPES = 32  # of rows that are remembered, to be learnt about
_TIMINGS = 2  # the first pays for what only a first call does

Denoise = Callable[[Rows], Tensor]


class _Shape:
    """What is being learnt about one shape of row."""

    def __init__(self, key: Hashable, label: str, plan: Plan, model: Model, rows: Rows) -> None:
        self.key, self.label, self.plan = key, label, plan
        self.model = weakref.ref(model)
        self.templates = rows.pick([0, len(rows) - 1])
        self.row_bytes = measure(plan, model.spec).row_bytes
        self.trial: Trial | None = None
        self.failed: set[int] = set()
        self.row_s = 0.0

    def trial_of(self, size: int) -> Trial:
        """Return the trial of a size, begun or gone on with."""
        if self.trial is None or len(self.trial.rows) != size:
            self.trial = Trial(random_rows(self.templates, size))
        return self.trial


class Lessons:
    """Learns which sizes of calls may be used. One thread calls every method.

    Args:
        config: The sizes, and the share of time that may be spent while somebody waits.
        certificates: Where it is remembered which sizes passed.
        caller: Gives the network call of a model.
        costs: Where seconds go that are measured while nobody waits; none are if None.
        learner: Takes lessons while nobody waits; None where there is nobody.
        budget_bytes: Bytes that rows may take; 0 is no bound.
    """

    def __init__(
        self,
        config: EngineConfig,
        certificates: Certificates,
        caller: Callable[[Model], Denoise],
        *,
        costs: CostTable | None = None,
        learner: Learner | None = None,
        budget_bytes: int = 0,
    ) -> None:
        self._config = config
        self._certificates = certificates
        self._caller = caller
        self._costs = costs
        self._learner = learner
        self._budget_bytes = budget_bytes
        self._shapes: OrderedDict[Hashable, _Shape] = OrderedDict()
        self._credit_s = 0.0
        self._drawn: weakref.WeakSet[Model] = weakref.WeakSet()  # whose lessons are known

    def tell(
        self,
        key: Hashable,
        label: str,
        *,
        plan: Plan,
        model: Model,
        rows: Rows,
        seconds: float | None,
        wanted: int,
        limit_s: float = math.inf,
    ) -> bool:
        """Hear of a call that was made for somebody, and learn a little if that is paid for.

        Args:
            key: The shape of the rows.
            label: The same for people.
            plan: Of an image in the call.
            model: Who was called.
            rows: What it was called with.
            seconds: What the call took; None if that is no measure.
            wanted: Rows of that shape that could be taken at once.
            limit_s: Seconds that whoever comes next may be kept waiting by a trial.

        Returns:
            Whether something was tried, so that the time of the step is no measure.
        """
        shape = self._shapes.get(key)
        if shape is None or shape.model() is not model:
            shape = self._remember(key, label, plan, model, rows)
        self._shapes.move_to_end(key)
        if seconds is None:
            return False
        shape.row_s = seconds / len(rows)
        self._credit_s += seconds * self._config.learn_share
        size = self._wanted(shape, wanted)
        if size is None:  # a little is kept for whoever comes next
            self._credit_s = min(self._credit_s, shape.row_s * REFERENCE)
            return False
        return self._spend(shape, size, limit_s)

    def tell_drawn(
        self, model: Model, *, rows: int, seconds: float | None, limit_s: float = math.inf
    ) -> bool:
        """Hear of pictures that a model drew: with what it has to learn, or rows to certify itself.

        Args:
            model: Who drew.
            rows: Pictures of the call.
            seconds: What the call took; None if that is no measure.
            limit_s: Seconds that whoever comes next may be kept waiting by a trial.

        Returns:
            Whether something was tried, so that the time of the call is no measure.
        """
        if self._learner is None:
            return False
        if model not in self._drawn:
            self._drawn.add(model)
            known, name = weakref.ref(model), model.spec.name
            if model.certifies_rows:
                lesson = Lesson(name=f"rows of {name}", study=lambda: _study_rows(known))
                self._learner.add(lesson)
            if model.study is not None:
                lesson = Lesson(name=f"arithmetic of {name}", study=lambda: _study(known))
                self._learner.add(lesson)
        if not model.certifies_rows:
            return False
        if seconds is None or not model.trial_rows:
            return False
        self._credit_s += seconds * self._config.learn_share
        price_s = model.trial_rows * seconds / rows
        if price_s > min(self._credit_s, limit_s):
            return False
        began = time.perf_counter()
        with span("learn", rows=model.trial_rows), torch.no_grad():
            model.try_rows()
        self._credit_s -= time.perf_counter() - began
        return True

    def _wanted(self, shape: _Shape, rows: int) -> int | None:
        """Return the smallest untried size that so many rows could use."""
        most = self._config.bucket(rows)
        sizes = (1,) if rows == 1 else tuple(s for s in self._config.buckets if 1 < s <= most)
        size = next(iter(self._untried(shape, sizes)), None)
        return size if size is None or self._may_pay(shape, size) else None

    def _may_pay(self, shape: _Shape, size: int) -> bool:
        """Tell whether a size may give more rows a second than those below it.

        Where the largest of them gives hardly more than the one before it, larger ones do not
        either: trying them would keep who waits for nothing.
        """
        may = [
            s
            for s in self._config.buckets
            if s < size and self._certificates.passed(shape.key, shape.label, s)
        ]
        if self._costs is None or size <= _SIZES[-1] or len(may) < 2:
            return True
        key = cost_key(shape.plan)
        if not self._costs.is_settled(key, "step", may[-1]):
            return True
        small, large = (s / max(self._costs.seconds(key, "step", s), 1e-9) for s in may[-2:])
        return large >= _WORTH * small

    def _spend(self, shape: _Shape, size: int, limit_s: float) -> bool:
        """Make the next call of a trial if it is paid for and short enough; tell if it was made."""
        model, trial = shape.model(), shape.trial_of(size)
        assert model is not None  # noqa: S101 - it was called just now
        price_s = trial.next_rows * shape.row_s
        if not price_s or price_s > min(self._credit_s, limit_s):
            self._credit_s = min(self._credit_s, price_s)  # no more is saved than is spent at once
            return False
        self._credit_s -= price_s
        try:
            self._advance(shape, trial, model)
        except Exception as error:  # a trial that fails is no fault of who is drawn for
            shape.failed.add(size)
            log.error("engine.trial_failed", shape=shape.label, rows=size, error=repr(error))
        return True

    def _remember(self, key: Hashable, label: str, plan: Plan, model: Model, rows: Rows) -> _Shape:
        """Remember a shape of row that was called for the first time."""
        shape = self._shapes[key] = _Shape(key, label, plan, model, rows)
        if len(self._shapes) > _MOST_SHAPES:
            self._shapes.popitem(last=False)
        if self._learner is not None and any(self._untried(shape, _SIZES)):
            self._learner.add(Lesson(name=f"sizes of {label}", study=lambda: self._study(shape)))
        return shape

    def _untried(self, shape: _Shape, sizes: tuple[int, ...]) -> list[int]:
        """Return the sizes that are in use, were not tried and fit into memory, rising."""
        return [
            size
            for size in sizes
            if size in self._config.buckets
            and size <= self._config.max_rows
            and (not self._budget_bytes or size * shape.row_bytes <= self._budget_bytes)
            and size not in shape.failed
            and not self._certificates.is_tried(shape.key, shape.label, size)
        ]

    def _study(self, shape: _Shape) -> None:
        """Try and time every size that a batch could have; may be left, and gone on with."""
        for size in self._untried(shape, _SIZES):
            model = shape.model()
            if model is None or size * shape.row_s > 2 * self._config.quantum_s:
                return  # not in memory any more, or such calls are never made for several
            trial = shape.trial_of(size)
            with span("learn", rows=size), torch.no_grad():
                while trial.passed is None:
                    self._advance(shape, trial, model)
                if self._certificates.passed(shape.key, shape.label, size):
                    self._time(shape, trial.rows, self._caller(model))
        if self._costs is not None:
            self._costs.save()

    def _advance(self, shape: _Shape, trial: Trial, model: Model) -> None:
        """Make one call of a trial; after the last one it is remembered what came of it."""
        call = self._caller(model)
        trial.advance(call)
        if trial.passed is not None:
            passed = self._certificates.settle(
                shape.key, shape.label, trial, model=model, call=call
            )
            log.info("engine.size_tried", shape=shape.label, rows=len(trial.rows), passed=passed)

    def _time(self, shape: _Shape, rows: Rows, call: Denoise) -> None:
        """Time a size that passed; the running mean takes it from there."""
        key, size = cost_key(shape.plan), len(rows)
        if (
            self._costs is None
            or shape.plan.techniques.ensemble  # whose members have times of their own
            or size in self._costs.measured_rows(key, "step")
        ):
            return
        for _ in range(_TIMINGS):
            began = time.perf_counter()
            call(rows)
            self._costs.record(key, "step", size, time.perf_counter() - began)


def _study_rows(known: "weakref.ref[Model]") -> None:
    """Try every number of rows of a model that is still in memory."""
    model = known()
    with span("learn", rows=0), torch.no_grad():
        while model is not None and model.trial_rows:
            model.try_rows()


def _study(known: "weakref.ref[Model]") -> None:
    """Learn what a model has to learn, if it is still in memory."""
    model = known()
    if model is not None and model.study is not None:
        with span("learn", rows=0):
            model.study()
