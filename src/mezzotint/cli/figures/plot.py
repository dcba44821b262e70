"""The verb ``plot``: what a file of numbers looks like, whichever of ours it is.

A run folder gives its loss, held-out loss and learning rate; several give one figure to
compare. A result of ``mezzotint bench`` gives its ratios with their spread, or the shares of
the stages; a trace of ``generate --profile`` gives where the time went.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from mezzotint.cli.figures.drawing import INK, check_figure_path, figure
from mezzotint.cli.flags import WrongFlag
from mezzotint.plain import is_mapping

__all__ = ["plot"]

METRICS = "metrics.jsonl"
_SMOOTH_FROM = 200  # steps that were written, from which on a running mean helps the eye
_STAGES = ("encode", "denoise", "decode", "write")


def plot(
    what: Annotated[
        list[Path],
        typer.Argument(
            metavar="WHAT...",
            help="Run folders, one result of bench (.json), or one trace (.trace.json).",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="SVG, PNG or PDF; NAME.svg here if not given."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Draw a training run, a benchmark's result or a profile as SVG or PNG."""
    missing = next((path for path in what if not path.exists()), None)
    if missing is not None:
        raise WrongFlag("WHAT", f"cannot read {missing}: there is nothing")
    target = output or Path(f"{what[0].resolve().name.partition('.')[0]}.svg")
    check_figure_path(target)
    if any(path.is_dir() for path in what):
        kind = "run"
        draw_runs(target, what)
    elif len(what) > 1:
        raise WrongFlag("WHAT", "several can be drawn together only where all are run folders")
    else:
        kind = _draw_file(target, what[0])
    print(json.dumps({"path": str(target), "kind": kind}) if as_json else target)


def _draw_file(target: Path, source: Path) -> str:
    """Draw a file of JSON; returns what it was."""
    try:
        data = json.loads(source.read_bytes())
    except (OSError, ValueError) as error:
        raise WrongFlag("WHAT", f"{source} is neither a run folder nor JSON: {error}") from None
    if is_mapping(data) and "traceEvents" in data:
        draw_trace(target, data["traceEvents"])
        return "trace"
    shares, found = dict(_shares(data)), dict(_ratios(data))
    title = str(data.get("command", "")) if is_mapping(data) else ""
    if shares:
        draw_shares(target, shares, title=title)
    elif found:
        draw_ratios(target, found, title=title)
    else:
        raise WrongFlag(
            "WHAT",
            f"{source} holds nothing that can be drawn: expected ratios (median, lowest, highest), "
            "shares of stages, or traceEvents",
        )
    return "bench"


def read_run(folder: Path) -> list[dict[str, Any]]:
    """Return the events of a run, in order; a line that is cut off is left out.

    Raises:
        WrongFlag: If the folder is no run.
    """
    try:
        lines = (folder / METRICS).read_text("utf-8").splitlines()
    except OSError as error:
        raise WrongFlag(
            "WHAT", f"{folder} is no run folder: {METRICS} cannot be read ({error.strerror})"
        ) from None
    found: list[dict[str, Any]] = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def draw_runs(target: Path, folders: list[Path]) -> None:
    """Draw loss and held-out loss over steps, and speed below."""
    with figure(target, height=6.0, rows=2) as (losses, speeds):
        for number, folder in enumerate(folders):
            events = read_run(folder)
            name, colour = folder.resolve().name, INK[number % len(INK)]
            points = _series(events, "step", "loss")
            if not points:
                raise WrongFlag("WHAT", f"{folder} has not made a step that was written down")
            faint = len(points) >= _SMOOTH_FROM
            steps, values = zip(*points, strict=True)
            own = {"alpha": 0.25, "linewidth": 0.8} if faint else {"label": name}
            losses.plot(steps, values, color=colour, **own)
            if faint:
                losses.plot(steps, _running_mean(values), color=colour, label=name)
            held = _series(events, "held_out", "loss") or _series(
                events, "held_out", "held_out_loss"
            )
            if held:
                across, up = zip(*held, strict=True)
                losses.plot(
                    across, up, color=colour, linestyle="--", marker="o", markersize=4,
                    label=f"{name}, held out",
                )  # fmt: skip
            rates = [(s, v) for s, v in _series(events, "step", "steps_per_s") if v > 0]
            if rates:
                across, up = zip(*rates, strict=True)
                speeds.plot(across, up, color=colour)
        if all(line.get_ydata().min() > 0 for line in losses.get_lines()):
            losses.set_yscale("log")
        losses.set_ylabel("loss")
        losses.legend()
        speeds.set_ylabel("steps/s")
        speeds.set_ylim(bottom=0)
        speeds.set_xlabel("step")


def _series(events: list[dict[str, Any]], kind: str, field: str) -> list[tuple[int, float]]:
    """Return a finite number over steps."""
    return [
        (int(event["step"]), float(event[field]))
        for event in events
        if event.get("event") == kind
        and isinstance(event.get(field), int | float)
        and math.isfinite(event[field])
    ]


