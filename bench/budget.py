"""Three models under a budget for less: evicted, read again, and the same bytes.

    mezzotint bench budget [--narrower 4] [--share 0.5] [--rounds 2] [--folder DIR]

Three Stable Diffusion 1.5 with random weights of three seeds (nothing is downloaded) are
drawn with once, one after the other, by a process that may hold all three. Then a fresh
process that may hold a share of their bytes (`models.max_bytes`) is asked for all three in
turn, round after round, and then for all of them at once. Every picture is compared with the
first process's. Memory is resident memory, looked at fifty times a second, above a base: what
the process takes when it has drawn with the built-in ``plate``, libraries included.
"""

import argparse
import tempfile
from pathlib import Path

from bench._real_size import make, rounded, run
from bench._report import write

PICTURES = """
import json, resource, sys, threading, time
from pathlib import Path
import numpy as np
import mezzotint as mz
max_bytes, side, steps, rounds, out, *folders = sys.argv[1:]
peak, is_over = [0], threading.Event()
def resident():
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
def watch():
    while not is_over.wait(0.02):
        peak[0] = max(peak[0], resident())
def phase(work):
    peak[0], began = 0, time.perf_counter()
    work()
    return {'peak_mb': peak[0], 'clock_s': time.perf_counter() - began}
options = {'max_bytes': int(max_bytes), 'engine': {'cache_memory_bytes': 0, 'cache_disk_bytes': 0}}
different = []
with mz.Engine(**options) as engine:
    def ask(model, seed):
        return engine.submit(mz.GenerationRequest(
            model=model, prompt='a red apple', seed=seed, num_inference_steps=int(steps),
            width=int(side), height=int(side)))
    def keep(model, seed, handle):
        pixels = handle.result().images[0].pixels
        path = Path(out) / f'{Path(model).name}-{seed}.npy'
        if path.is_file():
            if not np.array_equal(np.load(path), pixels):
                different.append(path.name)
        else:
            np.save(path, pixels)
    def in_turn():
        for seed in range(int(rounds)):
            for model in folders:
                keep(model, seed, ask(model, seed))
    def at_once():
        asked = [(m, s, ask(m, s)) for s in range(int(rounds)) for m in folders]
        for one in asked:
            keep(*one)
    engine.generate(mz.GenerationRequest(model='plate', prompt='a red apple', seed=0,
                                         num_inference_steps=2))
    base = resident()
    threading.Thread(target=watch, daemon=True).start()
    found = {'base_mb': base, 'in turn': phase(in_turn), 'at once': phase(at_once)}
    is_over.set()
print(json.dumps({**found, 'different': different}))
"""


def main() -> None:
    """Make the models, draw without and with the budget, write what each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.5, help="budget over the models' bytes")
    parser.add_argument("--narrower", type=int, default=4, help="divides the widths")
    parser.add_argument("--folder", type=Path, help="where the models are, or are made")
    options = parser.parse_args()
    import mezzotint

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folders = [(options.folder or work) / f"seed-{seed}" for seed in range(3)]
        for seed, folder in enumerate(folders):
            if not (folder / "model_index.json").is_file():
                make(folder, "sd15", narrower=options.narrower, seed=seed)
        total = sum(mezzotint.load_model(folder).num_bytes for folder in folders)
        budget = int(options.share * total)
        (work / "pictures").mkdir()
        found = {}
        for label, bound in (("all fit", 0), ("under the budget", budget)):
            found[label] = run(
                PICTURES, work / "home", bound, options.side, options.steps, options.rounds,
                work / "pictures", *folders,
            )  # fmt: skip
            print(label, found[label], flush=True)
    write(
        "budget",
        {
            "what": f"three SD 1.5 / {options.narrower} of {total / 3e6:.0f} MB each, "
            f"{options.side} px, {options.steps} steps, budget {budget / 1e6:.0f} MB",
            "command": f"mezzotint bench budget --narrower {options.narrower} "
            f"--share {options.share} --rounds {options.rounds}",
            "shows": _shows(found["under the budget"], budget),
            "runs": {label: _rounded(one) for label, one in found.items()},
        },
    )


def _shows(under: dict[str, object], budget: int) -> dict[str, str] | None:
    """Return each promise beside what was measured."""
    if "error" in under:
        return None
    above = {
        phase: (under[phase]["peak_mb"] - under["base_mb"]) * 1e6 / budget  # type: ignore[index, operator]
        for phase in ("in turn", "at once")
    }
    return {
        "pictures with other bytes, 0": str(len(under["different"])),  # type: ignore[arg-type]
        "peak above the base over the budget, in turn, at most 1.15": f"{above['in turn']:.2f}",
        "peak above the base over the budget, at once": f"{above['at once']:.2f}",
    }


def _rounded(found: dict[str, object]) -> dict[str, object]:
    return {k: rounded(v) if isinstance(v, dict) else v for k, v in rounded(found).items()}


if __name__ == "__main__":
    main()
