"""Flags: short texts of the command line into plain request data.

Every technique of a request has a form that fits into one argument::

    --guidance-scale 5  |  linear:8:2  |  cosine:8:2  |  power:8:2:3  |  interval:6:0.2:0.8
                     |  list:8,6,4  |  '{"schedule": "linear", "start": 8, "end": 2}'
    --lora NAME[:SCALE]
    --control NAME:PICTURE[:SCALE[:START:END]], then ;preprocess=canny:100:200;mode=4;guess
    --image-prompt NAME:PICTURE[:SCALE]
    --embedding NAME[:TOKEN]
    --region 'PROMPT@X0,Y0,X1,Y1'  |  'PROMPT@MASK.png', then ;weight=2;feather=0.1;negative=TEXT
    --ensemble MODEL[:WEIGHT]  |  MODEL:W1,W2,...   (one weight per step), then
                     ;box=X0,Y0,X1,Y1 or ;mask=MASK.png for a part of the picture, ;feather=0.1
    --gate NAME[@SHARE_OF_STEPS][:THRESHOLD[:open|closed]]
    --upscale FACTOR[:MODEL]
    --hires SCALE[:UPSCALER[:STRENGTH]]  |  WIDTHxHEIGHT[:UPSCALER[:STRENGTH]]
    --inpaint 'invert,blur=4,fill=noise,area=masked,padding=32,paste'
    --outpaint LEFT,TOP,RIGHT,BOTTOM
    --variation SEED:STRENGTH
    --animate FORMAT[:FPS[:forever|pingpong|once]]
    --set FIELD=JSON

What is wrong is said with the flag's name.
"""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from mezzotint.errors import InvalidRequest
from mezzotint.models.config import PlacementConfig
from mezzotint.plain import allowed, field_docs, field_hints, field_types, is_mapping, json_name
from mezzotint.request import GenerationRequest
from mezzotint.techniques.table import FLAGS, TECHNIQUES
from mezzotint.types import ImageInput

__all__ = [
    "FIELD_FLAGS",
    "FORMS",
    "WrongFlag",
    "field_help",
    "flag_of",
    "merge",
    "owner_of",
    "parse_animation",
    "parse_control",
    "parse_embedding",
    "parse_ensemble",
    "parse_fields",
    "parse_gates",
    "parse_guidance",
    "parse_hires",
    "parse_image_prompt",
    "parse_lora",
    "parse_outpaint",
    "parse_region",
    "parse_set",
    "parse_upscale",
    "parse_variation",
    "read_picture",
    "read_request_file",
    "real_number",
    "whole_number",
]

FIELD_FLAGS: dict[str, str] = {
    "prompt": "PROMPT",
    **{t.field: t.flags[0].name for t in TECHNIQUES},
    **{field: flag.name for field, flag in FLAGS.items()},
    "latent": "--set latent",
    "latent.truncation": "--truncation",
    "latent.class_label": "--class-label",
    "gates": "--gate",
    "gates.max_attempts": "--max-attempts",
    "gates.keep": "--keep",
    "output": "--set output",
    "output.animation": "--animate",
    "output.format": "--output-format",
    "output.quality": "--quality",
    "output.metadata": "--no-metadata",
}
"""Where a flag is not simply the field's name with dashes."""

_CURVES: dict[str, tuple[str, ...]] = {
    "constant": ("start",),
    "linear": ("start", "end"),
    "cosine": ("start", "end"),
    "power": ("start", "end", "power"),
    "interval": ("start", "from", "until"),
}


class WrongFlag(InvalidRequest):
    """A flag's text cannot be understood; ``field`` is the flag itself."""

    def __init__(self, flag: str, message: str, allowed: str = "") -> None:
        super().__init__(message, field=flag, allowed=allowed or None)


def flag_of(field: str) -> str:
    """Return the flag that sets a request field, e.g. ``loras[0].scale`` -> ``--lora``."""
    plain = field.partition("[")[0]
    for name in (plain, plain.partition(".")[0]):
        if name in FIELD_FLAGS:
            return FIELD_FLAGS[name]
    return "--" + plain.partition(".")[0].replace("_", "-")


def field_help(path: str) -> str:
    """Return the help of a flag that sets one request field: its meaning and its bounds.

    Args:
        path: The field, dotted for one of a part.

    Example:
        >>> field_help("output.quality")
        'Of JPEG, WebP and MP4: 1 to 100.'
    """
    cls, name = owner_of(path)
    meaning = field_docs(cls).get(name, "").replace("`", "").rstrip(".")
    meaning = meaning.replace("if None", "if not given")
    bounds = allowed(field_hints(cls)[name])
    return f"{meaning}: {bounds}." if bounds else f"{meaning}."


