"""Loader: models are loaded and compiled beside the device thread, each once.

The device thread steps whoever is running; seconds of reading weights and compiling
networks would stop them all. So an image whose model is not ready waits here first.
"""

import threading
import time
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Protocol

from mezzotint.engine.execution.filling import Filler, ModelSource
from mezzotint.engine.execution.rehearsal import rehearse
from mezzotint.errors import NotReady
from mezzotint.models.base import Model
from mezzotint.models.spec import ModelSpec
from mezzotint.observe import garbage, metrics
from mezzotint.planning.costs import CostTable, load_key
from mezzotint.planning.plan import Plan

__all__ = ["Loader", "Models"]

_THREADS = 2
"""Two models may load at once: a small one need not wait for a large one."""

_MAX_KNOWN = 1024

Then = Callable[[Exception | None], None]


class Models(ModelSource, Protocol):
    """Where models come from, and which are there."""

    def is_loaded(self, name: str) -> bool:
        """Tell whether a model is in memory."""
        ...

    def spec(self, name: str) -> ModelSpec:
        """Return what is known of a model without reading its weights."""
        ...


class Loader:
    """Makes models ready for plans.

    Args:
        models: Where models come from.
        filler: Encodes prompts; shared with the device thread.
        costs: Where the seconds go that it took, and are predicted from; none if None.
    """

    def __init__(self, models: Models, filler: Filler, costs: CostTable | None = None) -> None:
        self._models = models
        self._filler = filler
        self._costs = costs
        self._began: dict[Hashable, float] = {}
        self._loaded: dict[tuple[str, str], weakref.ref[Model]] = {}
        self._ready: dict[Hashable, weakref.ref[Model]] = {}
        self._flights: dict[Hashable, list[tuple[Plan, Then]]] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="mezzotint-loader")

    def is_ready(self, plan: Plan) -> bool:
        """Tell whether a plan of this model, size and length of prompt was made ready."""
        model = self._known(plan)
        return model is not None and self._key(plan, model) in self._ready

    def start(self, plan: Plan, then: Then) -> None:
        """Make ready what a plan needs, once however many ask for the same.

        Args:
            plan: What will be made.
            then: Called from another thread when it is ready, with what went wrong
                or None; at once where nothing has to be done.
        """
        try:
            is_ready = self.is_ready(plan)
        except Exception as error:  # its prompt cannot be read: nobody else waits for that
            then(error)
            return
        if is_ready:
            then(None)
            return
        shape = _shape(plan)
        with self._lock:
            if shape in self._flights:
                self._flights[shape].append((plan, then))
                return
            self._flights[shape] = []
            self._began[shape] = time.monotonic()
        try:
            work = self._threads.submit(self._load, plan)
        except RuntimeError:  # closed meanwhile
            then(NotReady("the engine is closed"))
            self._land(shape, NotReady("the engine is closed"))
            return
        work.add_done_callback(lambda done: then(_error(done)))
        work.add_done_callback(lambda done: self._land(shape, _error(done)))

    def remaining_s(self, plan: Plan) -> float:
        """Predict for how long a plan will wait here.

        0 where its model is in memory: another size or length of prompt takes little then.
        """
        try:
            if self._costs is None or self._is_loaded(plan):
                return 0.0
            whole = self._costs.load_s(plan, self._models.spec(plan.model).num_bytes)
        except Exception:  # who asks for it is told what is wrong, by other means
            return 0.0
        began = self._began.get(_shape(plan))
        return whole if began is None else max(whole - (time.monotonic() - began), 0.0)

    def _is_loaded(self, plan: Plan) -> bool:
        """Tell whether a plan's model was made ready for any size, and is in memory still."""
        known = self._loaded.get((plan.model, load_key(plan)))
        return known is not None and known() is not None and self._models.is_loaded(plan.model)

    def close(self) -> None:
        """Finish what is being loaded, give up the rest."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _load(self, plan: Plan) -> None:
        """Load, compile, and remember that it is done."""
        began = time.monotonic()
        is_first = not self._is_loaded(plan)
        model = rehearse(plan, self._models, self._filler)
        took_s = time.monotonic() - began
        if self._costs is not None and is_first:
            self._costs.record(load_key(plan), "load", 1, took_s)
        garbage.settle()
        known = weakref.ref(model)
        with self._lock:
            if not any(other() is model for other in self._ready.values()):
                metrics.measure("mezzotint_model_load_seconds", took_s, model=plan.model)
            while len(self._ready) >= _MAX_KNOWN:
                del self._ready[next(iter(self._ready))]
            self._loaded[plan.model, load_key(plan)] = known
            self._ready[_shape(plan)] = known
            self._ready[self._key(plan, model)] = known

    def _land(self, shape: Hashable, error: Exception | None) -> None:
        """Tell everybody who waited; whose prompt is longer than the first one's goes next."""
        with self._lock:
            waiting = self._flights.pop(shape, [])
            self._began.pop(shape, None)
        for plan, then in waiting:
            if error is None:
                self.start(plan, then)
            else:
                then(error)

    def _known(self, plan: Plan) -> Model | None:
        """Return a model that was made ready for this size and is still in memory."""
        known = self._ready.get(_shape(plan))
        model = known() if known is not None else None
        return model if model is not None and self._models.is_loaded(plan.model) else None

    def _key(self, plan: Plan, model: Model) -> Hashable:
        """Name what is compiled: the shape of a call holds the length of the prompts."""
        return (_shape(plan), self._filler.num_chunks(plan, model))


def _shape(plan: Plan) -> Hashable:
    return (plan.model, plan.batch_key, plan.techniques.image is not None)


def _error(done: "Future[None]") -> Exception | None:
    """Return what a load under way ended with."""
    try:
        error = done.exception()
    except CancelledError:
        return NotReady("the engine is closed")
    return error if error is None or isinstance(error, Exception) else NotReady(repr(error))
