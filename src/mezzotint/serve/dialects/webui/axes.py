"""Axes of A1111's X/Y/Z plot: which there are, and how their values are read.

A client names an axis by its place in A1111's list, which differs between ``txt2img`` and
``img2img``, or by its label. An axis changes one field of the body, in A1111's own words,
so that a cell is read and refused as any other body is.
"""

import csv
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mezzotint.errors import InvalidField
from mezzotint.plain import is_mapping

__all__ = ["MAX_VALUES", "Axis", "apply", "axis_labels", "find_axis", "read_values"]

MAX_VALUES = 1024
"""Values that one axis may have."""

_INT = r"[+-]?\d{1,20}"
_FLOAT = r"[+-]?\d{1,20}(?:\.\d{0,20})?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis.

    Args:
        label: A1111's name of it.
        field: The field of the body that it changes; "" where it is not offered here.
        kind: What its values are: ``int``, ``float``, ``text``, ``replace`` (search and
            replace in the prompts) or ``order`` (orders of parts of the prompt).
        only: ``txt2img`` or ``img2img`` where the other one has not got it.
        has_choices: Whether clients send its values as a list.
    """

    label: str
    field: str = ""
    kind: str = "text"
    only: str = ""
    has_choices: bool = False


# In the order of A1111 1.10, since clients send places in this list.
_AXES: tuple[Axis, ...] = (
    Axis(label="Nothing", kind="nothing"),
    Axis(label="Seed", field="seed", kind="int"),
    Axis(label="Var. seed", field="subseed", kind="int"),
    Axis(label="Var. strength", field="subseed_strength", kind="float"),
    Axis(label="Steps", field="steps", kind="int"),
    Axis(label="Hires steps", field="hr_second_pass_steps", kind="int", only="txt2img"),
    Axis(label="CFG Scale", field="cfg_scale", kind="float"),
    Axis(label="Image CFG Scale", only="img2img"),
    Axis(label="Prompt S/R", field="prompt", kind="replace"),
    Axis(label="Prompt order", field="prompt", kind="order"),
    Axis(label="Sampler", field="sampler_name", only="txt2img", has_choices=True),
    Axis(label="Hires sampler", only="txt2img", has_choices=True),
    Axis(label="Sampler", field="sampler_name", only="img2img", has_choices=True),
    Axis(label="Checkpoint name", field="override_settings", has_choices=True),
    Axis(label="Negative Guidance minimum sigma"),
    Axis(label="Sigma Churn"),
    Axis(label="Sigma min"),
    Axis(label="Sigma max"),
    Axis(label="Sigma noise"),
    Axis(label="Schedule type", field="scheduler", has_choices=True),
    Axis(label="Schedule min sigma"),
    Axis(label="Schedule max sigma"),
    Axis(label="Schedule rho"),
    Axis(label="Beta schedule alpha"),
    Axis(label="Beta schedule beta"),
    Axis(label="Eta"),
    Axis(label="Clip skip"),
    Axis(label="Denoising", field="denoising_strength", kind="float"),
    Axis(label="Initial noise multiplier"),
    Axis(label="Extra noise"),
    Axis(label="Hires upscaler", field="hr_upscaler", only="txt2img", has_choices=True),
    Axis(label="Cond. Image Mask Weight", only="img2img"),
    Axis(label="VAE", has_choices=True),
    Axis(label="Styles", has_choices=True),
    Axis(label="UniPC Order"),
    Axis(label="Face restore"),
    Axis(label="Token merging ratio"),
    Axis(label="Token merging ratio high-res"),
    Axis(label="Always discard next-to-last sigma", has_choices=True),
    Axis(label="SGM noise multiplier", has_choices=True),
    Axis(label="Refiner checkpoint", has_choices=True),
    Axis(label="Refiner switch at"),
    Axis(label="RNG source", has_choices=True),
    Axis(label="FP8 mode", has_choices=True),
    Axis(label="Size", field="width"),
)


def axis_labels(*, is_img2img: bool) -> tuple[str, ...]:
    """Return A1111's names of the axes, in its order."""
    return tuple(axis.label for axis in _axes(is_img2img=is_img2img))


def _axes(*, is_img2img: bool) -> tuple[Axis, ...]:
    here = "img2img" if is_img2img else "txt2img"
    return tuple(axis for axis in _AXES if axis.only in ("", here))


def find_axis(value: Any, *, is_img2img: bool, where: str) -> Axis:
    """Find an axis by its place or its label.

    Args:
        value: A place in the list, or a label.
        is_img2img: Which list.
        where: The argument, for messages.

    Raises:
        InvalidField: If there is none, or it is one that is not offered here.
    """
    axes = _axes(is_img2img=is_img2img)
    by_label = {axis.label.lower(): axis for axis in axes}
    found = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        found = axes[int(value)] if 0 <= value < len(axes) and value == int(value) else None
    elif isinstance(value, str):
        found = by_label.get(value.strip().lower())
    if found is None or not (found.field or found.kind == "nothing"):
        name = repr(str(value)[:60]) if found is None else found.label
        offered = ", ".join(a.label for a in axes if a.field or a.kind == "nothing")
        raise InvalidField(
            f"X/Y/Z plot: the axis {name} ({where}) is not offered here; offered are {offered}",
            field=where,
            value=str(value)[:60],
            allowed=offered,
        )
    return found