def owner_of(path: str) -> tuple[Any, str]:
    """Return the part of a request that has a dotted field, and the field's own name."""
    cls: Any = GenerationRequest
    *parents, name = path.split(".")
    for parent in parents:
        options = (field_types(cls)[parent], *typing.get_args(field_types(cls)[parent]))
        cls = next(option for option in options if dataclasses.is_dataclass(option))
    return cls, name


def placement_help(option: str) -> str:
    """Return the help of a placement option: what its declaration says of it."""
    return field_docs(PlacementConfig)[option].replace("``", "").replace('"', "")


def whole_number(text: str) -> int:
    """Read a whole number.

    Raises:
        BadParameter: With what came; typer puts the flag in front.
    """
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"must be a whole number, got {text[:60]!r}") from None


def real_number(text: str) -> float:
    """Read a number.

    Raises:
        BadParameter: With what came; typer puts the flag in front.
    """
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"must be a number, got {text[:60]!r}") from None


def parse_guidance(text: str) -> Any:
    """Read ``--guidance-scale``: a number, a curve, or JSON."""
    flag = "--guidance-scale"
    text = text.strip()
    if text.startswith("{"):
        return _json(text, flag)
    name, _, rest = text.partition(":")
    if name == "list":
        return {"schedule": "list", "values": _numbers(rest, flag)}
    if name in _CURVES:
        parts = rest.split(":") if rest else []
        keys = _CURVES[name]
        if not 1 <= len(parts) <= len(keys):
            shape = ":".join((name, *(k.upper() for k in keys)))
            raise WrongFlag(flag, f"must look like {shape}, got {text!r}", shape)
        values = [_number(part, flag) for part in parts]
        return {"schedule": name, **dict(zip(keys, values, strict=False))}
    curves = ", ".join((*_CURVES, "list"))
    return _number(text, flag, f"a number, or a curve ({curves}) such as linear:8:2")


def parse_animation(text: str) -> dict[str, Any]:
    """Read ``--animate FORMAT[:FPS[:LOOP]]``."""
    name, *rest = text.split(":")
    _need(name and len(rest) <= 2, "--animate", "FORMAT[:FPS[:LOOP]]", text)
    found: dict[str, Any] = {"format": name}
    if rest and rest[0]:
        found["fps"] = _number(rest[0], "--animate")
    return {**found, "loop": rest[1]} if len(rest) == 2 else found


def parse_lora(text: str) -> dict[str, Any]:
    """Read ``--lora NAME[:SCALE]``; the name may be a path and hold colons."""
    name, scale = _split_number(text)
    _need(name, "--lora", "NAME[:SCALE]", text)
    return {"name": name} if scale is None else {"name": name, "scale": scale}


def parse_control(text: str) -> dict[str, Any]:
    """Read ``--control NAME:PICTURE[:SCALE[:START:END]]``, or JSON with a picture path.

    ``;preprocess=TEXT``, ``;mode=NUMBER`` and ``;guess`` may stand behind it.
    """
    flag, shape = "--control", "NAME:PICTURE[:SCALE[:START:END]]"
    if text.lstrip().startswith("{"):
        found = dict(_json(text, flag))
        found["image"] = read_picture(str(found.get("image", "")), flag)
        return found
    text, *options = text.split(";")
    name, picture, numbers = _named_picture(text, flag, shape, most=3)
    found: dict[str, Any] = {"model": name, "image": picture}
    found.update(zip(("scale", "start", "end"), numbers, strict=False))
    for option in options:
        key, _, value = option.strip().partition("=")
        is_known = (key in ("preprocess", "mode") and value) or option.strip() == "guess"
        _need(is_known, flag, ";preprocess=TEXT, ;mode=NUMBER or ;guess", option)
        number = int(value) if key == "mode" and value.isdecimal() else value
        found[key] = True if key == "guess" else number
    return found


def parse_image_prompt(text: str) -> dict[str, Any]:
    """Read ``--image-prompt NAME:PICTURE[:SCALE]``."""
    flag = "--image-prompt"
    name, picture, numbers = _named_picture(text, flag, "NAME:PICTURE[:SCALE]", most=1)
    found: dict[str, Any] = {"model": name, "images": [picture]}
    return {**found, "scale": numbers[0]} if numbers else found


def parse_embedding(text: str) -> dict[str, Any]:
    """Read ``--embedding NAME[:TOKEN]``."""
    name, colon, token = text.partition(":")
    _need(name and (token or not colon), "--embedding", "NAME[:TOKEN]", text)
    return {"name": name, "token": token} if colon else {"name": name}


def _named_picture(
    text: str, flag: str, shape: str, *, most: int
) -> tuple[str, ImageInput, list[float]]:
    """Split ``NAME:PICTURE:NUMBERS`` with at most so many numbers; a path may hold colons."""
    name, _, rest = text.partition(":")
    _need(name and rest, flag, shape, text)
    parts = rest.split(":")
    numbers: list[float] = []
    while len(parts) > 1 and _is_number(parts[-1]) and len(numbers) < most:
        numbers.insert(0, float(parts.pop()))
    return name, read_picture(":".join(parts), flag), numbers


