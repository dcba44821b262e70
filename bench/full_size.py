"""Models of full size: the first picture, the second start, turbo and memory, beside diffusers.

    mezzotint bench full-size [--side 512] [--steps 8] [--narrower 1] [--folder DIR]

A Stable Diffusion 1.5 with random weights is made from its published configuration
(860 M + 123 M + 84 M numbers, float16 on disk; nothing is downloaded). A fresh process with
diffusers, two of ours in exact and three in turbo draw the same picture, ours in a home that
is empty for the first (turbo's second finds out whether int8 will do); then diffusers once
more, since a machine that became slower would flatter whoever came first. Pictures are
compared: random weights draw noise, but the same noise. Twenty
minutes on two quiet cores; ``--narrower 4`` takes a minute or two.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from bench._real_size import OURS, THEIRS, decibels, make, rounded, run
from bench._report import write


def main() -> None:
    """Make the model if it is not there, draw in turn, write the table and its ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--narrower", type=int, default=1, help="divides the widths")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = options.folder or work / "sd15"
        if not (folder / "model_index.json").is_file():
            make(folder, "sd15", narrower=options.narrower)
            print("the model is made", flush=True)
        home, rows = work / "home", {}
        for label, tier in (
            ("diffusers", ""), ("exact, first", "exact"), ("exact, again", "exact"),
            ("turbo, first", "turbo"), ("turbo, learning", "turbo"), ("turbo, learnt", "turbo"),
            ("diffusers, again", ""),
        ):  # fmt: skip
            picture = work / f"{label}.png"
            script = OURS if tier else THEIRS
            rows[label] = run(
                script, home, folder, picture, options.side, options.steps, tier, "{}"
            )
            if picture.is_file() and label != "diffusers":
                rows[label]["db"] = decibels(work / "diffusers.png", picture)
            print(label, rounded(rows[label]), flush=True)
        same = _same(work / "exact, first.png", work / "exact, again.png")
        found = {
            "what": f"SD 1.5 / {options.narrower}, {options.side} px, {options.steps} steps, "
            "guidance 7.5, fresh processes, random weights",
            "command": f"mezzotint bench full-size --side {options.side} --steps {options.steps} "
            f"--narrower {options.narrower}",
            "shows": _shows(rows) if all("error" not in row for row in rows.values()) else None,
            "second start the same bytes": same,
            "runs": {label: rounded(row) for label, row in rows.items()},
        }
    write("full_size" if options.narrower == 1 else f"full_size_{options.narrower}", found)


def _same(first: Path, second: Path) -> bool:
    """Whether two files are there and equal."""
    both = first.is_file() and second.is_file()
    return both and first.read_bytes() == second.read_bytes()


def _shows(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Return each promise beside what was measured: ratios to the mean of diffusers' two runs."""
    them = [rows["diffusers"], rows["diffusers, again"]]

    def ratio(label: str, key: str) -> float:
        return rows[label][key] / (sum(row[key] for row in them) / len(them))

    return {
        "first picture over diffusers, at most 1.5": f"{ratio('exact, first', 'clock_s'):.2f}",
        "second start, at most 0.75": f"{ratio('exact, again', 'clock_s'):.2f}",
        "peak memory in exact, at most 1.5": f"{ratio('exact, again', 'peak_mb'):.2f} "
        f"(first {ratio('exact, first', 'peak_mb'):.2f})",
        "peak memory in turbo, at most 0.8": f"{ratio('turbo, learnt', 'peak_mb'):.2f} "
        f"(first {ratio('turbo, first', 'peak_mb'):.2f}, "
        f"learning {ratio('turbo, learning', 'peak_mb'):.2f})",
        "turbo's steps a second, at least 2.2": f"{1 / ratio('turbo, learnt', 'step_s'):.2f}",
        "exact's steps a second": f"{1 / ratio('exact, again', 'step_s'):.2f}",
        "turbo to diffusers, at least 30 dB": f"{rows['turbo, learnt']['db']:.1f} dB",
        "exact to diffusers": f"{rows['exact, again']['db']:.1f} dB",
    }


if __name__ == "__main__":
    main()