def _running_mean(values: tuple[float, ...]) -> list[float]:
    """Return an exponential mean over a fiftieth of what there is, without a bias at its start."""
    keep = 1 - 1 / max(len(values) / 50, 1)
    mean = weight = 0.0
    found: list[float] = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        found.append(mean / weight)
    return found


def _ratios(data: Any, path: str = "") -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Give every median with its lowest and highest, by where it stands."""
    if not is_mapping(data):
        return
    if {"median", "lowest", "highest"} <= data.keys():
        yield path, (float(data["median"]), float(data["lowest"]), float(data["highest"]))
        return
    for key, value in data.items():
        yield from _ratios(value, f"{path}, {key}" if path else key)


def _shares(data: Any) -> Iterator[tuple[str, dict[str, float]]]:
    """Give the rows of a result that deal a whole out among stages."""
    rows = data.items() if is_mapping(data) else ()
    for name, row in rows:
        parts = {s: _percent(row.get(s)) for s in _STAGES} if is_mapping(row) else {}
        if parts and all(parts[stage] is not None for stage in _STAGES[:3]):
            yield name, {stage: part or 0.0 for stage, part in parts.items()}


def _percent(text: Any) -> float | None:
    """Read ``"6.7 %"``; None for what is none, such as a range."""
    try:
        return float(str(text).removesuffix("%"))
    except ValueError:
        return None


def draw_ratios(
    target: Path, ratios: Mapping[str, tuple[float, float, float]], *, title: str = ""
) -> None:
    """Draw each ratio as a bar with its lowest and highest; 1 is a draw."""
    names = list(ratios)[::-1]
    with figure(target, width=9.0, height=1.4 + 0.36 * len(names)) as axes:
        medians = [ratios[name][0] for name in names]
        low = [ratios[name][0] - ratios[name][1] for name in names]
        high = [ratios[name][2] - ratios[name][0] for name in names]
        axes.barh(names, medians, color=INK[0], height=0.6)
        axes.errorbar(medians, names, xerr=[low, high], fmt="none", ecolor="#222222", capsize=3)
        for name, median in zip(names, medians, strict=True):
            axes.text(0, name, f" {median:.2f}", va="center", ha="left", color="white", fontsize=9)
        axes.axvline(1, color="#222222", linewidth=0.8)
        axes.set_xlim(left=0)
        axes.set_xlabel("median, with lowest and highest; the line is 1")
        axes.set_title(title, fontsize=9, loc="left")


def draw_shares(
    target: Path, shares: Mapping[str, Mapping[str, float]], *, title: str = ""
) -> None:
    """Draw what part of the whole each stage takes, a bar for each row."""
    names = list(shares)[::-1]
    with figure(target, width=9.0, height=1.4 + 0.42 * len(names)) as axes:
        left = [0.0] * len(names)
        for number, stage in enumerate(_STAGES):
            parts = [shares[name][stage] for name in names]
            axes.barh(names, parts, left=left, color=INK[number], label=stage, height=0.6)
            left = [a + b for a, b in zip(left, parts, strict=True)]
        axes.set_xlabel("% of a picture's time")
        axes.legend(ncols=len(_STAGES), loc="lower left", bbox_to_anchor=(0.0, 1.0))
        axes.set_title(title, fontsize=9, loc="right")


def draw_trace(target: Path, events: list[Mapping[str, Any]]) -> None:
    """Draw where the time of a profile went: each span on its thread, and the sums by name."""
    spans = [e for e in events if e.get("ph") == "X" and e.get("dur", 0) >= 0 and "ts" in e]
    if not spans:
        raise WrongFlag("WHAT", "the trace has no span of time in it")
    totals: dict[str, float] = {}
    for span in spans:
        totals[span["name"]] = totals.get(span["name"], 0.0) + span["dur"] / 1e6
    ranked = sorted(totals, key=lambda name: -totals[name])[: len(INK)]
    colours = {name: INK[k] for k, name in enumerate(ranked)}
    threads = {t: k for k, t in enumerate(dict.fromkeys(span.get("tid", 0) for span in spans))}
    with figure(target, width=10.0, height=5.0, rows=2) as (line, sums):
        for name in ranked:
            own = [span for span in spans if span["name"] == name]
            for span in own:
                line.broken_barh(
                    [(span["ts"] / 1e6, max(span["dur"] / 1e6, 1e-6))],
                    (threads[span.get("tid", 0)] - 0.4, 0.8),
                    color=colours[name],
                )
        line.set_yticks(range(len(threads)), [f"thread {k + 1}" for k in range(len(threads))])
        line.set_xlabel("seconds")
        names = ranked[::-1]
        sums.barh(names, [totals[n] for n in names], color=[colours[n] for n in names])
        sums.set_xlabel("seconds in all; a stage inside another counts in both")
