"""A cold start: `mezzotint generate` in a fresh process beside a script with diffusers.

    mezzotint bench cold [--rounds 5]

Both import what they need, load ``plate`` from the same folder, draw the same picture
(20 steps, guidance 5) and write a PNG. The second cold run counts: networks have been
converted once, as on every run after the first.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench._report import interleave, ratios, write

STEPS, SCALE = 20, 5.0
SCRIPT = f"""
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
image = pipeline("a red apple", num_inference_steps={STEPS}, guidance_scale={SCALE},
                 generator=torch.Generator().manual_seed(int(sys.argv[3]))).images[0]
image.save(sys.argv[2])
"""


def timed(command: list[str], environment: dict[str, str], cwd: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    from mezzotint.models.store.store import ModelStore

    folder = str(ModelStore().entry("plate").path)
    program = str(Path(sys.executable).parent / "mezzotint")
    seeds = iter(range(1, 10**6))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        home = {**os.environ, "MEZZOTINT_HOME": str(work / "home")}

        def ours(*extra: str) -> float:
            return timed(
                [program, "generate", "a red apple", "--seed", str(next(seeds)), "-q",
                 "--num-inference-steps", str(STEPS), "--guidance-scale", str(SCALE),
                 "-o", str(work / "ours.png"), *extra],
                home, work,
            )  # fmt: skip

        def theirs() -> float:
            command = [sys.executable, "-c", SCRIPT, folder, str(work / "theirs.png")]
            return timed([*command, str(next(seeds))], dict(os.environ), work)

        first = ours()
        turbo = ["--reproducibility", "turbo"]
        seconds = interleave(
            {"mezzotint": ours, "mezzotint, turbo": lambda: ours(*turbo), "diffusers": theirs},
            options.rounds,
        )
    write(
        "cold",
        {
            "what": f"import, load plate, draw {STEPS} steps, write a PNG, in a fresh process",
            "command": f"mezzotint bench cold --rounds {options.rounds}",
            "rounds": options.rounds,
            "diffusers over mezzotint": ratios(seconds["mezzotint"], seconds["diffusers"]),
            "diffusers over mezzotint turbo": ratios(
                seconds["mezzotint, turbo"], seconds["diffusers"]
            ),
            "very first run over later ones": round(
                first / sorted(seconds["mezzotint"])[options.rounds // 2], 2
            ),
            "load of the machine": os.getloadavg()[1],
        },
    )


if __name__ == "__main__":
    main()
