"""OpenAI bodies: what the Images API takes, and the request that it means.

Each kind of body is a dataclass: its names are OpenAI's, its ranges our own. Our
request fields are accepted beside them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from mezzotint.bounds import Count, Pattern, Range, whole_numbers
from mezzotint.errors import UnknownName
from mezzotint.plain import Checked, field_names
from mezzotint.request import GenerationRequest, ModelName, Output
from mezzotint.serve.forms import FILE, form_body
from mezzotint.serve.schema import foreign, object_schema, request_schema
from mezzotint.serve.wire import Body, read_fields
from mezzotint.types import (
    MAX_REFERENCES,
    MAX_SIDE_PX,
    ImageInput,
    OutputFormat,
    PromptText,
)

__all__ = ["BODIES", "Answer", "Kind", "to_request"]

Kind = Literal["generation", "edit", "variation"]
_SIDE = whole_numbers(MAX_SIDE_PX, low=1)
_SIZE = re.compile(f"^(?:auto|({_SIDE})x({_SIDE}))$")
_INSTEAD = ("num_images",)  # of our own fields, those that have another name here


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common(Checked):
    """What every kind of body may hold.

    Args:
        model: Name of the model.
        n: Pictures.
        size: ``auto``, the model's own, or ``WIDTHxHEIGHT`` in pixels.
        output: Our own field of this name.
        output_format: Encoding of the pictures.
        output_compression: Quality of JPEG and WebP.
        response_format: How pictures are answered.
        stream: Answer with events.
        partial_images: Previews of each picture in a stream.
        quality: Has no effect; answered in the words of OpenAI's answers, ``high`` for
            ``auto`` and ``hd``, ``medium`` for ``standard``.
        background: There is none but ``opaque``, which is the answer.
        moderation: Means nothing here.
        style: Means nothing here.
        user: Means nothing here.
        safety_identifier: Means nothing here.
        input_fidelity: Means nothing here.
    """

    model: ModelName | None = None
    n: Annotated[int, Range(1, 10, limit="images")] = 1
    size: Annotated[str, Pattern(_SIZE.pattern, 'auto, or WIDTHxHEIGHT such as "512x512"')] = "auto"
    output: Output | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Range(0, 100)] | None = None
    response_format: Literal["b64_json", "url"] = "b64_json"
    stream: bool = False
    partial_images: Annotated[int, Range(0, 3)] = 0
    quality: Literal["auto", "low", "medium", "high", "max", "xhigh", "standard", "hd"] = "auto"
    background: Literal["auto", "opaque"] = "opaque"
    moderation: Literal["auto", "low"] | None = None
    style: Literal["natural", "vivid"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    input_fidelity: Literal["high", "low"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Generation(_Common):
    """Pictures from a prompt.

    Args:
        prompt: What to draw.
    """

    prompt: PromptText


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edit(_Common):
    """A picture changed by a prompt.

    Args:
        prompt: What to draw.
        image: Picture to begin from; to edit, for a model that edits pictures.
        mask: Picture that is white where ``image`` is repainted.
        image_references: Further pictures to edit; in a form also further parts named ``image``.
    """

    prompt: PromptText
    image: ImageInput
    mask: ImageInput | None = None
    image_references: Annotated[tuple[ImageInput, ...], Count(0, MAX_REFERENCES - 1)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variation(_Common):
    """Variations of a picture.

    Args:
        prompt: What to draw.
        image: Picture to begin from.
        mask: Picture that is white where ``image`` is repainted.
    """

    prompt: PromptText = ""
    image: ImageInput
    mask: ImageInput | None = None


_SEVERAL = {"type": "array", "items": FILE, "minItems": 1, "maxItems": MAX_REFERENCES}
"""The pictures of an edit's form: further ones are further references."""
_ANSWERED = {"auto": "high", "hd": "high", "standard": "medium"}
"""What the answer says of a quality that OpenAI's answers have no word for."""

_KINDS: Mapping[str, Any] = {"generation": _Generation, "edit": _Edit, "variation": _Variation}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How the client wants to be answered."""

    kind: str = "generation"
    as_url: bool = False
    stream: bool = False
    partial_images: int = 0
    quality: str = "high"
    prompt: str = ""


def to_request(
    body: Mapping[str, Any], kind: Kind = "generation"
) -> tuple[GenerationRequest, Answer]:
    """Translate a body.

    Raises:
        InvalidRequest: If a field is wrong; named in OpenAI's words.
    """
    fields, rest = read_fields(_KINDS[kind], body)
    native: dict[str, Any] = {
        "prompt": fields.prompt,
        "num_images": fields.n,
        "output": _output(fields),
    }
    if kind != "generation":
        native |= {"image": fields.image, "mask": fields.mask}
    if kind == "edit" and fields.image_references:
        native |= {"image": None, "image_references": (fields.image, *fields.image_references)}
    if fields.model is not None:
        native["model"] = fields.model
    size = _SIZE.fullmatch(fields.size)
    if size is not None and size[1]:
        native |= {"width": int(size[1]), "height": int(size[2])}
    native |= _extras(rest, native, kind)
    answer = Answer(
        kind=kind,
        as_url=fields.response_format == "url",
        stream=fields.stream,
        partial_images=fields.partial_images,
        quality=_answered(fields.quality),
        prompt=fields.prompt,
    )
    return GenerationRequest.from_dict(native), answer


def _answered(quality: str | None) -> str:
    """Return what the answer says of a quality; null is as good as none."""
    asked = quality or "auto"
    return _ANSWERED.get(asked, asked)


def _output(fields: _Common) -> Output:
    output = fields.output or Output()
    if fields.output_format is not None:
        output = replace(output, format=fields.output_format)
    if fields.output_compression is not None:
        output = replace(output, quality=max(1, fields.output_compression))
    return output


def _extras(rest: Mapping[str, Any], native: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Take our own fields as they are; refuse what nobody knows."""
    known = field_names(GenerationRequest)
    for name in rest:
        if name not in known or name in native:
            raise UnknownName("field", name, {*known, *field_names(_KINDS[kind])}, field=name)
    return {name: value for name, value in rest.items() if value is not None}


def _body(kind: Kind) -> Body:
    def schema(limits: Mapping[str, int]) -> dict[str, Any]:
        made = foreign(object_schema(_KINDS[kind], limits))
        ours = foreign(request_schema(limits))["properties"]
        taken = {*made["properties"], *_INSTEAD}
        made["properties"] |= {k: v for k, v in ours.items() if k not in taken}
        return made

    body = Body(f"OpenAI{kind.capitalize()}", schema)
    if kind == "generation":
        return body
    return form_body(body, image=_SEVERAL) if kind == "edit" else form_body(body)


BODIES: Mapping[str, Body] = {kind: _body(kind) for kind in ("generation", "edit", "variation")}