def read_values(axis: Axis, text: Any, chosen: Any, *, is_csv: bool, where: str) -> list[Any]:
    """Read the values of an axis.

    Args:
        axis: The axis.
        text: Values between commas, with ranges (``1-5``, ``1-9 (+2)``, ``1-9 [3]``).
        chosen: Values as a list, of an axis with choices.
        is_csv: Whether axes with choices are written as text too.
        where: The argument, for messages.

    Returns:
        At least one value; a single 0 for the axis "Nothing".

    Raises:
        InvalidField: If there is none, one is no number, or there are too many.
    """
    if axis.kind == "nothing":
        return [0]
    if axis.has_choices and not is_csv and isinstance(chosen, Sequence) and chosen:
        many = [chosen] if isinstance(chosen, str) else cast("Sequence[object]", chosen)
        texts = [str(value) for value in many]
    else:
        texts = [part.strip() for line in csv.reader(str(text or "").splitlines()) for part in line]
    if not texts or texts == [""]:
        raise InvalidField(f"X/Y/Z plot: {axis.label} ({where}) has no values", field=where)
    values: list[Any] = []
    if axis.kind == "order":
        if math.factorial(len(texts)) > MAX_VALUES:
            raise _too_many(axis, where)
        return list(itertools.permutations(texts))
    for part in texts:
        values += [part] if axis.kind in ("text", "replace") else _numbers(axis, part, where)
        if len(values) > MAX_VALUES:
            raise _too_many(axis, where)
    return values


def _too_many(axis: Axis, where: str) -> InvalidField:
    return InvalidField(
        f"X/Y/Z plot: {axis.label} ({where}) has more than {MAX_VALUES} values",
        field=where,
        allowed=f"at most {MAX_VALUES} values",
    )


def _numbers(axis: Axis, text: str, where: str) -> list[Any]:
    """Read one number, or a range with a step ``(+2)`` or a count ``[5]``."""
    number = _INT if axis.kind == "int" else _FLOAT
    to_number = int if axis.kind == "int" else float
    found = re.fullmatch(
        rf"\s*({number})(?:\s*-\s*({number})(?:\s*\(({number})\s*\)|\s*\[(\d{{1,4}})\s*\])?)?\s*",
        text,
    )
    if found is None:
        raise InvalidField(
            f"X/Y/Z plot: {axis.label} ({where}) takes numbers and ranges such as 1-5, 1-9 (+2) "
            f"and 1-9 [3], got {text[:60]!r}",
            field=where,
            value=text[:60],
            allowed="numbers and ranges",
        )
    first, last, step, count = found.groups()
    start = to_number(first)
    if last is None:
        return [start]
    end = to_number(last)
    if count is not None:
        gaps = max(int(count) - 1, 1)
        spread = [start + (end - start) * k / gaps for k in range(int(count))]
        return [to_number(value) for value in spread]
    by = to_number(step) if step is not None else to_number(1)
    if not by or (end - start) / by < 0:
        return []
    num = int((end - start) / by + 1e-9) + 1
    if num > MAX_VALUES:
        raise _too_many(axis, where)
    return [start + k * by for k in range(num)]


def apply(axis: Axis, value: Any, values: Sequence[Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body with one value of an axis in its place.

    Args:
        axis: The axis.
        value: The value.
        values: All values of the axis.
        body: A body of ``txt2img`` or ``img2img``.

    Raises:
        InvalidField: If the prompt has not got what should be replaced, or a size is no size.
    """
    if axis.kind == "nothing":
        return dict(body)
    if axis.kind == "replace":
        return {**body, **_replaced(str(values[0]), str(value), body)}
    if axis.kind == "order":
        return {**body, "prompt": _ordered(str(body.get("prompt") or ""), value)}
    if axis.label == "Size":
        found = re.fullmatch(r"\s*(\d{1,6})\s*[xX×]\s*(\d{1,6})\s*", str(value))
        if found is None:
            raise InvalidField(
                f"X/Y/Z plot: Size takes widths and heights such as 512x768, got {value[:60]!r}",
                field="script_args",
                value=value[:60],
            )
        return {**body, "width": int(found[1]), "height": int(found[2])}
    if axis.label == "Checkpoint name":
        given = body.get("override_settings")
        settings = dict(given) if is_mapping(given) else {}
        return {**body, "override_settings": {**settings, "sd_model_checkpoint": value}}
    return {**body, axis.field: value}


def _replaced(old: str, new: str, body: Mapping[str, Any]) -> dict[str, str]:
    """Replace a text in both prompts."""
    prompts = {name: str(body.get(name) or "") for name in ("prompt", "negative_prompt")}
    if not old or not any(old in text for text in prompts.values()):
        raise InvalidField(
            f"X/Y/Z plot: Prompt S/R did not find {old[:60]!r} in the prompts",
            field="prompt",
            value=old[:60],
        )
    return {name: text.replace(old, new) for name, text in prompts.items()}


def _ordered(prompt: str, parts: Sequence[str]) -> str:
    """Put parts of a prompt, where they stand in it, into another order."""
    places = sorted((prompt.find(part), part) for part in parts)
    if places and places[0][0] < 0:
        raise InvalidField(
            f"X/Y/Z plot: Prompt order did not find {places[0][1][:60]!r} in the prompt",
            field="prompt",
            value=places[0][1][:60],
        )
    pieces: list[str] = []
    position = 0
    for (place, old), new in zip(places, parts, strict=True):
        pieces += [prompt[position:place], new]
        position = max(place + len(old), position)
    return "".join([*pieces, prompt[position:]])
