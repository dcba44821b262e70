"""Local: the engine in this process, behind the service port and behind ``mz.Engine``.

Here the road closes: a request is planned in the caller's thread, taken by the
dispatcher, worked on by the device thread, encoded by the writer, and comes back as
events. Asyncio and plain threads meet it in the same way.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mezzotint
from mezzotint.engine.execution.filling import Filler
from mezzotint.engine.learning import Learner
from mezzotint.engine.progress import CallProgress
from mezzotint.engine.step_engine import StepEngine
from mezzotint.errors import InUse
from mezzotint.models.base import Model
from mezzotint.observe import metrics
from mezzotint.plain import read
from mezzotint.planning.costs import CostTable
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest, Output
from mezzotint.service.base import HandlerAnswer
from mezzotint.service.capabilities import capabilities, open_gates
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.dispatch.device_messages import Learn
from mezzotint.service.dispatch.dispatcher import Dispatcher
from mezzotint.service.endings import follow
from mezzotint.service.finishing import tools
from mezzotint.service.finishing.pictures import Finisher
from mezzotint.service.handlers.handlers import HandlerPool
from mezzotint.service.intake import Intake
from mezzotint.service.preparing import Preparer
from mezzotint.service.provision.fair_threads import FairThreads
from mezzotint.service.provision.learned import open_results, open_shared
from mezzotint.service.provision.loader import Loader
from mezzotint.service.provision.model_provider import (
    ModelProvider,
    cache_folder,
    describe_environment,
    memory_budget,
)
from mezzotint.service.provision.prompt_cuts import cut_notes
from mezzotint.service.provision.readings import read_request
from mezzotint.service.provision.registration import ModelRegistration
from mezzotint.service.provision.shared_models import open_shared_models
from mezzotint.service.provision.warm_up import WarmUp
from mezzotint.service.requests import Judge, no_sink
from mezzotint.types import Event, GenerationResult, ImageOutput

__all__ = ["LocalService", "create_service"]


def create_service(options: Mapping[str, Any], *, interruptible: bool = False) -> "LocalService":
    """Build a service from plain options; the factory that a worker process calls.

    Args:
        options: Fields of :class:`~mezzotint.service.composition.ServiceConfig`.
        interruptible: See :class:`LocalService`; no signal raises in a worker.
    """
    return LocalService(read(ServiceConfig, options), interruptible=interruptible, learns=True)


class LocalService:
    """The service in one process; see :class:`~mezzotint.service.base.Service`.

    Args:
        config: What it is made of.
        models: Models that are in memory already.
        judge: Scores pictures; the gates room's own if None.
        learns: Whether it tries call sizes while nobody waits, as one that serves others may.
        interruptible: Whether a signal may raise in the thread of the event loop, as Ctrl-C
            does in a program's main thread. Where none can, requests are taken in the loop.
    """

    def __init__(
        self,
        config: ServiceConfig | None = None,
        *,
        models: Sequence[Model] = (),
        judge: Judge | None = None,
        learns: bool = False,
        interruptible: bool = True,
    ) -> None:
        self.config = config or ServiceConfig()
        self._is_interruptible = interruptible
        self._sizes: dict[str, int] = {}
        store = self.config.models
        learns = learns and self.config.engine.learn_after_s > 0
        self.provider = ModelProvider(store, extra=models, learns=learns)
        self._registration = ModelRegistration(
            self.provider,
            model_store=self.config.model_store,
            runs=self.config.runs,
            allow_paths=store.allow_paths and self.config.register_paths,
            shared=open_shared_models(store),
        )
        self.environment = describe_environment(self.provider, store.placement)
        self._environment_text = json.dumps(self.environment, sort_keys=True)
        engine, home = self.config.engine, store.home_path
        self.budget_bytes = memory_budget(engine.memory_bytes, self.provider.device)
        self._shared = open_shared(store.shared_url, home / "cache", self._environment_text)
        self._results = open_results(engine, cache_folder(home, "results"), self._shared)
        self.costs = CostTable(self._environment_text, cache_folder(home, "costs") / "costs.json")
        self._progress = CallProgress()
        self._learner = Learner(
            engine.learn_after_s if learns else 0.0, lambda: self._dispatcher.num_held > 0
        )
        self._certificates: Any = None
        self._runner: Any = None
        self._filler = Filler(self.provider, engine.prompt_cache_bytes)
        self._loader = Loader(self.provider, self._filler, self.costs)
        self._home = home
        self._judge = judge or open_gates(store.home_path / "gates")
        self._preparer = Preparer(
            self.provider,
            self._loader,
            self._judge,
            engine=engine,
            images=self.config.images,
            environment=self._environment_text,
            results=self._results,
            begin=self._learner.interrupt,
        )
        self._handlers = HandlerPool(
            self.config.handlers,
            cache_folder(home, "handlers"),
            _unpack_code,
            device=self.provider.device,
        )
        self._is_closed = False
        self._threads = FairThreads()
        self._dispatcher = Dispatcher(
            engine,
            self._build_engine,
            finisher=Finisher(
                environment=self.environment,
                program=f"mezzotint {mezzotint.__version__}",
                limits=self.config.images,
                upscalers=self.provider.use_upscaler,
            ),
            results=self._results,
            costs=self.costs,
            budget_bytes=self.budget_bytes,
            judge=self._judge,
            loader=self._loader,
            learner=self._learner,
        )
        self._intake = Intake(
            self._preparer,
            self._dispatcher,
            self._threads,
            is_loaded=None if self._shared is not None else self.provider.is_loaded,
            at_once=not self._is_interruptible,
        )
        self._warm_up = WarmUp(
            self.costs,
            engine.calibrate_s,
            spec=self.provider.spec,
            draw=lambda request, sink, request_id: self.submit(
                request, sink, request_id=request_id, use_cache=False
            ),
            resolve=lambda r, spec: plan(r, spec, self._preparer.abilities()).plans[0],
            learn=lambda lesson: self._dispatcher.device.send(Learn(lesson)),
            executor=lambda: self._runner,
        )
        try:
            self._warm_up.start(self._registration.name_wanted(self.config.ready))
        except BaseException:  # Ctrl-C too: threads that run are stopped; it goes on
            self.shut()
            raise

    def _build_engine(self, emit: Callable[[Any], None]) -> StepEngine:
        """Make the engine, inside its own thread."""
        from mezzotint.engine.execution.certify import Certificates
        from mezzotint.engine.execution.runner import Runner

        folder = cache_folder(self._home, "certificates")
        self._certificates = Certificates(self._environment_text, folder)
        self._runner = runner = Runner(
            self.config.engine, self.provider, certificates=self._certificates,
            filler=self._filler, costs=self.costs, learner=self._learner,
            budget_bytes=self.budget_bytes,
        )  # fmt: skip
        return StepEngine(
            self.config.engine, runner, emit, costs=self.costs,
            budget_bytes=self.budget_bytes, models_bytes=self.config.models.max_bytes,
            progress=self._progress,
        )  # fmt: skip

    def submit(
        self,
        request: GenerationRequest,
        sink: Callable[[Event], None],
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
    ) -> float:
        """Plan and hand in a request; events go to ``sink`` from another thread.

        Returns:
            Predicted seconds until it is done.

        Raises:
            MezzotintError: If it is refused.
        """
        submission = self._preparer.prepare(
            request, sink, request_id=request_id, client=client, use_cache=use_cache,
            preview_every=preview_every,
        )  # fmt: skip
        return self._dispatcher.accept(submission).result()

    def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
        quiet: bool = False,
    ) -> AsyncIterator[Event]:
        """Run one request and yield its events; closing early cancels it."""
        return self._intake.stream(
            request, request_id=request_id, client=client, use_cache=use_cache,
            preview_every=preview_every, quiet=quiet,
        )  # fmt: skip

    def begin(
        self,
        request: GenerationRequest,
        hear: Callable[[Event | BaseException], None],
        *,
        request_id: str,
        client: str,
        use_cache: bool,
        began: Callable[[], None],
    ) -> Callable[[], None] | None:
        """Take a request at once; see :class:`~mezzotint.service.base.BeginsAtOnce`."""
        return self._intake.begin(
            request, hear, request_id=request_id, client=client, use_cache=use_cache, began=began
        )

    async def generate(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
    ) -> GenerationResult:
        """Run one request to its end.

        Raises:
            MezzotintError: The one way in which the request ended, if not well.
        """
        return await follow(
            self.stream(
                request, request_id=request_id, client=client, use_cache=use_cache, quiet=True
            )
        )

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; False if there is no such running request."""
        return await asyncio.wrap_future(self._dispatcher.cancel(request_id))

    async def plan(self, request: GenerationRequest, *, client: str = "") -> Mapping[str, Any]:
        """Resolve a request without running it: plan, warnings, predicted cost."""
        return await self._threads.run(client, self.describe_plan, request, client)

    def describe_plan(self, request: GenerationRequest, client: str = "") -> dict[str, Any]:
        """Return plan, warnings and predicted cost of a request as plain data."""
        began = time.perf_counter()  # pictures that come along are read and fitted here
        submission = self._preparer.prepare(request, no_sink, request_id="plan", use_cache=False)
        prepared_s = time.perf_counter() - began
        min_rows = self.config.engine.min_rows
        plans = submission.planned.plans
        fitted = zip(plans, submission.footprints, strict=True)
        costs = [self.costs.predict(p, size, min_rows=min_rows) for p, size in fitted]
        shared = self.costs.share(plans, min_rows=min_rows)
        first, spec = plans[0], self.provider.spec(request.model)
        return {
            "plan": first.describe(),
            "seeds": [p.seed for p in plans],
            "warnings": [*submission.planned.warnings, *cut_notes(request, spec)],
            "cost": {
                "seconds": prepared_s + sum(c.seconds for c in costs) - shared,
                "model_calls": sum(c.model_calls for c in costs),
                "bytes": max(c.peak_bytes for c in costs),
                "measured": all(c.measured for c in costs),
            },
            "digest": first.digest,
            "cache": self._dispatcher.why_miss(first, client),
            **read_request(request, first, spec),
        }

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models as plain data."""
        return await asyncio.to_thread(self.provider.describe)

    async def capabilities(self) -> Mapping[str, Any]:
        """List every name a request may use, and what is certified and measured."""
        return await asyncio.to_thread(
            capabilities,
            self.provider,
            self._judge,
            environment=self.environment,
            certificates=self._certificates.table() if self._certificates else [],
            costs=self.costs.table(),
        )

    async def health(self) -> Mapping[str, Any]:
        """Tell how the service is, without waiting."""
        load = self._dispatcher.load
        self._tell_memory()
        return {
            "ready": not self._is_closed and not self._warm_up.waiting,
            "waiting_for": self._warm_up.waiting,
            "failed": self._warm_up.failed,
            "live": True,
            "queue": load.images,
            "backlog_s": load.seconds,
            "device": self.provider.device,
            "call": self._progress.describe(),
            "metrics_text": metrics.render().decode(),
        }

    def _tell_memory(self) -> None:
        """Publish the weights in memory by model, those that went as 0, and the bounds."""
        sizes = self.provider.store.residency.sizes()
        self._sizes = dict.fromkeys(self._sizes, 0) | sizes
        for name, size in self._sizes.items():
            metrics.set_to("mezzotint_memory_bytes", size, kind="weights", model=name)
        bounds = {"weights": self.config.models.max_bytes, "pictures": self.budget_bytes}
        for kind, most in bounds.items():
            metrics.set_to("mezzotint_memory_budget_bytes", most, kind=kind)

    async def register(
        self, source: str, *, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model from a folder, file or archive."""
        return await asyncio.to_thread(self._registration.register, source, name, version)

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove one version of a model from the service; files stay where they are."""
        for digest in await asyncio.to_thread(self._registration.unregister, name, version):
            await self._handlers.forget(digest)

    async def set_default(self, name: str, version: str) -> None:
        """Make the bare ``name`` mean this version."""
        await asyncio.to_thread(self._registration.set_default, name, version)

    async def load(self, name: str) -> Mapping[str, Any]:
        """Bring a model into memory, ready to draw."""
        small = await asyncio.to_thread(self._warm_up.plan, name)
        loaded: Future[None] = Future()
        loaded.set_running_or_notify_cancel()  # who stops waiting does not stop the loading

        def hear(error: Exception | None) -> None:
            loaded.set_exception(error) if error is not None else loaded.set_result(None)

        self._loader.start(small, hear)
        await asyncio.wrap_future(loaded)
        return await asyncio.to_thread(self.provider.store.describe, name)

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Let a model's weights go from memory."""
        return await asyncio.to_thread(self._unload, name)

    def _unload(self, name: str) -> Mapping[str, Any]:
        if self.provider.is_loaded(name):
            count = self._dispatcher.num_using(self.provider.spec(name).digest)
            if count:
                what = "a picture is" if count == 1 else f"{count} pictures are"
                raise InUse(
                    f"model {name} is in use: {what} made with it or waiting for it; unload it "
                    "when that is done, or cancel it"
                )
            self.provider.unload(name)
        elif self.provider.is_code(name):
            self.provider.spec(name)  # which says why there are no weights
        return self.provider.store.describe(name)

    async def inspect(self, data: bytes, *, client: str = "") -> Mapping[str, Any]:
        """Read the recipe inside a picture."""
        return await self._threads.run(client, tools.inspect, data, self.provider.names())

    async def preprocess(self, data: bytes, how: str, *, client: str = "") -> bytes:
        """Prepare a control picture."""
        return await self._threads.run(client, tools.prepare, data, how, self.config.images)

    async def upscale(
        self, data: bytes, *, factor: float, model: str | None = None, output: Output,
        client: str = "", cover: tuple[int, int] | None = None, crop: bool = False,
    ) -> ImageOutput:  # fmt: skip
        """Enlarge a picture; ``model`` None is Lanczos."""
        return await self._threads.run(
            client, tools.upscale, data, factor=factor, model=model, output=output,
            limits=self.config.images, cover=cover, crop=crop,
            upscalers=self.provider.use_upscaler,
        )  # fmt: skip

    async def grid(
        self, images: Sequence[bytes], *, columns: int, padding_px: int = 2, output: Output,
        raw: bool = False,
    ) -> bytes:  # fmt: skip
        """Lay encoded pictures of one size out in a grid."""
        return await asyncio.to_thread(
            tools.grid, images, columns=columns, padding_px=padding_px, output=output, raw=raw
        )

    async def handle(
        self, model: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Give requests to the handler code of an archive, in a process of its own."""
        entry = await asyncio.to_thread(self.provider.store.handler, model)
        return await self._handlers.run(entry.path, entry.digest, rows)

    async def close(self) -> None:
        """Finish what is being stepped, refuse the rest, free everything."""
        await self._handlers.close()
        await asyncio.to_thread(self.shut)

    def shut(self) -> None:
        """Do what :meth:`close` does, from a plain thread."""
        if not self._is_closed:
            self._is_closed = True
            self._threads.close()
            self._dispatcher.close().result()
            self.costs.save()
            if self._shared is not None:
                self._shared.close()

    def cancel_now(self, request_id: str) -> bool:
        """Cancel at the next step, from a plain thread."""
        return self._dispatcher.cancel(request_id).result()


def _unpack_code(archive: Path, target: Path, digest: str) -> Any:
    from mezzotint.models.formats.torchserve_archive import unpack_code

    return unpack_code(archive, target, digest=digest)
