"""A1111's scripts: one body with ``script_name`` becomes the bodies that are drawn.

``SD upscale``, ``Prompt matrix``, ``X/Y/Z plot`` and ``Loopback`` are offered, with the
arguments in the order of A1111's own forms. Each is a matter of other bodies in A1111's own
words: what a script makes is read, limited and refused as if a client had sent it.
"""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mezzotint.errors import InvalidField
from mezzotint.serve.dialects.webui.axes import Axis, apply, axis_labels, find_axis, read_values
from mezzotint.serve.errors import TooLarge
from mezzotint.types import MAX_IMAGES

__all__ = [
    "SCRIPTS",
    "Enlarge",
    "Script",
    "Sheet",
    "read_script",
    "script_infos",
    "tile_bodies",
    "whole_number",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A grid of pictures that a script answers before them.

    Args:
        pictures: Which pictures, row by row, by their place among all that are drawn.
        columns: Pictures in a row.
        margin: Pixels around each.
    """

    pictures: tuple[int, ...]
    columns: int
    margin: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlarge:
    """How a start picture is enlarged before it is drawn over in tiles.

    Args:
        factor: How much.
        upscaler: Place or name of the upscaler.
        overlap: Least overlap of the tiles, px.
    """

    factor: float
    upscaler: int | str
    overlap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What a script makes of a body.

    Args:
        name: A1111's name of it.
        chains: Bodies. In a chain each begins from the picture that the one before drew.
        sheets: Grids, answered first.
        sends: Which pictures are answered beside the grids: ``all``, ``last`` of each
            chain, or ``none``.
        enlarge: What the start picture goes through first, and how far the tiles overlap
            that the enlarged one is drawn in; None leaves it.
        warnings: What differs from A1111, one sentence each.
    """

    name: str
    chains: tuple[tuple[Mapping[str, Any], ...], ...]
    sheets: tuple[Sheet, ...] = ()
    sends: str = "all"
    enlarge: "Enlarge | None" = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Argument:
    """An argument of a script: label, default, and what is allowed."""

    label: str
    default: Any
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


_UNITS = (
    _Argument("X type", 0),
    _Argument("X values", ""),
    _Argument("X values", ()),
    _Argument("Y type", 0),
    _Argument("Y values", ""),
    _Argument("Y values", ()),
    _Argument("Z type", 0),
    _Argument("Z values", ""),
    _Argument("Z values", ()),
)
_ARGUMENTS: Mapping[str, tuple[_Argument, ...]] = {
    "SD upscale": (
        _Argument("", ""),
        _Argument("Tile overlap", 64, 0, 256),
        _Argument("Upscaler", 0),
        _Argument("Scale Factor", 2.0, 1, 4),
    ),
    "Prompt matrix": (
        _Argument("Put variable parts at start of prompt", False),
        _Argument("Use different seed for each picture", False),
        _Argument("Select prompt", "positive", choices=("positive", "negative")),
        _Argument("Select joining char", "comma", choices=("comma", "space")),
        _Argument("Grid margins (px)", 0, 0, 500),
    ),
    "X/Y/Z plot": (
        *_UNITS,
        _Argument("Draw legend", True),
        _Argument("Include Sub Images", False),
        _Argument("Include Sub Grids", False),
        _Argument("Keep -1 for seeds", False),
        _Argument("Vary seeds for X", False),
        _Argument("Vary seeds for Y", False),
        _Argument("Vary seeds for Z", False),
        _Argument("Grid margins (px)", 0, 0, 500),
        _Argument("Use text inputs instead of dropdowns", False),
    ),
    "Loopback": (
        _Argument("Loops", 4, 1, 32),
        _Argument("Final denoising strength", 0.5, 0, 1),
        _Argument("Denoising strength curve", "Linear", choices=("Aggressive", "Linear", "Lazy")),
        _Argument("Append interrogated prompt at each iteration", "None", choices=("None",)),
    ),
}
_IMG2IMG_ONLY = ("SD upscale", "Loopback")

SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "txt2img": tuple(n for n in _ARGUMENTS if n not in _IMG2IMG_ONLY),
    "img2img": tuple(_ARGUMENTS),
}
"""The scripts of each endpoint, by A1111's names."""


