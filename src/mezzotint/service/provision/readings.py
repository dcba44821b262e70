"""Readings: how a model will read a request, for whoever shows it before it runs.

How many tokens the texts have and how many a window takes, which words weigh more or
less, and the noise levels of the run. Nothing here needs weights.
"""

from pathlib import Path
from typing import Any

from mezzotint.models.prompt_syntax import BREAK, spans
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.plan import Plan
from mezzotint.request import GenerationRequest
from mezzotint.schedulers import NATIVE, native_twin
from mezzotint.service.provision.prompt_cuts import tokens_of

__all__ = ["read_levels", "read_request", "read_texts"]


def read_request(request: GenerationRequest, plan: Plan, spec: ModelSpec) -> dict[str, Any]:
    """Return how the texts and the scheduler of a request are read.

    Args:
        request: What was asked.
        plan: Of its first picture.
        spec: Of its model.

    Returns:
        ``texts``: for ``prompt`` and ``negative_prompt``, ``tokens``, ``window`` (tokens
        that one window takes; both None where the tokenizer is unknown) and ``spans``,
        pieces of text with their weights; empty where the model takes no text. ``levels``:
        as :func:`read_levels` has them.
    """
    return {"texts": read_texts(request, spec), "levels": read_levels(plan, spec)}


def read_texts(request: GenerationRequest, spec: ModelSpec) -> dict[str, Any]:
    """Return ``texts`` of :func:`read_request`; loads no tensor library."""
    texts: dict[str, Any] = {}
    if spec.takes_prompt:
        folder = Path(spec.path) / "tokenizer" if spec.path else None
        tokens = tokens_of(folder) if folder is not None and folder.is_dir() else None
        for name in ("prompt", "negative_prompt"):
            found = spans(getattr(request, name), request.prompt_dialect)
            pieces = [piece for piece in found if piece != BREAK]
            texts[name] = {
                "tokens": sum(tokens.count(piece.text) for piece in pieces) if tokens else None,
                "window": tokens.window if tokens else None,
                "spans": [[piece.text, round(piece.weight, 4)] for piece in pieces],
            }
    return texts


def read_levels(plan: Plan, spec: ModelSpec) -> list[float]:
    """Return the noise levels of the steps that are run, and the one they end at.

    Empty where there are no steps, or where the scheduler is a class of diffusers that
    has no table here: its levels are known when it runs.
    """
    from mezzotint.sampling.timesteps import inference_schedule

    info = NATIVE.get(native_twin(plan.scheduler, {}) or plan.scheduler)
    if info is None or not plan.steps:
        return []
    total = plan.num_inference_steps
    levels = inference_schedule(info, spec.scheduler_config, total, plan.sigma_schedule).sigmas
    return [float(level) for level in levels[-(len(set(plan.steps)) + 1) :]]