def parse_region(text: str) -> dict[str, Any]:
    """Read ``--region 'PROMPT@BOX or MASK;key=value'``, or JSON."""
    flag, shape = "--region", "PROMPT@X0,Y0,X1,Y1 or PROMPT@MASK.png"
    if text.lstrip().startswith("{"):
        return dict(_json(text, flag))
    head, *options = text.split(";")
    prompt, at, place = head.rpartition("@")
    _need(at and place, flag, shape, text)
    found: dict[str, Any] = {"prompt": prompt, **_place(place, flag)}
    names = {"negative": "negative_prompt", "negative_prompt": "negative_prompt"}
    for option in options:
        key, equals, value = option.strip().partition("=")
        _need(equals, flag, "KEY=VALUE after each semicolon", option)
        name = names.get(key, key)
        found[name] = value if name == "negative_prompt" else _number(value, flag)
    return found


def parse_ensemble(text: str) -> dict[str, Any]:
    """Read ``--ensemble MODEL[:WEIGHT]`` or ``MODEL:W1,W2,...``, then ``;key=value``."""
    flag, shape = "--ensemble", "MODEL[:WEIGHT][;box=X0,Y0,X1,Y1 or ;mask=MASK.png]"
    text, *options = text.split(";")
    _need(text, flag, shape, text)
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.strip().partition("=")
        _need(equals, flag, "KEY=VALUE after each semicolon", option)
        found |= _place(value, flag) if key in ("box", "mask") else {key: _number(value, flag)}
    model, colon, last = text.rpartition(":")
    if colon and all(_is_number(n) for n in last.split(",")):
        _need(model, flag, shape, text)
        weights = _numbers(last, flag)
        many = {"weights": weights} if "," in last else {"weight": weights[0]}
        return {"model": model, **many, **found}
    return {"model": text, **found}


def _place(text: str, flag: str) -> dict[str, Any]:
    """Read a box or the name of a mask."""
    numbers = text.split(",")
    if all(_is_number(n) for n in numbers):
        return {"box": [float(n) for n in numbers]}
    return {"mask": read_picture(text, flag)}


def parse_gates(texts: Sequence[str]) -> dict[str, Any]:
    """Read every ``--gate NAME[:THRESHOLD[:open|closed]]``, in order."""
    gates: dict[str, Any] = {}
    for text in texts:
        name, *rest = text.split(":")
        _need(name and len(rest) <= 2, "--gate", "NAME[:THRESHOLD[:open|closed]]", text)
        settings: dict[str, Any] = {}
        name, at, place = name.partition("@")
        if at:
            settings["preview_at"] = _number(place, "--gate")
        if rest and rest[0]:
            settings["threshold"] = _number(rest[0], "--gate")
        if len(rest) == 2:
            settings["on_error"] = rest[1]
        gates[name] = settings
    return gates


def parse_upscale(text: str) -> dict[str, Any]:
    """Read ``--upscale FACTOR[:MODEL]``."""
    factor, _, model = text.partition(":")
    found: dict[str, Any] = {"factor": _number(factor.removesuffix("x"), "--upscale")}
    return {**found, "model": model} if model else found


def parse_hires(text: str) -> dict[str, Any]:
    """Read ``--hires SCALE[:UPSCALER[:STRENGTH]]``; the size may be ``WIDTHxHEIGHT``."""
    flag, shape = "--hires", "SCALE[:UPSCALER[:STRENGTH]] or WIDTHxHEIGHT[:...]"
    size, *rest = text.split(":")
    _need(size and len(rest) <= 2, flag, shape, text)
    width, cross, height = size.partition("x")
    if cross and height:
        found: dict[str, Any] = {"width": int(_number(width, flag))}
        found["height"] = int(_number(height, flag))
    else:
        found = {"scale": _number(width, flag)}
    if rest and rest[0]:
        found["upscaler"] = rest[0]
    return {**found, "strength": _number(rest[1], flag)} if len(rest) == 2 else found


def parse_fields(text: str, part: Any, flag: str) -> dict[str, Any]:
    """Read ``KEY[=VALUE],...`` for a part whose flag has no form of its own, or JSON.

    A key alone is true; the part's fields say which values are whole numbers.

    Example:
        >>> from mezzotint.request import Inpaint
        >>> parse_fields("blur=4,padding=8,fill=noise,paste", Inpaint, "--inpaint")
        {'blur': 4.0, 'padding': 8, 'fill': 'noise', 'paste': True}
    """
    if text.lstrip().startswith("{"):
        return dict(_json(text, flag))
    kinds = {json_name(name): kind for name, kind in field_types(part).items()}
    found: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = item.strip().partition("=")
        _need(key, flag, "KEY[=VALUE],...", text)
        found[key] = float(value) if _is_number(value) else value if equals else True
        is_whole = int in (kind := kinds.get(key), *typing.get_args(kind))
        if is_whole and isinstance(found[key], float) and found[key].is_integer():
            found[key] = int(found[key])
    return found


