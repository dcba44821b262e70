"""Prompts: which texts a plan has encoded, and at which steps each of them holds.

A text of A1111's dialect may change on the way (``[before:after:when]``, ``[a|b]``): then
it is several texts, encoded to one shape, and the row of a step carries the one that
holds there. Steps are those that are run, counted from 1; where the text switches is
reckoned on the steps of the whole schedule, as A1111 does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Conditioning, Model, Prompt
from mezzotint.models.prompt_editing import edits
from mezzotint.planning.plan import Plan, Resolved
from mezzotint.request import Region
from mezzotint.sampling.latents import slerp_embeddings

__all__ = [
    "MAX_TEXTS",
    "Staged",
    "Steered",
    "at_step",
    "between",
    "region_negatives",
    "staged",
    "staged_prompts",
    "walks_words",
]

MAX_TEXTS = 64
"""Different texts that one prompt may become on its way."""


@dataclass(frozen=True, slots=True)
class Staged:
    """A conditioning that changes on the way.

    Args:
        stages: Until which step, from 1, each holds; the last holds to the end. All of
            one shape.
    """

    stages: tuple[tuple[int, Conditioning], ...]


Steered = Conditioning | Staged
"""What a prompt became: one conditioning, or one for each part of the run."""


def at_step(steered: Steered, step: int) -> Conditioning:
    """Return the conditioning that holds at a step, from 1."""
    if not isinstance(steered, Staged):
        return steered
    for until, conditioning in steered.stages:
        if step <= until:
            return conditioning
    return steered.stages[-1][1]


def staged(stages: Sequence[tuple[int, Conditioning]]) -> Steered:
    """Join the stages of one prompt; the first tells what is to be said about any."""
    if len(stages) == 1:
        return stages[0][1]
    notes = tuple(dict.fromkeys(note for _, c in stages for note in c.notes))
    until, first = stages[0]
    told = Conditioning(dict(first), rows=first.rows, notes=notes)
    return Staged(((until, told), *stages[1:]))


def staged_prompts(plan: Plan, model: Model) -> list[list[tuple[int, Prompt]]]:
    """Return the prompts of a plan, aligned, each with the steps until which its texts hold.

    In this order: the prompt, the negative prompt where there is one, the regions', the
    regions' own negative ones, and the end of a walk from prompt to prompt.

    Raises:
        InvalidRequest: If a text changes too often.
    """
    found = [_stages(plan, model, prompt) for prompt in _prompts(plan, model)]
    aligned = iter(model.align([prompt for stages in found for _, prompt in stages]))
    return [[(until, next(aligned)) for until, _ in stages] for stages in found]


def _stages(plan: Plan, model: Model, prompt: Prompt) -> list[tuple[int, Prompt]]:
    """Resolve the edits of one text."""
    steps = plan.num_inference_steps
    if plan.prompt_dialect != "a1111" or not plan.rows or not model.spec.stepwise:
        return [(steps, prompt)]
    found = edits(prompt.text, steps, first_pass_steps=plan.techniques.first_steps)
    texts = len({edit.text for edit in found})
    if texts > MAX_TEXTS:
        raise InvalidRequest(
            f"a prompt must become at most {MAX_TEXTS} different texts on its way, got {texts}",
            field="negative_prompt" if prompt.negative else "prompt",
            value=texts,
            allowed=f"at most {MAX_TEXTS}",
        )
    return [(edit.until_step, replace(prompt, text=edit.text)) for edit in found]


def _prompts(plan: Plan, model: Model) -> list[Prompt]:
    """Return the prompts as they were written."""
    t = plan.techniques
    base = Prompt(
        text=plan.prompt,
        size=plan.size,
        class_label=t.class_label,
        distilled_guidance=t.distilled_guidance,
        truncation=t.truncation,
        dialect=plan.prompt_dialect,
        lora_scales=tuple(lora.part.scale for lora in t.worn_loras),
        references=t.image_references if model.reads_references else (),
    )
    if not model.spec.stepwise:
        base = replace(
            base,
            negative_text=plan.negative_prompt,
            num_inference_steps=plan.num_inference_steps,
        )
    prompts = [base]
    guided = any(scale != 1 for scale in plan.guidance)
    if guided or t.regions:
        unguided = replace(
            base, negative=True, class_label=None, distilled_guidance=None, truncation=1.0
        )
        prompts.append(replace(unguided, text=plan.negative_prompt))
        prompts += [replace(base, text=region.part.prompt) for region in t.regions]
        prompts += [replace(unguided, text=text) for text in region_negatives(t.regions)]
    if walks_words(plan):
        prompts.append(replace(base, text=(t.walk and t.walk.walk.to) or ""))
    return prompts


def walks_words(plan: Plan) -> bool:
    """Whether an image stands between two prompts."""
    position = plan.techniques.walk
    walk = position and position.walk
    return walk is not None and walk.to is not None and walk.mode != "seed"


def region_negatives(regions: Sequence[Resolved[Region]]) -> list[str]:
    """Return the regions' own negative prompts, each once, in order."""
    return list(dict.fromkeys(r.part.negative_prompt for r in regions if r.part.negative_prompt))


def between(start: Steered, end: Steered, t: float) -> Steered:
    """Return what lies a part ``t`` of the way between two prompts, token by token."""
    if t in (0.0, 1.0):
        return end if t else start
    places = {
        until
        for steered in (start, end)
        for until, _ in (steered.stages if isinstance(steered, Staged) else ())
    }
    if not places:
        return _between(at_step(start, 1), at_step(end, 1), t)
    return staged([(k, _between(at_step(start, k), at_step(end, k), t)) for k in sorted(places)])


def _between(start: Conditioning, end: Conditioning, t: float) -> Conditioning:
    mixed = {name: _mixed(start[name], end[name], t) for name in start}
    notes = tuple(dict.fromkeys((*start.notes, *end.notes)))
    return Conditioning(mixed, rows=start.rows, notes=notes)


def _mixed(start: torch.Tensor, end: torch.Tensor, t: float) -> torch.Tensor:
    """Mix states, show what either mask shows, and leave other whole numbers as they are."""
    if start.dtype == torch.bool:
        return start | end
    if not start.is_floating_point() or torch.equal(start, end):
        return start
    return slerp_embeddings(start, end, t)
