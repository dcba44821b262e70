"""Models of two to three billion weights: memory, and the same bytes alone and in company.

    mezzotint bench large --model sdxl [--side 512] [--steps 4]
    mezzotint bench large --model sd21 --side 768 --steps 2

A model of a published configuration with random weights is made (float16 on disk; nothing is
downloaded). Three fresh processes draw the same picture in ``exact``: alone in a home that is
empty, alone again, and in company of a second request with other steps, guidance and seed. The
files must be equal. What a picture of fifty steps takes is predicted from a step's seconds and
the rest's.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from bench._real_size import MEASURE, PROMPT, PUBLISHED, SCALE, SEED, make, rounded, run
from bench._report import write
from PIL import Image

DRAW = f"""{MEASURE}
import sys, mezzotint as mz
from mezzotint.types import Stepped
folder, out, side, steps, tier, company = sys.argv[1:]
size = {{'width': int(side), 'height': int(side)}}
with mz.Engine(engine={{'cache_disk_bytes': 0, 'cache_memory_bytes': 0}}) as engine:
    handle = engine.submit(mz.GenerationRequest(
        model=folder, prompt={PROMPT!r}, seed={SEED}, guidance_scale={SCALE},
        num_inference_steps=int(steps), reproducibility=tier, **size))
    other = engine.submit(mz.GenerationRequest(
        model=folder, prompt='two red apples', seed=8, guidance_scale=3.0,
        num_inference_steps=int(steps) + 1, reproducibility=tier, **size)) if int(company) else None
    for event in handle.events():
        if isinstance(event, Stepped):
            seen.append(time.perf_counter())
    image = handle.result().images[0]
    if other is not None:
        other.result()
image.save(out)
tell(notes=list(image.warnings))
"""


def main() -> None:
    """Make the model if it is not there, draw three times, compare, write what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(PUBLISHED), default="sdxl")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tier", default="exact")
    parser.add_argument("--narrower", type=int, default=1, help="divides the widths")
    parser.add_argument("--folder", type=Path, help="where the model is, or is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = options.folder or work / options.model
        if not (folder / "model_index.json").is_file():
            make(folder, options.model, narrower=options.narrower)
            print("the model is made", flush=True)
        rows: dict[str, dict[str, Any]] = {}
        for label, company in (("alone, first", 0), ("alone, again", 0), ("in company", 1)):
            rows[label] = run(
                DRAW, work / "home", folder, work / f"{label}.png", options.side, options.steps,
                options.tier, company,
            )  # fmt: skip
            print(label, rounded(rows[label]), flush=True)
        files = [work / f"{label}.png" for label in rows]
        drawn = [file.read_bytes() for file in files if file.is_file()]
        apart = {file.stem: _apart(files[0], file) for file in files[1:] if file.is_file()}
    again = rows["alone, again"]
    found = {
        "what": f"{options.model} / {options.narrower}, {options.side} px, {options.steps} steps, "
        f"guidance {SCALE}, {options.tier}, fresh processes, random weights",
        "command": f"mezzotint bench large --model {options.model} --side {options.side} "
        f"--steps {options.steps} --narrower {options.narrower}",
        "equal files": f"{len(drawn)} drawn, {len(set(drawn))} different",
        "levels from the first, share and most": apart,
        "a picture of 50 steps, predicted, s": _predicted(again, options.steps),
        "runs": {label: rounded(row) for label, row in rows.items()},
    }
    write(f"large_{options.model}", found)


def _apart(first: Path, other: Path) -> str:
    """Return which share of the values of two pictures differs, and by how many levels at most."""
    one, two = (np.asarray(Image.open(path), int) for path in (first, other))
    return f"{(one != two).mean():.2g}, {abs(one - two).max()}"


def _predicted(row: dict[str, Any], steps: int) -> float | None:
    """Return the seconds of fifty steps: what a second start took, and the steps it lacks."""
    if "error" in row or not row["step_s"]:
        return None
    return round(row["clock_s"] + (50 - steps) * row["step_s"], 1)


if __name__ == "__main__":
    main()