def script_infos(*, is_img2img: bool) -> list[dict[str, Any]]:
    """Describe the scripts of an endpoint as A1111's ``script-info`` does."""
    axes = list(axis_labels(is_img2img=is_img2img))

    def describe(argument: _Argument) -> dict[str, Any]:
        choices = axes if argument.label.endswith(" type") else list(argument.choices) or None
        return {
            "label": argument.label,
            "value": argument.default,
            "minimum": argument.low,
            "maximum": argument.high,
            "step": None,
            "choices": choices,
        }

    return [
        {
            "name": name.lower(),
            "is_alwayson": False,
            "is_img2img": is_img2img,
            "args": [describe(argument) for argument in _ARGUMENTS[name]],
        }
        for name in SCRIPTS["img2img" if is_img2img else "txt2img"]
    ]


def read_script(body: Mapping[str, Any], *, is_img2img: bool) -> Script | None:
    """Read the script that a body names.

    Args:
        body: What came; ``script_name`` in any case, ``script_args`` may end early.
        is_img2img: Which endpoint it came to.

    Returns:
        What is drawn, or None if no script is named.

    Raises:
        InvalidField: If there is no such script here, or an argument is wrong.
        TooLarge: If it would draw more pictures than any request may have.
    """
    named = body.get("script_name")
    if named is None or named in ("", "None"):
        return None
    offered = SCRIPTS["img2img" if is_img2img else "txt2img"]
    name = next((n for n in offered if n.lower() == str(named).strip().lower()), None)
    if name is None:
        raise InvalidField(
            f"script_name {str(named)[:80]!r} is not offered here; offered are "
            f"{', '.join(offered)}",
            field="script_name",
            value=str(named)[:80],
            allowed=", ".join(offered),
        )
    asked = body.get("script_args")
    given: object = [] if asked is None else asked
    if not isinstance(given, list | tuple):
        raise InvalidField("script_args must be a list", field="script_args", allowed="a list")
    bare = {k: v for k, v in body.items() if k not in ("script_name", "script_args")}
    arguments = _arguments(name, list(cast("Sequence[Any]", given)))
    if name == "X/Y/Z plot":
        return _plot(bare, arguments, is_img2img=is_img2img)
    readers = {"SD upscale": _upscale, "Prompt matrix": _matrix, "Loopback": _loopback}
    return readers[name](bare, arguments)


def _arguments(name: str, given: Sequence[Any]) -> list[Any]:
    """Check arguments against their kinds and ranges; what is left out has its default."""
    wanted = _ARGUMENTS[name]
    if name == "X/Y/Z plot" and type(given[13] if len(given) > 13 else None) is int:
        given = [*given[:13], False, False, False, *given[13:15]]  # before seeds could vary
    values: list[Any] = []
    for k, argument in enumerate(wanted):
        value = given[k] if k < len(given) and given[k] is not None else argument.default
        where = f"script_args[{k}]"
        if argument.choices and value not in argument.choices:
            raise _wrong(name, argument, where, value, " or ".join(argument.choices))
        if isinstance(argument.default, bool):
            value = str(value).lower() in ("true", "1")
        elif argument.low is not None and argument.high is not None:
            value = _number(name, argument, where, value)
        values.append(value)
    return values


def _number(name: str, argument: _Argument, where: str, value: Any) -> float | int:
    low, high = argument.low or 0, argument.high or 0
    allowed = f"a number {low:g} to {high:g}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _wrong(name, argument, where, value, allowed) from None
    is_whole = isinstance(argument.default, int)
    if not low <= number <= high or (is_whole and number != int(number)):
        raise _wrong(name, argument, where, value, f"{allowed}, whole" if is_whole else allowed)
    return int(number) if is_whole else number


def _wrong(name: str, argument: _Argument, where: str, value: Any, allowed: str) -> InvalidField:
    return InvalidField(
        f"{name}: {argument.label} ({where}) must be {allowed}, got {str(value)[:60]!r}",
        field=where,
        value=str(value)[:60],
        allowed=allowed,
    )


