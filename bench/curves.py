"""Curves: what a picture of ``plate`` costs by pixels, steps, pictures at once and regions.

    mezzotint bench curves [--rounds 5]

One request at a time in one process, nothing kept from an earlier one. What counts is the
processor's time of all threads, the least of several rounds, in which all cases take turns. Each
curve is given with the power of its quantity by which it grows: 1 is in proportion, less is
better. What a picture costs whatever is asked for is in it too, so the power is taken over the
upper half of a curve.
"""

import argparse
import math
import time
from typing import Any

from bench._report import NO_CACHE, write

import mezzotint as mz

STEPS = 8
SIDES = (64, 128, 192, 256, 384)
CURVES: dict[str, dict[int, dict[str, Any]]] = {
    "pixels": {s * s: {"width": s, "height": s, "num_inference_steps": STEPS} for s in SIDES},
    "steps": {n: {"num_inference_steps": n} for n in (2, 4, 8, 16, 32, 64)},
    "pictures at once": {
        n: {"num_images": n, "num_inference_steps": STEPS} for n in (1, 2, 4, 8, 16)
    },
    "regions": {
        n: {
            "num_inference_steps": STEPS,
            "regions": tuple(
                mz.Region(prompt=f"a fish and {k}", box=(k / 8, 0.0, (k + 1) / 8, 1.0))
                for k in range(n)
            ),
        }
        for n in (0, 1, 2, 4, 8)
    },
}


def power(curve: dict[int, float]) -> float:
    """Return by which power of its quantity a curve grows, over its upper half."""
    points = [(math.log(x), math.log(y)) for x, y in sorted(curve.items()) if x > 0]
    points = points[len(points) // 2 - (len(points) % 2 == 0) :]
    across = sum(x for x, _ in points) / len(points)
    up = sum(y for _, y in points) / len(points)
    return sum((x - across) * (y - up) for x, y in points) / sum(
        (x - across) ** 2 for x, _ in points
    )


def main() -> None:
    """Run and write ``bench/results/curves.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    seconds: dict[str, dict[int, list[tuple[float, float]]]] = {
        name: {x: [] for x in cases} for name, cases in CURVES.items()
    }
    seed = 0
    with mz.Engine(models=["plate"], engine=NO_CACHE) as engine:
        for turn in range(given.rounds + 1):  # the first warms up: it compiles, and learns sizes
            for name, cases in CURVES.items():
                for x, fields in cases.items():
                    seed += 100
                    request = mz.GenerationRequest(prompt="a house", seed=seed, **fields)
                    began, worked = time.perf_counter(), time.process_time()
                    engine.generate(request)
                    if turn:
                        spent = time.process_time() - worked, time.perf_counter() - began
                        seconds[name][x].append(spent)
            print(f"round {turn} of {given.rounds}", flush=True)
    least = {
        name: {x: tuple(min(one[k] for one in spent) for k in (0, 1)) for x, spent in found.items()}
        for name, found in seconds.items()
    }
    write(
        "curves",
        {
            "command": f"mezzotint bench curves --rounds {given.rounds}",
            "what": f"plate, 128 px and {STEPS} steps unless the curve says otherwise",
            "core_s": {
                n: {str(x): round(c, 4) for x, (c, _) in f.items()} for n, f in least.items()
            },
            "s": {n: {str(x): round(s, 4) for x, (_, s) in f.items()} for n, f in least.items()},
            "grows by the power": {
                n: round(power({x: c for x, (c, _) in f.items()}), 2) for n, f in least.items()
            },
        },
    )


if __name__ == "__main__":
    main()
