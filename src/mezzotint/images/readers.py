"""Readers: recipes that other programs left in their pictures.

A1111 (and all who write its text), ComfyUI, InvokeAI and Fooocus. What they say
becomes the nearest request that we can run, with a sentence for everything that
was lost on the way. Pictures come from strangers: every text is bounded and read in
time proportional to its length, or with a deadline (:mod:`mezzotint.images.foreign`).
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from mezzotint.comfyui import read_graph
from mezzotint.errors import InvalidRequest
from mezzotint.images.foreign import Found, read_with_library
from mezzotint.infotext import parse_infotext
from mezzotint.request import GenerationRequest
from mezzotint.textchunks import PARAMETERS, read_texts
from mezzotint.types import MAX_SEED, MAX_STEPS
from mezzotint.vocabulary import match_sampler, match_schedule, match_upscaler

__all__ = ["ForeignRecipe", "read_foreign", "recipe_from_infotext"]

_DIALECTS: dict[str, Literal["a1111", "comfyui", "compel"]] = {
    "AUTOMATIC1111": "a1111",
    "Fooocus": "a1111",
    "NovelAI": "a1111",
    "ComfyUI": "comfyui",
    "InvokeAI": "compel",
}
# No part can match what a part before it gave back: reading stays linear.
_LORA_TAG = re.compile(r"<lora:([^:<>]++)(?::([-+.\d]++))?[^<>]*+>")
_RESOLUTION = re.compile(r"\D*(\d{1,6})\D+(\d{1,6})")
_MAX_LORAS = 100
_MAX_GRAPH = 2_000_000  # characters, as for the library
_OF_GRAPH = (
    "num_inference_steps", "guidance_scale", "seed", "model", "width", "height", "strength",
)  # fmt: skip
_MAX_NOTES = 100
# Keys of A1111's text that mean nothing for the picture, or that we honour elsewhere.
_SILENT = {
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Size-1",
    "Size-2",
    "Model",
    "Model hash",
    "RNG",
    "Version",
    "Denoising strength",
    "Hires upscale",
    "Hires resize",
    "Hires resize-1",
    "Hires resize-2",
    "Hires upscaler",
    "Hires steps",
    "Hires prompt",
    "Hires negative prompt",
    "Lora hashes",
    "Hashes",
    "TI hashes",
    "Init image hash",
    "Eta",
    "Created Date",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRecipe:
    """What a picture says about itself.

    Args:
        generator: Program that wrote it, e.g. ``"AUTOMATIC1111"``.
        prompt: The whole prompt.
        negative_prompt: The whole negative prompt.
        parameters: What was read, by our field names where we have one.
        request: The nearest request that can be run.
        not_honoured: What that request leaves out or changes, one sentence each.
        raw: The texts as they stand in the file.
    """

    generator: str
    prompt: str
    negative_prompt: str
    parameters: Mapping[str, Any]
    request: GenerationRequest
    not_honoured: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)


def read_foreign(data: bytes, *, known_models: Collection[str] = ()) -> ForeignRecipe | None:
    """Read another program's recipe from an encoded picture.

    Args:
        data: PNG, JPEG or WebP.
        known_models: Names in the store, to find the recipe's model among.

    Returns:
        The recipe, or None if there is none that anyone knows.
    """
    texts = read_texts(data)
    parameters = texts.get(PARAMETERS, "")
    is_json = parameters.lstrip().startswith("{")  # Fooocus
    own = None if is_json else recipe_from_infotext(parameters, known_models=known_models)
    if own is not None and "sampler" in own.parameters:
        return own
    found = read_with_library(texts)
    if found is not None:
        return _from_library(found, texts, known_models)
    return _from_graph(texts, known_models) or own


def recipe_from_infotext(text: str, *, known_models: Collection[str] = ()) -> ForeignRecipe | None:
    """Read A1111's text; None if it is none."""
    parsed = parse_infotext(text)
    if parsed is None:
        return None
    fields = dict(parsed.fields)
    found: dict[str, Any] = {
        "sampler": fields.get("Sampler"),
        "schedule": fields.get("Schedule type"),
        "num_inference_steps": fields.get("Steps"),
        "guidance_scale": fields.get("CFG scale"),
        "seed": fields.get("Seed"),
        "model": fields.get("Model"),
        "model_hash": fields.get("Model hash"),
        "strength": fields.get("Denoising strength"),
    }
    if match := re.fullmatch(r"(\d+)x(\d+)", fields.get("Size", "")):
        found["width"], found["height"] = match.groups()
    lost = [
        f"{key} ({value[:60]}) is not known here"
        for key, value in fields.items()
        if key not in _SILENT and value
    ]
    hires = _hires(fields, lost)
    if hires is not None:
        found["hires"], found["strength"] = hires, None  # the strength is of the second pass
    if fields.get("RNG", "GPU") != "CPU":
        lost.append("the noise was drawn on a GPU; ours is drawn on the CPU, the picture differs")
    return _finish(
        "AUTOMATIC1111",
        (parsed.prompt, parsed.negative_prompt),
        found,
        lost,
        raw={PARAMETERS: text},
        known_models=known_models,
    )


