"""Quick: what is known is answered before the engine exists.

The command line is one process for each request. Importing torch, opening the backend and
reading a model take seconds, which a plan or a kept picture needs nothing of once another
process has learnt what they rest on: the model's spec, the environment of the arithmetic,
and the noise levels of a scheduler of diffusers. Each is kept under everything that it depends
on. For a built-in model on a processor none of it has to be learnt: its spec comes with the
program, the environment is foreseen, and levels of our own schedulers are plain numbers. What
is not known, or cannot be planned from words alone, is asked of the service itself.
"""

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import AsyncGenerator, Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mezzotint
from mezzotint.engine.cache import ResultCache
from mezzotint.models.backends import ahead
from mezzotint.models.config import ModelsConfig
from mezzotint.models.spec import ModelSpec
from mezzotint.models.store.known import Facts, key_of, program
from mezzotint.models.store.shipped import computes_on_processor
from mezzotint.models.store.store import ModelStore
from mezzotint.plain import write
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.costs import CostTable
from mezzotint.planning.memory import measure
from mezzotint.planning.plan import Plan, Planned
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest
from mezzotint.sampling.run_tables import plan_table
from mezzotint.schedulers import NATIVE
from mezzotint.service.base import Service
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.provision.environment import DECISIVE, foresee
from mezzotint.service.provision.prompt_cuts import cut_notes
from mezzotint.service.provision.readings import read_levels, read_texts
from mezzotint.techniques.table import TECHNIQUES
from mezzotint.techniques.walking import texts_of
from mezzotint.types import Event, Finished, GenerationResult, ImageFinished, ImageOutput, Queued

__all__ = ["QuickService"]

_TECHNIQUES = frozenset(t.field for t in TECHNIQUES)
_LIBRARIES = ("diffusers", "numpy", "openvino", "pillow", "tokenizers", "torch", "transformers")


class QuickService:
    """A service that is built when it is needed; see :class:`~mezzotint.service.base.Service`.

    Args:
        config: What the service is made of.
        make: Builds it.
        variables: The process's environment, which decides how libraries compute.
    """

    def __init__(
        self,
        config: ServiceConfig,
        make: Callable[[], Service],
        variables: Mapping[str, str],
    ) -> None:
        self._config = config
        self._make = make
        self._made: Service | None = None
        cache = config.models.home_path / "cache"
        self._facts = Facts(cache / "known.json")
        self._store = ModelStore(config.models)
        self._key = _environment_key(config.models, variables)
        self._variables = variables
        self._costs: CostTable | None = None

    def __getattr__(self, name: str) -> Any:
        """Give what only the service itself can do."""
        return getattr(self._service(), name)

    def _service(self) -> Service:
        """Return the service, building it the first time, and learn its environment."""
        if self._made is None:
            self._made = self._make()
            environment = getattr(self._made, "environment", None)
            if self._key is not None and environment and environment.get("device") == "cpu":
                self._facts.put(self._key, environment)
        return self._made

    async def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
        quiet: bool = False,
    ) -> AsyncGenerator[Event]:
        """Run one request and yield its events; closing early cancels it."""
        kept = self._kept(request) if use_cache and not client else None
        if kept is not None:
            for event in _told(request_id, *kept, quiet=quiet):
                yield event
            return
        kind = _kind(request) if self._made is None else ""
        known = self._facts.get(kind) if kind else None
        if known:
            ahead.start(self._config.models.home_path / "cache" / "openvino", known)
        events: Any = self._service().stream(
            request,
            request_id=request_id,
            client=client,
            use_cache=use_cache,
            preview_every=preview_every,
            quiet=quiet,
        )
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    if kind and isinstance(event, Finished):
                        self._learn_networks(kind, known)
                    yield event
        finally:
            ahead.drop()

    def _learn_networks(self, kind: str, known: Any) -> None:
        """Keep what this first request had compiled, for another process."""
        compiled = [list(one) for one in ahead.compiled()]
        if compiled and compiled != known:
            self._facts.put(kind, compiled)

    async def plan(self, request: GenerationRequest, *, client: str = "") -> Mapping[str, Any]:
        """Resolve a request without running it: plan, warnings, predicted cost."""
        quick = self._described(request) if not client else None
        if quick is not None:
            return quick
        answer = await self._service().plan(request, client=client)
        known = self._planned(request)  # the spec and the environment are known by this time
        if known is not None and not _is_native(known[0].plans[0]):
            self._facts.put(self._levels_key(*known), answer["levels"])
        return answer

    async def close(self) -> None:
        """Close the service, if it was needed."""
        if self._made is not None:
            await self._made.close()

    def _planned(self, request: GenerationRequest) -> tuple[Planned, ModelSpec] | None:
        """Plan a request from what is known; None if that is not enough.

        Raises:
            InvalidRequest: If the model cannot honour it.
        """
        if not _is_words(request):
            return None
        environment = self._environment()
        if environment is None:
            return None
        spec = self._store.known_spec(request.model)
        if spec is None:
            return None
        engine, images = self._config.engine, self._config.images
        abilities = Abilities(
            techniques=_TECHNIQUES,
            environment=json.dumps(environment, sort_keys=True),
            max_pixels=engine.max_pixels,
            max_request_pixels=engine.max_request_pixels,
            max_output_pixels=images.most_output_pixels,
        )
        return plan(request, spec, abilities), spec

    def _environment(self) -> Mapping[str, Any] | None:
        """Return what arithmetic depends on: as an earlier process had it, or as foreseen."""
        if self._key is None:
            return None
        return self._facts.get(self._key) or foresee(self._config.models, self._variables)

    def _kept(self, request: GenerationRequest) -> tuple[Planned, list[ImageOutput]] | None:
        """Return the plan of a request and its pictures, if every one of them is kept."""
        if request.seed is None:
            return None
        known = self._planned(request)
        if known is None:
            return None
        engine = self._config.engine
        results = ResultCache(
            memory_bytes=0,
            disk_bytes=engine.cache_disk_bytes,
            folder=self._config.models.home_path / "cache" / "results",
        )
        planned = known[0]
        found: list[ImageOutput] = []
        for one in planned.plans:
            kept = results.get(one)
            if kept is None:
                return None
            found.append(kept)
        return planned, found

    def _described(self, request: GenerationRequest) -> dict[str, Any] | None:
        """Return what :meth:`plan` answers, from what is known alone."""
        known = self._planned(request)
        levels = self._levels(*known) if known is not None else None
        if known is None or levels is None:
            return None
        planned, spec = known
        plans, first = planned.plans, planned.plans[0]
        costs = self._cost_table(first.environment)
        rows = self._config.engine.min_rows
        each = [costs.predict(one, measure(one, spec), min_rows=rows) for one in plans]
        return {
            "plan": first.describe(),
            "seeds": [one.seed for one in plans],
            "warnings": [*planned.warnings, *cut_notes(request, spec)],
            "cost": {
                "seconds": sum(c.seconds for c in each) - costs.share(plans, min_rows=rows),
                "model_calls": sum(c.model_calls for c in each),
                "bytes": max(c.peak_bytes for c in each),
                "measured": all(c.measured for c in each),
            },
            "digest": first.digest,
            "cache": "nothing is kept yet",
            "texts": read_texts(request, spec),
            "levels": levels,
        }

    def _cost_table(self, environment: str) -> CostTable:
        if self._costs is None:
            folder = self._config.models.home_path / "cache" / "costs"
            self._costs = CostTable(environment, folder / "costs.json")
        return self._costs

    def _levels(self, planned: Planned, spec: ModelSpec) -> list[float] | None:
        """Return the noise levels of a plan, None where only a scheduler of diffusers knows them.

        Raises:
            InvalidRequest: If scheduler, sigma schedule and model do not go together.
        """
        first: Plan = planned.plans[0]
        if not _is_native(first):
            return self._facts.get(self._levels_key(planned, spec))
        if first.steps:
            plan_table(
                first.scheduler,
                spec.scheduler_config,
                first.num_inference_steps,
                first.sigma_schedule,
                first=first.skipped_steps,
            )
        return read_levels(first, spec)

    def _levels_key(self, planned: Planned, spec: ModelSpec) -> str:
        """Return under what a scheduler's noise levels are known: that it goes together, too."""
        first: Plan = planned.plans[0]
        asked = (first.scheduler, first.sigma_schedule, first.num_inference_steps, first.steps)
        return key_of("levels", spec.digest, spec.scheduler_config, asked, program())


