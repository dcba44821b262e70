"""What the benchmarks share: interleaved rounds, ratios with their spread, a result file.

A figure is never an absolute time: machines are noisy and shared. Contenders take
turns within each round, so that a slow minute is slow for all of them, and the
ratio is taken round by round.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

NO_CACHE = {"cache_memory_bytes": 0, "cache_disk_bytes": 0}
"""Engine settings: pictures of an earlier run must not answer this one."""

RESULTS = Path(__file__).resolve().parent / "results"


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Return median, lowest and highest of theirs / ours by round; above 1 we are faster."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "median": round(statistics.median(each), 3),
        "lowest": round(min(each), 3),
        "highest": round(max(each), 3),
    }


def interleave(
    contenders: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Run every contender once per round, in turn; each returns its seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for name, run in contenders.items():  # warm-up, not counted
        run()
        print(f"warm: {name}", flush=True)
    for k in range(rounds):
        for name, run in contenders.items():
            seconds[name].append(run())
        print(f"round {k + 1} of {rounds}", flush=True)
    return seconds


def instructions() -> list[str]:
    """Return the instructions that decide how fast networks are: with AMX all is otherwise."""
    import torch

    has = torch.cpu.get_capabilities()
    named = {
        "avx512_f": "AVX512", "avx512_vnni": "VNNI", "avx512_bf16": "AVX512-BF16",
        "amx_int8": "AMX-INT8", "amx_bf16": "AMX-BF16",
    }  # fmt: skip
    return [name for flag, name in named.items() if has.get(flag)]


def machine() -> dict[str, Any]:
    """Describe what a figure depends on, without naming a machine."""
    versions = {}
    for name in ("torch", "diffusers", "openvino", "transformers"):
        versions[name] = metadata.version(name)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "instructions": instructions(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit,
    }


def write(name: str, result: Mapping[str, Any]) -> Path:
    """Write a result file and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return path