def _hires(fields: Mapping[str, str], lost: list[str]) -> dict[str, Any] | None:
    """Read A1111's second pass; None if there was none."""
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", fields.get("Hires resize", ""))
    scale = _number(fields.get("Hires upscale"))
    if not any(key in fields for key in ("Hires upscale", "Hires resize", "Hires upscaler")):
        return None
    hires: dict[str, Any] = {}
    if size is not None:
        sides = {"width": int(size[1]), "height": int(size[2])}
        hires |= {name: side for name, side in sides.items() if side}
    elif scale is not None and 1 <= scale <= 8:
        hires["scale"] = scale
    else:
        lost.append("the size of the second pass is not said; it is twice the first's")
    strength, steps = _number(fields.get("Denoising strength")), _number(fields.get("Hires steps"))
    if strength is not None and 0 <= strength <= 1:
        hires["strength"] = strength
    if steps is not None and 1 <= steps <= MAX_STEPS:
        hires["num_inference_steps"] = int(steps)
    name = fields.get("Hires upscaler", "Latent")
    hires["upscaler"] = match_upscaler(name) or "latent"
    if match_upscaler(name) is None:
        lost.append(f"upscaler {name[:60]} is not offered here; the latents are enlarged")
    for key, ours in (("Hires prompt", "prompt"), ("Hires negative prompt", "negative_prompt")):
        if fields.get(key):
            hires[ours] = fields[key]
    return hires


def _from_library(
    read: Found, texts: Mapping[str, str], known_models: Collection[str]
) -> ForeignRecipe:
    """Translate what the library found."""
    lost: list[str] = []
    if read.num_samplers > 1:
        lost.append(f"the recipe samples {read.num_samplers} times; only the first time is kept")
    parameters = read.parameters
    found: dict[str, Any] = {
        "sampler": read.sampler,
        "schedule": parameters.get("scheduler"),
        "num_inference_steps": parameters.get("steps"),
        "guidance_scale": parameters.get("cfg_scale"),
        "seed": _first(parameters, "seed", "noise_seed"),
        "model": read.model,
        "model_hash": read.model_hash,
        "strength": _first(parameters, "denoise"),
        **_find_size(read.metadata),
    }
    if found["strength"] is not None and _number(found["strength"]) == 1:
        found["strength"] = None  # ComfyUI's way of saying: from noise
    handled = {"scheduler", "steps", "cfg_scale", "seed", "noise_seed", "denoise"}
    lost += [
        f"{key} ({str(value)[:60]}) is not known here"
        for key, value in parameters.items()
        if key not in handled and value not in (None, "", 0, False, [])
    ]
    lost.append("the noise is drawn in another way than there; the picture differs")
    return _finish(
        read.generator,
        (read.prompt, read.negative_prompt),
        found,
        lost,
        raw=texts,
        known_models=known_models,
    )


def _from_graph(texts: Mapping[str, str], known_models: Collection[str]) -> ForeignRecipe | None:
    """Read a graph of ComfyUI's API, whose pictures hold no workflow; None if it is none.

    It is read as the HTTP door reads it (:mod:`mezzotint.comfyui`).
    """
    text = texts.get("prompt", "")
    if not text.startswith("{") or len(text) > _MAX_GRAPH:
        return None
    try:
        graph = read_graph(json.loads(text))
    except (ValueError, RecursionError):  # a GraphError is a ValueError too
        return None
    fields = graph.fields
    inputs = json.loads(text)[graph.sampler]["inputs"]
    found = {
        "sampler": inputs["sampler_name"],
        "schedule": inputs["scheduler"],
        **{name: fields[name] for name in _OF_GRAPH if name in fields},
    }
    lost = ["the noise is drawn in another way than there; the picture differs"]
    lost += [f"{lora['name'][:80]} (LoRA) is not looked for" for lora in fields["loras"]]
    if fields.get("controls"):
        lost.append("the pictures of ControlNets are not in the file")
    prompts = (fields["prompt"], fields.get("negative_prompt", ""))
    return _finish("ComfyUI", prompts, found, lost, raw=texts, known_models=known_models)


