"""Preparing: a request becomes plans, pictures, bytes and gates, in the caller's thread.

All refusals that need the model's spec or the request's pictures happen here, before the
dispatcher hears of it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mezzotint.engine.cache import ResultCache
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.execution.solving import prepare
from mezzotint.images.animation import check_animation
from mezzotint.images.codec import decode_mask
from mezzotint.images.config import ImageConfig
from mezzotint.images.resize import fit
from mezzotint.images.signing import check_can_sign
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.assets import mask_asset
from mezzotint.planning.plan import Plan
from mezzotint.planning.templates import Templates
from mezzotint.request import GenerationRequest
from mezzotint.service.capabilities import abilities
from mezzotint.service.endings import timed
from mezzotint.service.finishing.inpainting import read_inpainting, reference_size
from mezzotint.service.finishing.pictures import adapter_assets, check_pictures
from mezzotint.service.provision.loader import Loader
from mezzotint.service.provision.model_provider import ModelProvider
from mezzotint.service.requests import Judge, RequestSubmission
from mezzotint.techniques.table import TECHNIQUES
from mezzotint.types import Event

__all__ = ["Preparer"]


class Preparer:
    """Prepares requests for one dispatcher; from any thread.

    Args:
        provider: The models and what they wear.
        loader: Knows which plans can be drawn at once.
        judge: Scores pictures, or None if there are no gates.
        engine: Limits on pictures that are drawn, and who shares what.
        images: Limits on pictures that come along.
        environment: What arithmetic depends on, as text.
        results: Kept pictures, which may have to be brought here first.
        begin: Told that a request has come, before anything is done about it.
    """

    def __init__(
        self,
        provider: ModelProvider,
        loader: Loader,
        judge: Judge | None,
        *,
        engine: EngineConfig,
        images: ImageConfig,
        environment: str,
        results: ResultCache,
        begin: Callable[[], None],
    ) -> None:
        self._results = results
        self._begin = begin
        self._provider = provider
        self._loader = loader
        self._judge = judge
        self._engine = engine
        self._images = images
        self._environment = environment
        self._templates = Templates()

    def abilities(self) -> Abilities:
        """Return what this engine can do."""
        return abilities(
            self._provider,
            self._judge,
            environment=self._environment,
            engine=self._engine,
            images=self._images,
        )

    def prepare(
        self,
        request: GenerationRequest,
        sink: Callable[[Event], None],
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
        began: Callable[[], None] | None = None,
    ) -> RequestSubmission:
        """Resolve a request: spec, pictures, plan, bytes, gates.

        Args:
            request: What was asked.
            sink: Told every event; must not block.
            request_id: Its id.
            client: Who asks.
            use_cache: Whether kept pictures may answer.
            preview_every: Steps between previews, 0 for none.
            began: See :class:`~mezzotint.service.requests.RequestSubmission`.

        Raises:
            MezzotintError: If it is refused.
        """
        came = time.monotonic()
        self._begin()
        spec = self._provider.spec(request.model)
        if request.output.animation is not None:
            check_animation(request.output.animation)
        limits = self._images
        check_can_sign(request.output, limits)
        is_bare = not any(technique.is_asked(request) for technique in TECHNIQUES)
        inpainting, size = None, None
        if not is_bare:
            check_pictures(request, limits)
            inpainting = read_inpainting(request, limits)
            size = inpainting.size if inpainting is not None else reference_size(request, limits)
        owner = "" if self._engine.share_results else client
        planned, footprints = self._templates.plan(
            request, spec, self.abilities(), image_size=size, owner=owner
        )
        if inpainting is not None and inpainting.warnings:
            planned = replace(planned, warnings=(*planned.warnings, *inpainting.warnings))
        first = planned.plans[0]
        if first.steps and first.scheduler:
            prepare(first, spec.scheduler_config)  # what does not go together is refused here
        assets: dict[str, Any] = {}
        if inpainting is not None:
            assets |= inpainting.assets(request, first)
        if not is_bare or first.techniques.adapters:
            assets |= self._assets(request, first)
        policy = None
        if request.gates is not None and request.gates.gates and self._judge is not None:
            policy = self._judge.policy(request.gates)
        if use_cache and policy is None:
            self._results.fetch(planned.plans, owner)
        return RequestSubmission(
            id=request_id,
            request=request,
            planned=planned,
            footprints=footprints,
            sink=timed(sink, first.model, came),
            assets=assets,
            client=client,
            use_cache=use_cache,
            preview_every=preview_every,
            policy=policy,
            is_ready=self._loader.is_ready(first),
            began=began,
        )

    def _assets(self, request: GenerationRequest, plan: Plan) -> dict[str, Any]:
        """Decode the masks of a request, and the pictures that its adapters look at."""
        assets: dict[str, Any] = {}
        for name, parts in (("regions", request.regions), ("ensemble", request.ensemble)):
            for part in parts:
                if part.mask is not None:
                    mask = decode_mask(part.mask.data, field=f"{name}.mask", config=self._images)
                    assets[mask_asset(part.mask.digest)] = fit(mask, plan.size)
        self._provider.check_adapters(plan)
        assets.update(adapter_assets(request, plan, self._images, self._provider.adapters.view))
        return assets
