"""The plots of the page of benchmarks, from the results in ``bench/results``."""

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mezzotint.cli.figures.drawing import draw_lines

__all__ = ["FIGURES", "drawn", "plots"]

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
FIGURES = Path(__file__).resolve().parent / "pictures" / "figures"


def plots() -> dict[str, Callable[[Path], None]]:
    """Return what draws each plot whose result is there, by the name of its file."""
    known: dict[str, tuple[str, Callable[[Path], None]]] = {
        "serve-gan.svg": ("serve", lambda path: _serve(path, "plate-gan")),
        "serve-plate.svg": ("serve", lambda path: _serve(path, "plate")),
        "goodput.svg": ("goodput", _goodput),
        "waiting.svg": ("waiting", _waiting),
        "curves.svg": ("curves", _curves),
    }
    return {
        name: draw
        for name, (result, draw) in known.items()
        if (RESULTS / f"{result}.json").is_file()
    }


def drawn(name: str, what: str) -> str:
    """Return the line of a page that shows a plot."""
    return f"\n![{what}](pictures/figures/{name})\n"


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _ours_first(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: (not name.startswith("mezzotint"), name))


def _serve(path: Path, model: str) -> None:
    """Requests a second against connections."""
    levels: Mapping[str, Any] = _read("serve")[model]["connections"]
    first = next(iter(levels.values()))
    servers = _ours_first(name for name, found in first.items() if "requests_per_second" in found)
    curves = {
        name: [
            (int(count), statistics.median(level[name]["requests_per_second"]))
            for count, level in levels.items()
            if name in level
        ]
        for name in servers
    }
    draw_lines(path, curves, across="connections", up="requests a second")


def _goodput(path: Path) -> None:
    """Good pictures a second against how much is asked for."""
    result = _read("goodput")
    rates: Mapping[str, Any] = result["rates"]
    alone = float(result["diffusers_alone_per_s"])
    servers = _ours_first(next(iter(rates.values()))["good_per_s"])
    curves = {
        name: [
            (alone * float(rate), statistics.median(found["good_per_s"][name]))
            for rate, found in rates.items()
        ]
        for name in servers
    }
    curves["every picture in time"] = [(alone * float(rate), alone * float(rate)) for rate in rates]
    draw_lines(
        path, curves, across="requests a second", up="pictures in time a second", logarithmic=False
    )


def _waiting(path: Path) -> None:
    """Core-microseconds of a decision against waiting requests."""
    result = _read("waiting")
    lengths: Mapping[str, Mapping[str, float]] = result["core_us_by_waiting_requests"]
    slopes: Mapping[str, float] = result["core_us_for_each_thousand_more"]
    curves = {
        f"{name}: {slopes[name]:+.2f} for each thousand": [
            (int(count), found[name]) for count, found in lengths.items()
        ]
        for name in next(iter(lengths.values()))
        if not name.startswith("a call")
    }
    draw_lines(path, curves, across="requests that wait", up="core-microseconds")


def _curves(path: Path) -> None:
    """What a picture costs, in times its cheapest, against what is asked for, likewise."""
    result = _read("curves")
    powers: Mapping[str, float] = result["grows by the power"]
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, found in result["core_s"].items():
        points = sorted((int(x), float(y)) for x, y in found.items() if int(x))
        least_x, least_y = points[0]
        label = f"{name}: to the power of {powers[name]:.2f}"
        curves[label] = [(x / least_x, y / least_y) for x, y in points]
    most = max(x for points in curves.values() for x, _ in points)
    curves["in proportion"] = [(1.0, 1.0), (most, most)]
    draw_lines(path, curves, across="times the least", up="core-seconds, times those of the least")