def _first(values: Mapping[str, Any], *keys: str) -> Any:
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _find_size(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Find width and height wherever the program keeps them."""
    if "width" in metadata and "height" in metadata:
        return {"width": metadata["width"], "height": metadata["height"]}
    resolution = str(metadata.get("resolution", ""))  # Fooocus: "(896, 1152)"
    if match := _RESOLUTION.match(resolution[:100]):
        return {"width": match[1], "height": match[2]}
    for name, nodes in metadata.items():  # ComfyUI: nodes by class
        if "Latent" in str(name) and isinstance(nodes, list):
            for node in cast("list[Any]", nodes):
                if isinstance(node, Mapping) and "width" in node and "height" in node:
                    return {"width": node["width"], "height": node["height"]}
    return {}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _finish(
    generator: str,
    prompts: tuple[str, str],
    found: dict[str, Any],
    lost: list[str],
    *,
    raw: Mapping[str, Any],
    known_models: Collection[str],
) -> ForeignRecipe:
    """Build the nearest request, field by field, saying what does not fit."""
    prompt, negative = prompts
    wanted: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative}
    dialect = _DIALECTS.get(generator)
    if dialect and re.search(r"[()\[\]+]|--", prompt + negative):
        wanted["prompt_dialect"] = dialect
    loras = _LORA_TAG.findall(prompt)
    if len(loras) > _MAX_LORAS:
        lost.append(f"only the first {_MAX_LORAS} of {len(loras)} LoRA tags are kept")
        loras = loras[:_MAX_LORAS]
    if loras:
        wanted["prompt"] = _LORA_TAG.sub("", prompt).strip()
        wanted["loras"] = [
            {"name": n, "scale": 1.0 if _number(s) is None else _number(s)} for n, s in loras
        ]
    _take_model(found, wanted, lost, known_models)
    _take_sampler(found, wanted, lost)
    _take_numbers(found, wanted, lost)
    if found.get("hires") is not None:
        wanted["hires"] = found["hires"]
    if found.get("strength") is not None:
        lost.append("the picture began from another picture, which is not in the file")
    try:
        request = GenerationRequest.from_dict(wanted)
    except InvalidRequest as error:
        lost.append(f"left out: {error}")
        request = GenerationRequest(prompt=prompt[:32_000])
    return ForeignRecipe(
        generator=generator,
        prompt=prompt,
        negative_prompt=negative,
        parameters={key: value for key, value in found.items() if value is not None},
        request=request,
        not_honoured=_shortened(tuple(dict.fromkeys(lost))),
        raw=dict(raw),
    )


def _shortened(lost: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the first hundred sentences and say how many more there are."""
    rest = len(lost) - _MAX_NOTES
    return lost if rest <= 0 else (*lost[:_MAX_NOTES], f"{rest} more are not known here")


def _take_model(
    found: Mapping[str, Any], wanted: dict[str, Any], lost: list[str], known: Collection[str]
) -> None:
    name = str(found.get("model") or "")
    stem = re.sub(r"\.(safetensors|ckpt|sft|pt)$", "", name.replace("\\", "/").rpartition("/")[2])
    if name in known or stem in known:
        wanted["model"] = name if name in known else stem
    elif name or found.get("model_hash"):
        lost.append(f"model {name or found['model_hash']} is not in the store; plate is used")


def _take_sampler(found: Mapping[str, Any], wanted: dict[str, Any], lost: list[str]) -> None:
    name, schedule = found.get("sampler"), found.get("schedule")
    if name:
        match = match_sampler(str(name))
        if match is None:
            lost.append(f"sampler {name} is not known here")
        else:
            wanted["scheduler"], wanted["sigma_schedule"] = match.scheduler, match.sigma_schedule
            if not match.exact:
                lost.append(f"sampler {name} does not exist here; {match.scheduler} is the nearest")
    if schedule:
        answer = match_schedule(str(schedule))
        if answer is None:
            lost.append(f"sigma schedule {schedule} is not known here")
        else:
            wanted["sigma_schedule"] = answer[0] or wanted.get("sigma_schedule")
            if not answer[1]:
                lost.append(f"sigma schedule {schedule} does not exist here; {answer[0]} is used")


def _take_numbers(found: Mapping[str, Any], wanted: dict[str, Any], lost: list[str]) -> None:
    limits = {
        "num_inference_steps": (1, 1000),
        "guidance_scale": (0, 1000),
        "width": (1, 16_384),
        "height": (1, 16_384),
    }
    for key, (low, high) in limits.items():
        value = found.get(key)
        if value is None:
            continue
        number = _number(value)
        if number is None or not low <= number <= high:
            lost.append(f"{key} {str(value)[:40]} is out of range")
        else:
            wanted[key] = number if key == "guidance_scale" else int(number)
    seed = str(found.get("seed") if found.get("seed") is not None else "")
    if seed.isdecimal() and len(seed) <= 20 and int(seed) <= MAX_SEED:
        wanted["seed"] = int(seed)
    elif seed:
        lost.append(f"seed {seed[:40]} is not a number that can be used")
