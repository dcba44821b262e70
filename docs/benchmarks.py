"""The tables of the page of benchmarks, from the results in ``bench/results``."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from docs.plots import drawn
from docs.tables import Rows, table

__all__ = ["TABLES"]

RESULTS = Path(__file__).resolve().parents[1] / "bench" / "results"
_PEERS = {
    "times_torchserve": "TorchServe, calls of 8",
    "times_torchserve_as_packed": "TorchServe, as packed",
    "times_litserve": "LitServe",
}


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _is_there(name: str) -> bool:
    return (RESULTS / f"{name}.json").is_file()


def _source(result: Mapping[str, Any], command: str) -> str:
    """Say how a table came about."""
    machine = result["machine"]
    return (
        f"\n*`{command}`, commit {machine['commit']}, {machine['cores']} cores, "
        f"{_instructions(machine)}torch {machine['versions']['torch']}{_beside(result)}.*\n"
    )


def _instructions(machine: Mapping[str, Any]) -> str:
    """Name what a processor's cores can do; results of before do not say."""
    return f"{', '.join(names)}, " if (names := machine.get("instructions")) else ""


def _beside(result: Mapping[str, Any]) -> str:
    """Name what else the machine did, where it was not alone."""
    load = result.get("load")
    return f"; {load}" if isinstance(load, str) else ""