def parse_outpaint(text: str) -> dict[str, Any]:
    """Read ``--outpaint LEFT,TOP,RIGHT,BOTTOM`` in pixels."""
    flag, shape = "--outpaint", "LEFT,TOP,RIGHT,BOTTOM in pixels"
    numbers = _numbers(text, flag)
    _need(len(numbers) == 4 and all(n == int(n) for n in numbers), flag, shape, text)
    return dict(zip(("left", "top", "right", "bottom"), map(int, numbers), strict=True))


def parse_variation(text: str) -> dict[str, Any]:
    """Read ``--variation SEED:STRENGTH``; an empty seed is the next one."""
    flag, shape = "--variation", "SEED:STRENGTH"
    seed, colon, strength = text.partition(":")
    _need(colon and (not seed or seed.isdecimal()), flag, shape, text)
    found: dict[str, Any] = {"strength": _number(strength, flag)}
    return {**found, "seed": int(seed)} if seed else found


FORMS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "--control": parse_control,
    "--embedding": parse_embedding,
    "--ensemble": parse_ensemble,
    "--hires": parse_hires,
    "--image-prompt": parse_image_prompt,
    "--lora": parse_lora,
    "--outpaint": parse_outpaint,
    "--region": parse_region,
    "--upscale": parse_upscale,
    "--variation": parse_variation,
}
"""What reads the text of a flag that has a form of its own; another is read field by field."""


def parse_set(text: str) -> tuple[str, Any]:
    """Read ``--set FIELD=JSON``; a text need not be quoted."""
    field, equals, value = text.partition("=")
    _need(equals and field, "--set", "FIELD=JSON", text)
    try:
        return field.strip(), json.loads(value, parse_constant=float)
    except ValueError:
        if value[:1] in '{["':
            raise WrongFlag("--set", f"{field} must be JSON, got {value[:60]!r}", "JSON") from None
        return field.strip(), value


def read_picture(path: str, flag: str) -> ImageInput:
    """Read an encoded picture for a flag."""
    if path[:8].lower().startswith(("http:", "https:", "ftp:")):
        raise WrongFlag(flag, f"must be a file, got the URL {path[:60]!r}; URLs are never fetched")
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise WrongFlag(flag, f"cannot read {path}: {error.strerror}", "a picture file") from None
    if not data:
        raise WrongFlag(flag, f"{path} is empty", "a picture file")
    return ImageInput(data)


def read_request_file(path: Path) -> dict[str, Any]:
    """Read ``--request FILE.json``."""
    flag = "--request"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WrongFlag(flag, f"cannot read {path}: {error.strerror}", "a JSON file") from None
    except UnicodeDecodeError:
        raise WrongFlag(flag, f"{path} is not UTF-8 text", "a JSON file") from None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongFlag(flag, f"{path} is not JSON: {error}", "a JSON file") from None
    if not is_mapping(data):
        kind = type(data).__name__
        raise WrongFlag(flag, f"{path} must hold an object, got {kind}", "an object")
    return dict(data)


def merge(data: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted field in plain data, making the objects between."""
    *parents, last = path.split(".")
    branch = data
    for name in parents:
        step = branch.get(name)
        branch[name] = dict(step) if is_mapping(step) else {}
        branch = branch[name]
    branch[last] = value


def _json(text: str, flag: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongFlag(flag, f"is not JSON: {error}", "JSON") from None
    if not is_mapping(value):
        raise WrongFlag(flag, f"must be a JSON object, got {text[:40]!r}", "a JSON object")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, flag: str, expected: str = "a number") -> float:
    try:
        return float(text)
    except ValueError:
        raise WrongFlag(flag, f"must be {expected}, got {text[:60]!r}", expected) from None


def _numbers(text: str, flag: str) -> list[float]:
    read: Callable[[str], float] = lambda part: _number(part, flag)  # noqa: E731
    return [read(part) for part in text.split(",")]


def _split_number(text: str) -> tuple[str, float | None]:
    """Split ``NAME:NUMBER``; a text without a number at its end is all name."""
    name, colon, last = text.rpartition(":")
    return (name, float(last)) if colon and _is_number(last) else (text, None)


def _need(condition: object, flag: str, shape: str, text: str) -> None:
    if not condition:
        raise WrongFlag(flag, f"must look like {shape}, got {text!r}", shape)
