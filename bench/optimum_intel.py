"""Optimum: ``plate`` and ``plate-quick`` beside optimum-intel, one after the other, same weights.

    mezzotint bench optimum-intel --peer PYTHON [--rounds 5] [--pictures 4]

The peer runs in an environment of its own, since it needs other versions of what we need, on
the same weights, which it converts itself; ``bench/_optimum_peer.py`` says how. PYTHON is that
environment's interpreter. One that has it, on a processor alone:

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 diffusers==0.39.0 optimum-intel==2.2.0 transformers==5.5.4
    ENV/bin/pip install huggingface_hub==1.21.0 openvino==2026.4.1 nncf==3.4.0 safetensors pillow

Nothing of it draws on torchvision, which may be left out. Both take turns round by round. That
the weights are the same is seen by the first picture of each: its distance is written down.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench._report import NO_CACHE, interleave, ratios, write
from bench._servers import BUILTIN
from PIL import Image

import mezzotint as mz

WORDS = ("a red apple", "a yellow sun", "a house", "a fish")
STEPS, SCALE = 20, 5.0
OURS = {
    "mezzotint exact": {"model": "plate", "num_inference_steps": STEPS, "guidance_scale": SCALE},
    "mezzotint turbo": {
        "model": "plate", "num_inference_steps": STEPS, "guidance_scale": SCALE,
        "reproducibility": "turbo",
    },
    "mezzotint plate-quick": {"model": "plate-quick"},
}  # fmt: skip


class Peer:
    """The other pipeline, in its own process.

    Args:
        python: Interpreter of an environment that has optimum-intel.
    """

    def __init__(self, python: Path) -> None:
        script = Path(__file__).with_name("_optimum_peer.py")
        self._process = subprocess.Popen(
            [str(python), str(script), str(BUILTIN / "plate")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def draw(self, prompt: str, seed: int, path: Path | None = None) -> float:
        """Draw one picture; return the seconds that it took there."""
        asked: dict[str, Any] = {
            "prompt": prompt, "seed": seed, "num_inference_steps": STEPS, "guidance_scale": SCALE,
        }  # fmt: skip
        if path is not None:
            asked["path"] = str(path)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the peer ended; what it said stands above")
        return dict(json.loads(line))

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def ours(engine: mz.Engine, fields: dict[str, Any], pictures: int) -> Callable[[], float]:
    """Return a function: seconds for so many pictures, one after the other."""
    seeds = iter(range(10**6, 10**9))

    def run() -> float:
        began = time.perf_counter()
        for k in range(pictures):
            request = mz.GenerationRequest(prompt=WORDS[k % 4], seed=next(seeds), **fields)
            engine.generate(request)
        return time.perf_counter() - began

    return run


def distance_db(engine: mz.Engine, peer: Peer) -> float:
    """Return how far the peer's picture is from ours, as a peak signal-to-noise ratio."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theirs.png"
        peer.draw(WORDS[0], 3, path)
        theirs = np.asarray(Image.open(path).convert("RGB"), dtype=np.float64)
    request = mz.GenerationRequest(prompt=WORDS[0], seed=3, **OURS["mezzotint exact"])
    mine = np.asarray(engine.generate(request).images[0].pixels, dtype=np.float64)
    error = float(((mine - theirs) ** 2).mean())
    return round(float(10 * np.log10(255**2 / max(error, 1e-9))), 1)


def main() -> None:
    """Run and write ``bench/results/optimum-intel.json``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=4)
    given = parser.parse_args()
    peer = Peer(given.peer)
    print("up: optimum-intel", flush=True)
    try:
        with mz.Engine(models=["plate", "plate-quick"], engine=NO_CACHE) as engine:
            far_db = distance_db(engine, peer)
            print(f"the peer's picture is {far_db} dB from ours", flush=True)
            seeds = iter(range(10**6))

            def theirs() -> float:
                return sum(peer.draw(WORDS[k % 4], next(seeds)) for k in range(given.pictures))

            contenders: dict[str, Callable[[], float]] = {
                name: ours(engine, fields, given.pictures) for name, fields in OURS.items()
            }
            seconds = interleave({**contenders, "optimum-intel": theirs}, given.rounds)
    finally:
        peer.close()
    exact, quick = seconds["mezzotint exact"], seconds["mezzotint plate-quick"]
    write(
        "optimum-intel",
        {
            "command": f"mezzotint bench optimum-intel --peer PYTHON --rounds {given.rounds} "
            f"--pictures {given.pictures}",
            "the peer's picture from ours, dB": far_db,
            "exact over optimum-intel": ratios(exact, seconds["optimum-intel"]),
            "turbo over optimum-intel": ratios(
                seconds["mezzotint turbo"], seconds["optimum-intel"]
            ),
            "plate-quick over plate in exact": ratios(quick, exact),
            "seconds": {
                name: [round(s / given.pictures, 4) for s in found]
                for name, found in seconds.items()
            },
        },
    )


if __name__ == "__main__":
    main()
