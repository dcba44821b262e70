"""Cluster: goodput, wait and idle share of 8 to 1,000 devices, by simulation; decisions timed.

``--simulate`` replays an arrival trace in virtual time against the real router, batcher,
fairness and autoscaler. ``--trace FILE`` takes JSON lines with ``at_s``, ``client``,
``model`` and ``steps``; else requests of 20, 30 and 50 steps come from forty clients, one of
them with a third of all, at random moments. A request is good if its picture comes within
three times what it takes alone. ``--decisions`` times routing with 10,000 requests waiting.
``--replicas 1,2,4`` starts a real Ray here whose devices sleep, and measures throughput by
replicas, as shares of linear, and latency beside that of one process.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

from bench._replicas import measure
from bench._report import write
from bench._simulation import Arrival, Device, Outcome, simulate

from mezzotint.service.cluster.autoscaler import Scale
from mezzotint.service.workers.routing import Need, Place, Router

STEPS = (20, 30, 50)
LOADS = (0.5, 0.8, 0.95, 1.1)
SECONDS = {8: 600.0, 64: 240.0, 256: 120.0, 1000: 60.0}
"""Devices, and the seconds of arrivals that are simulated for them."""
WAITING = (100, 10_000)
"""Requests that wait already when decisions are timed."""
GOOD = 3.0
SEED = 14


def read_trace(file: Path) -> list[Arrival]:
    """Read a trace of JSON lines."""
    lines = (json.loads(line) for line in file.read_text().splitlines() if line.strip())
    arrivals = [
        Arrival(float(a["at_s"]), str(a.get("client", "")), str(a.get("model", "model")),
                int(a.get("steps", 30)))
        for a in lines
    ]  # fmt: skip
    return sorted(arrivals, key=lambda a: a.at_s)


def make_trace(devices: int, load: float, seconds: float, device: Device) -> list[Arrival]:
    """Draw arrivals that ask for ``load`` times what the devices can do in full calls."""
    chance = random.Random(SEED)
    each = statistics.mean(device.shared_s(steps) for steps in STEPS)
    rate = load * devices / each
    arrivals: list[Arrival] = []
    at = chance.expovariate(rate)
    while at < seconds:
        client = "busy" if chance.random() < 1 / 3 else f"client {chance.randrange(39)}"
        arrivals.append(Arrival(at, client, "model", chance.choice(STEPS)))
        at += chance.expovariate(rate)
    return arrivals


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return what a point of the curves shows."""
    good = sum(s <= GOOD for s in outcome.stretches)
    others = [w for w, c in zip(outcome.waits_s, outcome.clients, strict=True) if c != "busy"]
    return {
        "requests": len(outcome.waits_s),
        "good": round(good / len(outcome.waits_s), 4),
        "wait_median_s": round(statistics.median(outcome.waits_s), 2),
        "wait_p95_s": round(statistics.quantiles(outcome.waits_s, n=20)[-1], 2),
        "wait_of_small_clients_median_s": round(statistics.median(others), 2) if others else None,
        "idle": round(1 - outcome.busy_s / outcome.there_s, 4),
        "moved": outcome.moved,
        "most_replicas": outcome.most,
    }


def curves(sizes: list[int], trace: list[Arrival] | None) -> list[dict[str, Any]]:
    """Simulate every size at every load, and print each point as it comes."""
    device = Device()
    points: list[dict[str, Any]] = []
    for devices in sizes:
        seconds = SECONDS.get(devices, 120.0)
        runs: list[tuple[str, list[Arrival], Scale | None]] = [
            (f"load {load}", trace or make_trace(devices, load, seconds, device), None)
            for load in (LOADS if trace is None else (1.0,))
        ]
        scale = Scale(least=1, most=devices, backlog_s=20.0, idle_s=60.0)
        scaled = trace or make_trace(devices, 0.5, seconds, device)
        runs.append(("autoscaled", scaled, scale))
        for name, arrivals, bounds in runs:
            began = time.perf_counter()
            start = devices if bounds is None else bounds.least
            outcome = simulate(arrivals, device=device, replicas=start, scale=bounds)
            point = {"devices": devices, "run": name, **figures(outcome)}
            took = time.perf_counter() - began
            print(f"{json.dumps(point)}  ({took:.1f} s)", flush=True)
            points.append(point)
    return points


def decisions(places: int, waiting: int, count: int = 2_000) -> float:
    """Return the microseconds of one decision and its booking, with so many waiting."""
    router = Router()
    for number in range(places):
        router.join(Place(name=str(number), warm={"model"}))
    need = Need(models=frozenset({"model"}), seconds=3.0)
    for number in range(waiting):
        router.book(str(number % places), need)
    took: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        name = router.choose(need)
        assert name is not None
        router.book(name, need)
        took.append(time.perf_counter() - began)
    return 1e6 * statistics.median(took)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--decisions", action="store_true")
    parser.add_argument("--devices", default="8,64,256,1000")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--replicas", default="")
    given = parser.parse_args()
    if given.replicas:
        write("cluster-replicas", measure([int(n) for n in given.replicas.split(",")]))
        return
    result: dict[str, Any] = {}
    if given.decisions or not given.simulate:
        result["decision_us"] = {
            str(places): {str(n): round(decisions(places, waiting=n), 2) for n in WAITING}
            for places in (2, 8, 64, 256, 1000)
        }
        print(json.dumps(result["decision_us"]))
    if given.simulate:
        trace = read_trace(given.trace) if given.trace else None
        sizes = [int(n) for n in given.devices.split(",")]
        result["points"] = curves(sizes, trace)
    write("cluster", result)


if __name__ == "__main__":
    main()
