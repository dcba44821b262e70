"""Adapters: the part of planning that names, checks and resolves them, without tensors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.models.prompt_syntax import word_pattern
from mezzotint.models.spec import ModelSpec
from mezzotint.plain import exchange
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.plan import Resolved
from mezzotint.planning.second_pass import without_tags
from mezzotint.preprocessing import spell_preprocess
from mezzotint.request import Control, Embedding, GenerationRequest, Lora
from mezzotint.techniques.table import ADAPTERS, TECHNIQUES
from mezzotint.techniques.tags import lora_tags
from mezzotint.techniques.walking import names_of, pictures_of, texts_of

__all__ = [
    "GUESSING_FAMILIES",
    "check_adapters",
    "read_tags",
    "resolve_adapters",
]

GUESSING_FAMILIES = ("sd", "sdxl")
"""Families whose ControlNets have a guess mode in diffusers."""

_EMBEDDINGS = next(t for t in TECHNIQUES if t.field == "embeddings")


def check_adapters(request: GenerationRequest, spec: ModelSpec) -> None:
    """Refuse adapters that no model of the family could wear.

    Raises:
        InvalidRequest: Names the field.
    """
    for technique in TECHNIQUES:
        if technique.is_asked(request) and not technique.is_worn_by(spec.family):
            *most, last = technique.families
            raise InvalidRequest(
                f"{technique.field} cannot be honoured by {spec.name}: {technique.worn_as} are "
                f"for families {', '.join(most)} and {last}, it is {spec.family}",
                field=technique.field,
                allowed=f"none for {spec.family}",
            )
    for k, control in enumerate(request.controls):
        if control.guess and spec.family not in GUESSING_FAMILIES:
            raise InvalidRequest(
                f"controls[{k}].guess cannot be honoured by {spec.name}: guess mode is for "
                f"families {' and '.join(GUESSING_FAMILIES)}, it is {spec.family}",
                field=f"controls[{k}].guess",
                value=True,
                allowed="false",
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
    loras = (*request.loras, *(Lora(name=tag.name, scale=tag.scale) for tag in tags))
    read = replace(
        request,
        prompt=prompt if tags else request.prompt,
        negative_prompt=negative,
        **without_tags(request, tags),
        loras=loras,
    )
    if _EMBEDDINGS.is_worn_by(spec.family) and (names := known.embedding_names()):
        named = {e.name for e in request.embeddings}
        pattern = word_pattern(names)
        found = {m[0].lower() for text in texts_of(read) for m in pattern.finditer(text)}
        tokens = (
            Embedding(name=name, token=name)
            for name in sorted(names)
            if name.lower() in found and name not in named
        )
        read = replace(read, embeddings=(*request.embeddings, *tokens))
    return read


def resolve_adapters(
    request: GenerationRequest, known: Abilities, warnings: list[str]
) -> dict[str, Any]:
    """Return the techniques that adapters bring; names become content digests.

    Raises:
        UnknownName: If there is no such adapter.
        InvalidRequest: If two embeddings share a token.
    """
    found: dict[str, Any] = {}
    for field, kind in ADAPTERS.items():
        resolved: list[Resolved[Any]] = []
        for k, part in enumerate(getattr(request, field)):
            name = next(name for _, what, name in names_of(part) if what == kind)
            pictures = tuple(image.digest for _, image in pictures_of(part))
            changes = {}
            if isinstance(part, Control):
                spelled = spell_preprocess(part.preprocess, f"{field}[{k}].preprocess")
                changes = {"preprocess": spelled}
            elif isinstance(part, Embedding):
                changes = {"token": part.token or known.embedding_token(name)}
            content = known.adapter_digest(kind, name)
            resolved.append(
                Resolved(part=exchange(part, **changes), digest=content, pictures=pictures)
            )
        found[field] = tuple(resolved)
    _check_tokens(request, found["embeddings"], warnings)
    return found


def _check_tokens(
    request: GenerationRequest, embeddings: Sequence[Resolved[Embedding]], warnings: list[str]
) -> None:
    """Refuse two embeddings with one token, and say which token is in no prompt."""
    texts = list(texts_of(request)) if embeddings else []
    seen: set[str] = set()
    for k, embedding in enumerate(embeddings):
        token = embedding.part.token or ""
        if token.lower() in seen:
            raise InvalidRequest(
                f"embeddings[{k}].token must differ from the others, got {token!r} twice",
                field=f"embeddings[{k}].token",
                value=token,
            )
        seen.add(token.lower())
        if not any(word_pattern([token]).search(text) for text in texts):
            warnings.append(
                f"embedding {embedding.part.name} has no effect: {token} is in no prompt"
            )
