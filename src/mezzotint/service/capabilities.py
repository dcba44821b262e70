"""Capabilities: every name that a request may use here, and what the planner may promise."""

import contextlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mezzotint.engine.config import EngineConfig
from mezzotint.errors import MezzotintError
from mezzotint.images.config import ImageConfig
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.model_abilities import ALL_TECHNIQUES, describe_abilities
from mezzotint.planning.schedulers import scheduler_names
from mezzotint.preprocessing import PREPROCESSORS
from mezzotint.schedulers import SIGMA_SCHEDULES
from mezzotint.service.finishing import tools
from mezzotint.service.provision.model_provider import ModelProvider
from mezzotint.service.requests import Judge
from mezzotint.techniques.table import ADAPTERS

__all__ = ["abilities", "capabilities", "open_gates"]


def abilities(
    provider: ModelProvider,
    judge: Judge | None,
    *,
    environment: str,
    engine: EngineConfig,
    images: ImageConfig,
) -> Abilities:
    """Return what the planner may promise in this process.

    Args:
        provider: The models and what they wear.
        judge: Who scores pictures, or None.
        environment: What arithmetic depends on, as text.
        engine: Limits on pictures that are drawn.
        images: Limits on pictures that are enlarged.
    """
    gates = {"gates"} if judge is not None else set[str]()
    return Abilities(
        techniques=ALL_TECHNIQUES | gates,
        environment=environment,
        adapter_digest=provider.adapter_digest,
        precision=provider.precision,
        embedding_token=provider.adapters.token,
        embedding_names=lambda: provider.adapters.names("embedding"),
        max_pixels=engine.max_pixels,
        max_request_pixels=engine.max_request_pixels,
        max_output_pixels=images.most_output_pixels,
    )


def capabilities(
    provider: ModelProvider,
    judge: Judge | None,
    *,
    environment: Mapping[str, Any],
    certificates: Sequence[Any],
    costs: Any,
) -> dict[str, Any]:
    """Return every name that a request may use, and what is certified and measured.

    Args:
        provider: The models and what they wear.
        judge: Who scores pictures, or None.
        environment: What arithmetic depends on.
        certificates: Call sizes that were proven exact.
        costs: What was measured.
    """
    return {
        "by_model": _by_model(provider, judge),
        "schedulers": list(scheduler_names()),
        "sigma_schedules": list(SIGMA_SCHEDULES),
        "guidance_schedules": ["constant", "cosine", "interval", "linear", "list", "power"],
        "gates": list(_gate_names(judge)) if judge is not None else [],
        **{field: list(provider.adapters.names(kind)) for field, kind in ADAPTERS.items()},
        "preprocessors": list(PREPROCESSORS),
        "upscalers": ["lanczos", *tools.installed_upscalers()],
        "prompt_dialects": ["plain", "a1111", "comfyui", "compel"],
        "output_formats": ["png", "jpeg", "webp"],
        "animation_formats": ["webp", "gif", "apng", *(["mp4"] if shutil.which("ffmpeg") else [])],
        "environment": dict(environment),
        "certificates": certificates,
        "costs": costs,
    }


def _by_model(provider: ModelProvider, judge: Judge | None) -> dict[str, dict[str, Any]]:
    """Return what each model may be asked for; a broken one is left out."""
    known = ALL_TECHNIQUES | ({"gates"} if judge is not None else set[str]())
    found: dict[str, dict[str, Any]] = {}
    for entry in provider.store.entries():
        with contextlib.suppress(MezzotintError):
            name = entry.full_name  # for one that is known nothing is loaded
            spec = provider.store.known_spec(name) or provider.spec(name)
            found[name] = describe_abilities(spec, known)
    return found


def open_gates(folder: Path) -> Judge:
    """Return the judge of this installation, with its own weights in ``folder``."""
    from mezzotint.gates.judge import GateJudge

    return GateJudge(folder)


def _gate_names(judge: Judge) -> tuple[str, ...]:
    from mezzotint.gates.registry import GATES

    names: Callable[[], tuple[str, ...]] = getattr(judge, "names", GATES.names)
    return names()
