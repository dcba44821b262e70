"""Engine: the service in this process with a plain face, ``mz.Engine``.

Requests come from any thread or from asyncio; what comes back is events, or a result.
"""

import dataclasses
import queue
import secrets
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mezzotint.errors import DeadlineExceeded, UnknownName
from mezzotint.models.base import Model
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.spec import ModelSpec
from mezzotint.plain import field_names, is_mapping, read
from mezzotint.request import GenerationRequest
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.endings import ENDINGS, result_of
from mezzotint.service.finishing.pictures import with_pixels
from mezzotint.service.local import LocalService
from mezzotint.types import Event, GenerationResult

__all__ = ["Engine", "RequestHandle"]


class RequestHandle:
    """One request on its way through an :class:`Engine`.

    Attributes:
        id: The request's id.
        eta_s: Seconds predicted when it was accepted.
    """

    def __init__(self, service: LocalService, request_id: str) -> None:
        self._service = service
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._ending: Event | None = None
        self._over = threading.Event()
        self.id = request_id
        self.eta_s = 0.0

    def hear(self, event: Event) -> None:
        """Take the next event of the request, from whatever thread."""
        if isinstance(event, ENDINGS):
            self._ending = event
        self._events.put(event)
        if self._ending is not None:
            self._over.set()

    def events(self) -> Iterator[Event]:
        """Yield events as they come; the last one is the ending."""
        while True:
            event = self._events.get()
            yield event
            if isinstance(event, ENDINGS):
                self._events.put(event)  # for whoever iterates again
                return

    def cancel(self) -> bool:
        """Cancel at the next step; False if it has ended."""
        return self._service.cancel_now(self.id)

    @property
    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._over.is_set()

    def result(self, timeout_s: float | None = None) -> GenerationResult:
        """Wait for the end.

        Raises:
            DeadlineExceeded: If it takes longer than ``timeout_s``; it goes on.
            MezzotintError: The one way in which the request ended, if not well.
        """
        if not self._over.wait(timeout_s):
            raise DeadlineExceeded(f"the request was not done within {timeout_s:g} s; it goes on")
        assert self._ending is not None  # noqa: S101 - set before the event
        result = result_of(self._ending)
        assert result is not None  # noqa: S101 - an ending gives a result or raises
        return dataclasses.replace(result, images=tuple(with_pixels(i) for i in result.images))


class Engine:
    """Many requests at once, from any thread or from asyncio.

    Args:
        models: Models to have ready: store names, paths, or loaded models.
        config: What the service is made of, whole; the defaults if None.
        options: What differs from it, by the names that the settings have: a field of
            :class:`~mezzotint.models.config.PlacementConfig` (``device``, ``dtype``,
            ``offload``, ...), a field of :class:`~mezzotint.models.config.ModelsConfig`
            (``home``, ``max_bytes``, ``allow_paths``, ...), or a section of
            :class:`~mezzotint.service.composition.ServiceConfig` (``engine``, ``images``,
            ``handlers``), as the configuration itself or as a dictionary of fields.

    Raises:
        UnknownName: If an option does not exist, or a model.
        InvalidRequest: If a value is out of range.

    Example::

        with mz.Engine(models=["plate"], device="cpu", engine={"max_rows": 8}) as engine:
            result = engine.submit(mz.GenerationRequest(prompt="a pear")).result()
    """

    def __init__(
        self,
        models: Sequence[str | Path | Model] = (),
        *,
        config: ServiceConfig | None = None,
        **options: Any,
    ) -> None:
        loaded = [model for model in models if isinstance(model, Model)]
        names = tuple(str(model) for model in models if not isinstance(model, Model))
        made_of = _with_options(config or ServiceConfig(), options)
        ready = (*made_of.ready, *names)
        self.service = LocalService(dataclasses.replace(made_of, ready=ready), models=loaded)

    def submit(
        self, request: GenerationRequest, *, client: str = "", preview_every: int = 0
    ) -> RequestHandle:
        """Hand in a request.

        Raises:
            MezzotintError: If it is refused.
        """
        return self._submit(request, client=client, preview_every=preview_every)

    def generate(self, request: GenerationRequest) -> GenerationResult:
        """Run one request to its end.

        Raises:
            MezzotintError: The one way in which the request ended, if not well.
        """
        return self.submit(request).result()

    async def stream(
        self, request: GenerationRequest, *, client: str = "", preview_every: int = 0
    ) -> AsyncIterator[Event]:
        """Run one request and yield its events; closing early cancels it."""
        events = self.service.stream(
            request,
            request_id=secrets.token_hex(8),
            client=client,
            preview_every=preview_every,
        )
        async for event in events:
            yield event

    def plan(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Resolve a request without running it: plan, warnings, predicted cost."""
        return self.service.describe_plan(request)

    def spec(self, name: str) -> ModelSpec:
        """Return a model's spec."""
        return self.service.provider.spec(name)

    def close(self) -> None:
        """Finish what is being stepped, refuse the rest, free everything."""
        self.service.shut()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self, request: GenerationRequest, *, client: str, preview_every: int
    ) -> RequestHandle:
        job = RequestHandle(self.service, secrets.token_hex(8))
        job.eta_s = self.service.submit(
            request, job.hear, request_id=job.id, client=client, preview_every=preview_every
        )
        return job


def _with_options(config: ServiceConfig, options: Mapping[str, Any]) -> ServiceConfig:
    """Return a configuration with some settings exchanged, wherever they stand in it."""
    sections = [name for name in field_names(ServiceConfig) if name not in ("models", "ready")]
    of_models = field_names(ModelsConfig)
    of_placement = field_names(PlacementConfig)
    known = (*sections, *of_models, *of_placement)
    for name in options:
        if name not in known:
            raise UnknownName("option", name, known, field=name)

    def own(names: Sequence[str]) -> dict[str, Any]:
        given = {name: value for name, value in options.items() if name in names}
        return {n: str(v) if isinstance(v, Path) else v for n, v in given.items()}

    models = _exchanged(config.models, own(of_models))
    placement = _exchanged(models.placement, own(of_placement))
    models = dataclasses.replace(models, placement=placement)
    return dataclasses.replace(_exchanged(config, own(sections)), models=models)


def _exchanged(config: object, changes: Mapping[str, Any], path: str = "") -> Any:
    """Return a configuration with fields exchanged; a dictionary changes part of a section."""
    values: dict[str, Any] = {name: getattr(config, name) for name in field_names(type(config))}
    for name, value in changes.items():
        part: object = values.get(name)
        is_part = is_mapping(value) and dataclasses.is_dataclass(part)
        values[name] = _exchanged(part, value, name) if is_part else value
    return read(type(config), values, path)