def _fixed_seed(body: Mapping[str, Any], name: str = "seed") -> Any:
    """Return the seed of a body; a drawn one in place of -1."""
    seed = body.get(name)
    return secrets.randbits(32) if seed in (None, "", -1, "-1") else seed


def _ahead(seed: Any, number: int) -> Any:
    """Return a seed some numbers later; what is no number is refused when it is read."""
    try:
        return int(seed) + number
    except (TypeError, ValueError):
        return seed


def _upscale(body: Mapping[str, Any], arguments: list[Any]) -> Script:
    """SD upscale: enlarge the start picture, then draw over it tile by tile."""
    _, overlap, upscaler, factor = arguments
    upscaler = upscaler if isinstance(upscaler, int | str) else 0
    return Script(
        name="SD upscale",
        chains=((body,),),
        sends="none",
        enlarge=Enlarge(factor=factor, upscaler=upscaler, overlap=overlap),
    )


def tile_bodies(
    body: Mapping[str, Any], tiles: Sequence[str], width: int, height: int
) -> tuple[tuple[Mapping[str, Any], ...], ...]:
    """Return a body for each tile of each round of SD upscale; seeds count on as there.

    Args:
        body: What came.
        tiles: The tiles as base64, row by row.
        width: Of a tile, px.
        height: Of a tile, px.

    Raises:
        TooLarge: If there are more than any request may have.
    """
    rounds = whole_number(body.get("n_iter"), 1)
    _limit("SD upscale", len(tiles) * rounds)
    seed = _fixed_seed(body)
    sides = {"width": width, "height": height, "n_iter": 1, "batch_size": 1}
    return tuple(
        ({**body, **sides, "init_images": [tile], "seed": _ahead(seed, number + k)},)
        for number in range(rounds)
        for k, tile in enumerate(tiles)
    )


def whole_number(value: Any, default: int) -> int:
    """Return a positive whole number; what is none is refused when the body is read."""
    try:
        return max(1, int(value))
    except (TypeError, ValueError):
        return default


