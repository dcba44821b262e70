"""Calibration: what calls of each size take here, timed before anybody waits for them.

The engine's own executor does real work on a real plan: so the time holds gathering,
network, guidance and solver, as it will in service. Sizes grow until the time is up;
a size that is used for the first time is certified by that, which is timed by nobody.
What was timed by an earlier process with the same model, device and versions is not
timed again. A size whose trial would outlast the time that is left is not begun: a large
model draws at once, and learns a size when it is first used.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from mezzotint.engine.state import ImageId, StepBatch
from mezzotint.engine.step_engine import Executor
from mezzotint.planning.costs import CostTable, Kind, cost_key
from mezzotint.planning.plan import Plan

__all__ = ["calibrate"]

_REPEATS = 3  # one to warm up, two that count
_TRIALS = 3  # calls of a size, in rows, that its certificate takes
_REQUEST = "calibration"


def calibrate(
    executor: Executor,
    costs: CostTable,
    plan: Plan,
    *,
    sizes: Sequence[int],
    limit_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Time a plan's kinds of work and remember them.

    Args:
        executor: Who works; nothing else may be using it.
        costs: Where times go.
        plan: What to draw, without shortcuts or techniques.
        sizes: Rows of the calls to time, rising.
        limit_s: Seconds that all of it may take, as far as can be told beforehand.
        clock: Seconds.

    Returns:
        Calls that were timed.
    """
    key, began, timed = cost_key(plan), clock(), 0
    rows = plan.rows[0] if plan.rows else 1
    kind: Kind = "step" if plan.rows else "decode"
    wanted = [s for s in sizes if s >= rows and s not in costs.measured_rows(key, kind)]
    has_decoded = bool(costs.measured_rows(key, "decode"))
    images: list[ImageId] = []
    shape: object = None
    try:
        for size in wanted:
            is_used_up = bool(plan.rows) and len(plan.rows) - timed < _REPEATS
            left_s = limit_s - (clock() - began)
            if left_s < _predict(costs, key, kind, size) or is_used_up:
                break
            while len(images) * rows < size:
                image = ImageId(_REQUEST, len(images))
                shape = _encode(executor, costs, image, plan, clock)
                images.append(image)
            if size not in executor.buckets(kind, shape):
                continue
            ids = tuple(images[: size // rows])
            batch = StepBatch(kind=kind, ids=ids, key=shape, bucket=size)
            timed += _time(executor, costs, batch, key, clock)
        if images and plan.rows and not has_decoded:
            one = StepBatch(kind="decode", ids=(images[0],), key=shape, bucket=1)
            timed += _time(executor, costs, one, key, clock)
    finally:
        for image in images:
            executor.release(image)
    return timed


def _predict(costs: CostTable, key: str, kind: Kind, size: int) -> float:
    """Return the seconds that trying and timing a size will take; 0 where nothing is known."""
    if not costs.is_measured(key, kind):
        return 0.0
    return costs.seconds(key, kind, size) * (_TRIALS + _REPEATS)


def _encode(
    executor: Executor, costs: CostTable, image: ImageId, plan: Plan, clock: Callable[[], float]
) -> object:
    """Make one image's tensors and time it."""
    began = clock()
    encoded = executor.encode(image, replace(plan, seed=image.index), {})
    costs.record(cost_key(plan), "encode", 1, clock() - began)
    return encoded.key


def _time(
    executor: Executor, costs: CostTable, batch: StepBatch, key: str, clock: Callable[[], float]
) -> int:
    """Repeat a call and remember the times that mean something."""
    kind: Kind = batch.kind
    for _ in range(_REPEATS):
        began = clock()
        do = executor.decode if kind == "decode" else executor.step
        if do(batch).seconds is not None:
            costs.record(key, kind, batch.bucket, clock() - began)
    return _REPEATS
