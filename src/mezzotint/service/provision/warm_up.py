"""Warm-up: one small picture with each wanted model before anybody waits for it.

So the model is loaded and compiled; then its calls are timed in the device thread, unless
somebody comes: the model is ready then, and what is not known yet is learnt later.
A model that fails stays not ready, with the reason, and holds no other up.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from mezzotint.engine.calibrate import calibrate
from mezzotint.engine.learning import Lesson
from mezzotint.engine.step_engine import Executor
from mezzotint.images.codec import encode
from mezzotint.models.spec import ModelSpec
from mezzotint.observe import log, stages
from mezzotint.observe.interruption import Interrupted
from mezzotint.planning.costs import CostTable
from mezzotint.planning.plan import Plan
from mezzotint.request import GenerationRequest, LatentInput
from mezzotint.types import Event, Failed, Finished, ImageInput

__all__ = ["WarmUp"]

_STEPS = 4
_CALIBRATION_SIZES = (1, 2, 4, 8)
_CALIBRATION_SIZES_WHOLE = (*_CALIBRATION_SIZES, 16)  # of pictures that are drawn in one call
_CALIBRATION_STEPS = 12
_LOADING = "is being loaded"


class WarmUp:
    """Makes models ready and knows which are not.

    Args:
        costs: Where measured times go.
        limit_s: Seconds for timing one model; 0 times nothing.
        spec: Gives the spec of a model by its name.
        draw: Submits a request: ``(request, sink, request_id)``.
        resolve: Plans a request for one picture.
        learn: Has a lesson taken in the device thread.
        executor: Gives what works there; asked in that thread.
    """

    def __init__(
        self,
        costs: CostTable,
        limit_s: float,
        *,
        spec: Callable[[str], ModelSpec],
        draw: Callable[[GenerationRequest, Callable[[Event], None], str], Any],
        resolve: Callable[[GenerationRequest, ModelSpec], Plan],
        learn: Callable[[Lesson], None],
        executor: Callable[[], Executor],
    ) -> None:
        self._costs = costs
        self._limit_s = limit_s
        self._spec = spec
        self._draw = draw
        self._resolve = resolve
        self._learn = learn
        self._executor = executor
        self._waiting: dict[str, str] = {}

    @property
    def waiting(self) -> dict[str, str]:
        """Models that are not ready, and why; of those being loaded, what is done just now."""
        now = stages.current()
        loading = f"{_LOADING} ({now.describe()})" if now is not None else _LOADING
        return {n: loading if why == _LOADING else why for n, why in self._waiting.items()}

    @property
    def failed(self) -> dict[str, str]:
        """Models that will not be ready, and why."""
        return {name: why for name, why in dict(self._waiting).items() if why != _LOADING}

    def start(self, names: Sequence[str]) -> None:
        """Draw with each model; returns before the pictures are there.

        Raises:
            MezzotintError: If a model cannot be had or takes no request; nothing is
                drawn then.
        """
        requests = {name: _request(self._spec(name), steps=_STEPS) for name in names}
        self._waiting = dict.fromkeys(names, _LOADING)
        for name, request in requests.items():
            log.info("model.preparing", model=name)

            def hear(event: Event, name: str = name) -> None:
                if isinstance(event, Finished):
                    log.info("model.drew", model=name)
                    study = partial(self._calibrate, name)
                    self._learn(Lesson(name=f"times of {name}", study=study, at_once=True))
                elif isinstance(event, Failed):
                    self._waiting[name] = str(event.error)
                    log.error("model.warm_up_failed", model=name, error=str(event.error))

            self._draw(request, hear, f"warm-up {secrets.token_hex(4)}")

    def plan(self, name: str) -> Plan:
        """Return the plan of the small picture that a model is made ready with.

        Raises:
            MezzotintError: If there is no such model, or it takes no request.
        """
        spec = self._spec(name)
        return self._resolve(_request(spec, steps=_STEPS), spec)

    def _calibrate(self, name: str) -> None:
        """Time a model's calls, in the device thread; then it is ready."""
        try:
            spec = self._spec(name)
            request = _request(spec, steps=_CALIBRATION_STEPS)
            if self._limit_s:
                with stages.stage("timing", name):
                    calibrate(
                        self._executor(),
                        self._costs,
                        self._resolve(request, spec),
                        sizes=_CALIBRATION_SIZES if spec.has_steps else _CALIBRATION_SIZES_WHOLE,
                        limit_s=self._limit_s,
                    )
                self._costs.save()
        except Interrupted:
            log.info("model.calibration_left", model=name)
        except Exception as error:  # a model that cannot be timed can still be used
            log.error("model.calibration_failed", model=name, error=repr(error))
        self._waiting.pop(name, None)
        log.info("model.ready", model=name)


def _request(spec: ModelSpec, *, steps: int) -> GenerationRequest:
    """Return a small request that every model of a kind can draw, on a white picture if need be."""
    side = spec.min_size_px if spec.fixed_size else min(spec.default_size)
    white = ImageInput(encode(np.full((side, side, 3), 255, np.uint8), "png"))
    return GenerationRequest(
        model=spec.name,
        prompt="warm-up" if spec.takes_prompt else "",
        seed=0,
        num_inference_steps=steps if spec.has_steps else None,
        latent=LatentInput(class_label=0 if spec.family == "dit" else None),
        image=white if spec.needs_image else None,
        mask=white if spec.needs_mask else None,
        image_references=(white,) * spec.min_references,
        priority=100,
    )