def _spread(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def _servers(model: str) -> str:
    """Requests a second and the slowest hundredth beside other servers, by connections."""
    result = _read("serve")[model]
    levels: Mapping[str, Any] = result["connections"]
    shown = [key for key in _PEERS if any(key in level for level in levels.values())]
    rows: Rows = []
    for count, level in levels.items():
        theirs = [v["p99_ms"] for k, v in level.items() if "p99_ms" in v and k[:9] != "mezzotint"]
        p99 = level["mezzotint"]["p99_ms"] / min(theirs)
        rows.append((count, *(_spread(level.get(key)) for key in shown), f"{p99:.2f}"))
    header = ("connections", *(f"over {_PEERS[key]}" for key in shown), "p99 over the lowest")
    plot = "serve-gan.svg" if model == "plate-gan" else "serve-plate.svg"
    return (
        table(header, rows)
        + drawn(plot, f"Requests a second for {model} against connections")
        + _source(result, result["command"])
    )


def _ratios(name: str, command: str | None = None) -> str:
    """Every ratio of a result that has its spread."""
    result = _read(name)
    found = {k: v for k, v in result.items() if isinstance(v, dict) and "median" in v}
    rows: Rows = [(key, _spread(ratio)) for key, ratio in found.items()]
    return table(("what", "median (lowest to highest)"), rows) + _source(
        result, command or result["command"]
    )


def bench_serve_gan() -> str:
    """A GAN behind HTTP."""
    return _servers("plate-gan")


def bench_serve_plate() -> str:
    """Text to picture behind HTTP."""
    return _servers("plate")


def bench_goodput() -> str:
    """Mixed requests in time."""
    result = _read("goodput")
    rows: Rows = [(peer, _spread(r)) for peer, r in result["times_best_goodput"].items()]
    return (
        table(("over", "median (lowest to highest)"), rows)
        + drawn("goodput.svg", "Pictures in time against requests a second")
        + _source(result, result["command"])
    )


def bench_engine() -> str:
    """The engine beside one picture after the other."""
    return _ratios("engine")


def bench_families() -> str:
    """Each native family: mixed prompts at once beside diffusers' pipeline one by one."""
    result = _read("families")
    rows: Rows = [(name, _spread(ratio)) for name, ratio in result["times serial"].items()]
    return table(("family", "median (lowest to highest)"), rows) + _source(
        result, result["command"]
    )


def bench_cold() -> str:
    """A first picture in a new process."""
    return _ratios("cold")


def bench_full_size() -> str:
    """Stable Diffusion 1.5 at full size beside diffusers."""
    result = _read("full_size")
    rows: Rows = [(what, str(value)) for what, value in result["shows"].items()]
    runs: Rows = [
        (
            name, f"{run['clock_s']:.0f}", f"{run['cpu_s']:.0f}", f"{run['step_s']:.2f}",
            f"{run['peak_mb'] / 1000:.1f}", f"{run['load']:.1f}",
        )
        for name, run in result["runs"].items()
    ]  # fmt: skip
    header = ("run", "seconds", "core-seconds", "a step, s", "peak, GB", "load of the machine")
    return (
        f"{result['what']}.\n\n{table(('what', 'measured'), rows)}\n{table(header, runs)}"
        + _source(result, result["command"])
    )


def bench_packed() -> str:
    """A transformer of 12 B weights in a 4-bit file."""
    result = _read("packed")
    run, size = result["run"], result["transformer's file, GB"]
    rows: Rows = [
        ("the transformer's file, GB", f"{size:.1f}"),
        ("peak of memory, GB", f"{run['peak_mb'] / 1000:.1f}"),
        ("the step, s", f"{run['denoise_s']:.0f}"),
        ("the process, s", f"{run['clock_s']:.0f}"),
        ("load of the machine", f"{run['load']:.1f}"),
    ]
    return (
        f"{result['what']}.\n\n"
        + table(("what", "measured"), rows)
        + _source(result, result["command"])
    )


def bench_large() -> str:
    """Models of two to three billion weights: memory, and the same bytes in company."""
    made = [n for n in ("large_sdxl", "large_sd21") if (RESULTS / f"{n}.json").is_file()]
    told: list[str] = []
    for name in made:
        result = _read(name)
        runs: Rows = [
            (
                label, f"{run['clock_s']:.0f}", f"{run['step_s']:.2f}",
                f"{run['peak_mb'] / 1000:.1f}", f"{run['load']:.1f}",
            )
            for label, run in result["runs"].items()
            if "error" not in run
        ]  # fmt: skip
        header = ("run", "seconds", "a step, s", "peak, GB", "load of the machine")
        predicted = result["a picture of 50 steps, predicted, s"]
        told.append(
            f"{result['what']}: {result['equal files']}; fifty steps would take {predicted} s.\n\n"
            + table(header, runs)
            + _source(result, result["command"])
        )
    return "\n".join(told) or "Not measured yet.\n"


def bench_placement() -> str:
    """Each placement option: seconds, memory, and how far the picture is from the plain one."""
    result = _read("placement")
    rows: Rows = []
    for label, run in result["runs"].items():
        if "error" in run:
            rows.append((label, run["error"], "", "", ""))
            continue
        far = run.get("db", "")
        rows.append(
            (
                label, f"{run['cpu_s']:.1f}", f"{run['step_s']:.2f}", f"{run['peak_mb']:.0f}",
                far if isinstance(far, str) else f"{far:.1f}",
            )
        )  # fmt: skip
    header = ("placement", "core-seconds of a process", "a step, s", "peak, MB", "dB to plain")
    load = result["highest load of the machine"]
    return (
        f"{result['what']}; load of the machine up to {load}.\n\n{table(header, rows)}"
        + _source(result, result["command"])
    )


def bench_budget() -> str:
    """Three models under a budget for less than all of them."""
    result = _read("budget")
    rows: Rows = [(what, str(value)) for what, value in result["shows"].items()]
    load = max(run["load"] for run in result["runs"].values())
    return (
        f"{result['what']}; load of the machine up to {load:.1f}.\n\n"
        + table(("what", "measured"), rows)
        + _source(result, result["command"])
    )


def bench_tenants() -> str:
    """Nine tenants beside a hostile tenth."""
    result = _read("tenants")
    low, high = result["p95_ratio"]["90% of resamples"]
    rows: Rows = [
        ("p95 beside the tenth, over p95 without", f"{result['p95_ratio']['value']:.2f}",
         f"{low:.2f} to {high:.2f}"),
        ("median, the same", f"{result['median_ratio']:.2f}", ""),
    ]  # fmt: skip
    return table(("what", "ratio", "90 % of resamples"), rows) + _source(
        result, result.get("command", "mezzotint bench tenants")
    )


def bench_cluster_replicas() -> str:
    """Throughput by replicas of devices that sleep, and the latency that the cluster adds."""
    result = _read("cluster-replicas")
    rows: Rows = [
        (count, _spread(found["of_linear"])) for count, found in result["throughput"].items()
    ]
    latency = result["latency"]
    added = ", ".join(f"{ms:.1f}" for ms in latency["added_ms"])
    return (
        table(("replicas", "share of linear"), rows)
        + f"\nA request of {latency['request_s']:g} s takes "
        f"{_spread(latency['cluster_over_local'])} times as long as in one process: "
        f"{added} ms more in the three rounds.\n"
        + _source(result, "mezzotint bench cluster --replicas 1,2,4")
    )


def bench_cluster_curves() -> str:
    """Good pictures, median wait and idle devices of simulated clusters."""
    result = _read("cluster")
    sizes: dict[int, dict[str, str]] = {}
    for point in result["points"]:
        sizes.setdefault(point["devices"], {})[point["run"]] = (
            f"{point['good']:.0%}, {point['wait_median_s']:.0f} s, {point['idle']:.0%}"
        )
    names = [name for name in next(iter(sizes.values())) if name.startswith("load ")]
    rows: Rows = [(f"{count:,}", *(runs[name] for name in names)) for count, runs in sizes.items()]
    header = ("devices", f"{names[0]}: good, wait, idle", *(n[len("load ") :] for n in names[1:]))
    return table(header, rows) + _source(result, "mezzotint bench cluster --simulate")


def bench_cluster_decisions() -> str:
    """What it takes to choose a replica beside a long queue."""
    result = _read("cluster")
    timed: Mapping[str, Mapping[str, float]] = result["decision_us"]
    rows: Rows = [
        (f"{int(count):,}", *(f"{us:.1f}" if us < 10 else f"{us:.0f}" for us in each.values()))
        for count, each in timed.items()
    ]
    lengths = [f"{int(n):,} wait" for n in next(iter(timed.values()))]
    return table(("replicas", *(f"microseconds, {n}" for n in lengths)), rows) + _source(
        result, "mezzotint bench cluster --decisions"
    )


def bench_waiting() -> str:
    """What deciding takes beside a long queue."""
    result = _read("waiting")
    lengths: Mapping[str, Any] = result["core_us_by_waiting_requests"]
    names = next(iter(lengths.values()))
    rows: Rows = [
        (name, *(f"{lengths[count][name]:.1f}" for count in lengths),
         f"{result['core_us_for_each_thousand_more'][name]:.2f}")
        for name in names
    ]  # fmt: skip
    header = ("core-microseconds", *(f"{int(c):,} wait" for c in lengths), "each thousand more")
    return (
        table(header, rows)
        + drawn("waiting.svg", "What a decision takes against requests that wait")
        + _source(result, result["command"])
    )


def bench_curves() -> str:
    """What a picture costs by pixels, steps, pictures at once and regions."""
    if not _is_there("curves"):
        return "*`mezzotint bench curves` draws this.*\n"
    result = _read("curves")
    powers: Mapping[str, float] = result["grows by the power"]
    rows: Rows = [
        (
            name, f"{powers[name]:.2f}",
            ", ".join(f"{float(y) / float(next(iter(found.values()))):.2f} at {int(x):,}"
                      for x, y in found.items()),
        )
        for name, found in result["core_s"].items()
    ]  # fmt: skip
    return (
        table(("by", "grows by the power", "core-seconds, times the first"), rows)
        + drawn("curves.svg", "What a picture costs against what is asked for")
        + _source(result, result["command"])
    )


def bench_optimum() -> str:
    """One picture after the other beside optimum-intel on the same weights."""
    if not _is_there("optimum-intel"):
        return "*`mezzotint bench optimum-intel --peer PYTHON` measures this.*\n"
    result = _read("optimum-intel")
    far = result["the peer's picture from ours, dB"]
    return f"The peer's picture is {far} dB from ours.\n\n" + _ratios("optimum-intel")


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        bench_serve_gan, bench_serve_plate, bench_goodput, bench_engine, bench_cold,
        bench_full_size, bench_large, bench_packed, bench_placement, bench_budget, bench_tenants,
        bench_cluster_curves, bench_cluster_decisions, bench_cluster_replicas, bench_waiting,
        bench_families, bench_curves, bench_optimum,
    )
}  # fmt: skip