def _kind(request: GenerationRequest) -> str:
    """Return under what the networks are known that such a request had compiled."""
    heavy = [t.field for t in TECHNIQUES if not t.is_light and t.is_asked(request)]
    size = (request.width, request.height)
    return key_of("ahead", request.model, size, request.reproducibility, heavy, program())


def _is_native(plan: Plan) -> bool:
    """Whether a plan's noise levels are plain numbers of ours."""
    return not plan.steps or plan.scheduler in NATIVE


def _is_words(request: GenerationRequest) -> bool:
    """Whether a request can be planned without reading a file or asking the device."""
    output = request.output
    return not (
        request.gates
        or request.prompt_dialect != "plain"  # may name adapters among its words
        or any("<" in text for text in texts_of(request))
        or request.reproducibility != "exact"
        or output.sign
        or output.animation is not None
        or any(t.is_asked(request) for t in TECHNIQUES if not t.is_light)
    )


def _told(
    request_id: str, planned: Planned, kept: list[ImageOutput], *, quiet: bool
) -> list[Event]:
    """Return the events of a request whose pictures are all kept."""
    images = tuple(
        dataclasses.replace(image, index=index, seed=one.seed)
        for index, (one, image) in enumerate(zip(planned.plans, kept, strict=True))
    )
    result = GenerationResult(
        id=request_id,
        images=images,
        plan=planned.plans[0].describe(),
        cache="hit",
        warnings=planned.warnings,
    )
    shown = [] if quiet else [ImageFinished(id=request_id, image=image) for image in images]
    return [
        Queued(id=request_id, position=0, eta_s=0.0),
        *shown,
        Finished(id=request_id, result=result),
    ]


def _environment_key(config: ModelsConfig, variables: Mapping[str, str]) -> str | None:
    """Return under what the environment of the arithmetic is known; None where a GPU may answer."""
    if not computes_on_processor(config.placement) or platform.system() != "Linux":
        return None
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return None
    processor = [line for line in first.splitlines() if line.startswith(("model", "flags", "Feat"))]
    cores = sorted(os.sched_getaffinity(0))
    return key_of(
        "environment",
        mezzotint.__version__,
        [metadata.version(name) for name in _LIBRARIES],
        processor,
        cores,
        os.cpu_count(),
        sorted((name, value) for name, value in variables.items() if name.startswith(DECISIVE)),
        write(config.placement),
        config.backend,
        program(),
    )