def _matrix(body: Mapping[str, Any], arguments: list[Any]) -> Script:
    """Prompt matrix: the parts between bars, in every combination."""
    at_start, different_seeds, which, joined_by, margin = arguments
    field = "prompt" if which == "positive" else "negative_prompt"
    first, *others = str(body.get(field) or "").split("|")
    num = 2 ** min(len(others), 30)
    _limit("Prompt matrix", num)
    delimiter = ", " if joined_by == "comma" else " "
    seed = _fixed_seed(body)
    chains: list[tuple[Mapping[str, Any], ...]] = []
    for number in range(num):
        chosen = [part.strip().strip(",") for k, part in enumerate(others) if number >> k & 1]
        text = delimiter.join([*chosen, first] if at_start else [first, *chosen])
        own = _ahead(seed, number if different_seeds else 0)
        chains.append(({**body, field: text, "seed": own, "n_iter": 1, "batch_size": 1},))
    rows = 1 << (len(others) // 2)
    sheet = Sheet(pictures=tuple(range(num)), columns=num // rows, margin=margin)
    return Script(name="Prompt matrix", chains=tuple(chains), sheets=(sheet,))


def _plot(body: Mapping[str, Any], arguments: list[Any], *, is_img2img: bool) -> Script:
    """X/Y/Z plot: a picture for every combination of the values of three axes."""
    legend, lone, sub_grids, keeps_seeds, *varies, margin, is_csv = arguments[9:]
    axes: list[Axis] = []
    values: list[list[Any]] = []
    for k, letter in enumerate("XYZ"):
        kind, text, chosen = arguments[3 * k : 3 * k + 3]
        where = f"script_args[{3 * k}]"
        axis = find_axis(kind, is_img2img=is_img2img, where=where)
        where = f"script_args[{3 * k + 1}]"
        found = read_values(axis, text, chosen, is_csv=is_csv, where=where)
        if not found:
            raise InvalidField(f"X/Y/Z plot: {letter} has no values", field=where)
        if axis.field in ("seed", "subseed") and not keeps_seeds:
            found = [secrets.randbits(32) if value == -1 else value for value in found]
        axes.append(axis)
        values.append(found)
    xs, ys, zs = values
    _limit("X/Y/Z plot", len(xs) * len(ys) * len(zs))
    base = {**body, "n_iter": 1, "batch_size": 1}
    if not keeps_seeds:
        base |= {"seed": _fixed_seed(body)}
        if body.get("subseed_strength") or any(a.field == "subseed_strength" for a in axes):
            base["subseed"] = _fixed_seed(body, "subseed")
    x_stride, y_stride = (len(xs) if varies[0] else 1), (len(ys) if varies[1] else 1)
    strides = (1, x_stride, x_stride * y_stride)
    chains: list[tuple[Mapping[str, Any], ...]] = []
    for places in (
        (x, y, z) for z in range(len(zs)) for y in range(len(ys)) for x in range(len(xs))
    ):
        cell: Mapping[str, Any] = base
        for axis, place, of_axis in zip(axes, places, values, strict=True):
            cell = apply(axis, of_axis[place], of_axis, cell)
        ahead = sum(p * s for p, s, v in zip(places, strides, varies, strict=True) if v)
        seed = cell.get("seed", -1)
        chains.append(({**cell, "seed": seed if seed in (-1, "-1") else _ahead(seed, ahead)},))
    area, across = len(xs) * len(ys), len(xs) * len(zs)
    subs = [
        Sheet(pictures=tuple(range(k * area, (k + 1) * area)), columns=len(xs), margin=margin)
        for k in range(len(zs))
    ]
    # The grids of all z side by side: a row holds the same row of each.
    side_by_side = tuple(
        (z * len(ys) + y) * len(xs) + x
        for y in range(len(ys)) for z in range(len(zs)) for x in range(len(xs))
    )  # fmt: skip
    whole = Sheet(pictures=side_by_side, columns=across, margin=margin)
    return Script(
        name="X/Y/Z plot",
        chains=tuple(chains),
        sheets=(whole, *(subs if sub_grids else ())),
        sends="all" if lone else "none",
        warnings=("X/Y/Z plot draws no legend here",) if legend else (),
    )


def _loopback(body: Mapping[str, Any], arguments: list[Any]) -> Script:
    """Loopback: each picture begins from the one before."""
    loops, last_strength, curve, _ = arguments
    try:
        rounds, first_strength = (
            int(body.get("n_iter") or 1),
            float(0.75 if body.get("denoising_strength") is None else body["denoising_strength"]),
        )
    except (TypeError, ValueError):
        rounds, first_strength = 1, 0.75  # the body itself is refused when it is read
    _limit("Loopback", loops * max(rounds, 1))
    seed = _fixed_seed(body)
    chains: list[tuple[Mapping[str, Any], ...]] = []
    for number in range(max(rounds, 1)):
        chain: list[Mapping[str, Any]] = []
        for k in range(loops):
            own: dict[str, Any] = {"seed": _ahead(seed, number * loops + k), "batch_size": 1}
            if k:
                change = (last_strength - first_strength) * _bent(k / (loops - 1), curve)
                own |= {"denoising_strength": first_strength + change, "inpainting_fill": 1}
            chain.append({**body, "n_iter": 1, **own})
        chains.append(tuple(chain))
    return Script(name="Loopback", chains=tuple(chains), sends="last" if rounds > 1 else "all")


def _bent(progress: float, curve: str) -> float:
    """Return how far the strength is on its way at a share of the loops."""
    if curve == "Aggressive":
        return math.sin(progress * math.pi / 2)
    if curve == "Lazy":
        return 1 - math.cos(progress * math.pi / 2)
    return progress


def _limit(name: str, count: int) -> None:
    if count > MAX_IMAGES:
        raise TooLarge(
            f"{name} would draw {count} pictures, at most {MAX_IMAGES} in one request",
            field="script_args",
            value=count,
            allowed=f"at most {MAX_IMAGES}",
        )
