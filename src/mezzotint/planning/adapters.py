"""Adapters: the part of planning that names, checks and resolves them, without tensors."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.models.prompt_syntax import LoraTag, lora_tags, word_pattern
from mezzotint.models.spec import ModelSpec
from mezzotint.plain import exchange
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.plan import Resolved
from mezzotint.preprocessing import spell_preprocess
from mezzotint.request import Embedding, GenerationRequest, Hires, Lora

__all__ = [
    "UNET_ADAPTERS",
    "UNET_FAMILIES",
    "check_adapters",
    "read_tags",
    "resolve_adapters",
]

UNET_FAMILIES = ("sd", "sdxl")
"""Families whose networks take these adapters."""

UNET_ADAPTERS = {
    "controls": "ControlNets",
    "image_prompts": "IP-Adapters",
    "embeddings": "textual inversions",
}


def check_adapters(request: GenerationRequest, spec: ModelSpec) -> None:
    """Refuse adapters that no model of the family could wear.

    Raises:
        InvalidRequest: Names the field.
    """
    for name, words in UNET_ADAPTERS.items():
        if getattr(request, name) and spec.family not in UNET_FAMILIES:
            allowed = " and ".join(UNET_FAMILIES)
            raise InvalidRequest(
                f"{name} cannot be honoured by {spec.name}: {words} are for families {allowed}, "
                f"it is {spec.family}",
                field=name,
                allowed=f"none for {spec.family}",
            )
    if request.controls and request.inpaint.area == "masked":
        raise InvalidRequest(
            'controls need inpaint.area "whole": a control picture shows the whole picture',
            field="inpaint.area",
            value="masked",
            allowed="whole",
        )


def read_tags(request: GenerationRequest, spec: ModelSpec, known: Abilities) -> GenerationRequest:
    """Read what A1111's prompts say about adapters: LoRA tags, and names of embeddings.

    Args:
        request: In any dialect; others are left as they are.
        spec: The model.
        known: Which embeddings there are.

    Returns:
        The request with the tags taken out of its prompts and their meaning in its fields.
    """
    if request.prompt_dialect != "a1111" or not spec.takes_prompt:
        return request
    prompt, tags = lora_tags(request.prompt)
    negative, _ = lora_tags(request.negative_prompt)
    hires = _without_tags(request.hires, tags) if request.hires else None
    loras = (*request.loras, *(Lora(name=tag.name, scale=tag.scale) for tag in tags))
    read = replace(
        request,
        prompt=prompt if tags else request.prompt,
        negative_prompt=negative,
        hires=hires,
        loras=loras,
    )
    if spec.family in UNET_FAMILIES and (names := known.embedding_names()):
        named = {e.name for e in request.embeddings}
        pattern = word_pattern(names)
        found = {m[0].lower() for text in _texts(read) for m in pattern.finditer(text)}
        tokens = (
            Embedding(name=name, token=name)
            for name in sorted(names)
            if name.lower() in found and name not in named
        )
        read = replace(read, embeddings=(*request.embeddings, *tokens))
    return read


def _without_tags(hires: Hires, worn: Collection[LoraTag]) -> Hires:
    """Take the tags out of a second pass's prompts; it wears what the first pass wears.

    Raises:
        InvalidRequest: If a tag names what the first pass does not wear.
    """
    prompt, tags = lora_tags(hires.prompt or "")
    negative, _ = lora_tags(hires.negative_prompt or "")
    for tag in tags:
        if tag not in worn:
            raise InvalidRequest(
                f"hires.prompt names LoRA {tag.name} at {tag.scale:g}, which prompt does not: "
                "both passes wear the same",
                field="hires.prompt",
                value=tag.name,
                allowed="LoRAs of prompt",
            )
    return replace(
        hires,
        prompt=None if hires.prompt is None else prompt,
        negative_prompt=None if hires.negative_prompt is None else negative,
    )


def _texts(request: GenerationRequest) -> list[str]:
    """Return every text of a request that a model reads."""
    texts = [request.prompt, request.negative_prompt]
    texts += [text for r in request.regions for text in (r.prompt, r.negative_prompt)]
    texts += [request.walk.to] if request.walk and request.walk.to else []
    hires = request.hires
    texts += [t for t in (hires.prompt, hires.negative_prompt) if t] if hires else []
    return texts


def resolve_adapters(
    request: GenerationRequest, known: Abilities, warnings: list[str]
) -> dict[str, Any]:
    """Return the techniques that adapters bring; names become content digests.

    Raises:
        UnknownName: If there is no such adapter.
        InvalidRequest: If two embeddings share a token.
    """
    digest = known.adapter_digest
    return {
        "loras": tuple(
            Resolved(part=lora, digest=digest("lora", lora.name)) for lora in request.loras
        ),
        "controls": tuple(
            Resolved(
                part=exchange(
                    control,
                    preprocess=spell_preprocess(control.preprocess, f"controls[{k}].preprocess"),
                ),
                digest=digest("control", control.model),
                pictures=(control.image.digest,),
            )
            for k, control in enumerate(request.controls)
        ),
        "image_prompts": tuple(
            Resolved(
                part=prompt,
                digest=digest("image_prompt", prompt.model),
                pictures=tuple(image.digest for image in prompt.images),
            )
            for prompt in request.image_prompts
        ),
        "embeddings": _resolve_embeddings(request, known, warnings),
    }


def _resolve_embeddings(
    request: GenerationRequest, known: Abilities, warnings: list[str]
) -> tuple[Resolved[Embedding], ...]:
    """Find the token of each embedding, and say which is in no prompt."""
    texts = _texts(request)
    found: list[Resolved[Embedding]] = []
    for k, embedding in enumerate(request.embeddings):
        name = embedding.name
        digest = known.adapter_digest("embedding", name)
        token = embedding.token or known.embedding_token(name)
        if token.lower() in ((other.part.token or "").lower() for other in found):
            raise InvalidRequest(
                f"embeddings[{k}].token must differ from the others, got {token!r} twice",
                field=f"embeddings[{k}].token",
                value=token,
            )
        if not any(word_pattern([token]).search(text) for text in texts):
            warnings.append(f"embedding {name} has no effect: {token} is in no prompt")
        found.append(Resolved(part=exchange(embedding, token=token), digest=digest))
    return tuple(found)
