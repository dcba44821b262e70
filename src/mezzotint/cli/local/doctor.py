"""The verb ``doctor``: what this machine and this installation have, and what would help.

Everything is read from files, package metadata and sockets; torch is not loaded, so it
answers where torch itself is what is broken. Exits 1 if anything is wrong, 0 with advice.
"""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import typer

import mezzotint
from mezzotint.cli.session import load_settings
from mezzotint.cli.terminal import escaped, fitted
from mezzotint.settings import Settings

__all__ = ["Finding", "doctor", "examine"]

Status = Literal["ok", "advice", "wrong"]
_MARKS: Final = {"ok": " ", "advice": "!", "wrong": "X"}
_OLDEST, _TOO_NEW = (3, 11), (3, 14)
_LIBRARIES: Final = ("torch", "openvino", "diffusers", "transformers", "numpy", "pillow")
_EXTRAS: Final = {
    "cluster": "ray",
    "grpc": "grpcio",
    "mcp": "mcp",
    "postgres": "psycopg",
    "s3": "obstore",
    "train": "tensorboard",
}
_GIB: Final = 1 << 30
_LITTLE_DISK, _LITTLE_MEMORY = 2 * _GIB, 3 * _GIB
_WAIT_S: Final = 5.0


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        about: What.
        status: ``ok``, ``advice`` (it works, and could be better) or ``wrong``.
        told: What was found.
        advice: What to do, "" for nothing.
    """

    about: str
    status: Status
    told: str
    advice: str = ""


def doctor(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Examine versions, device, memory, disk, ports and caches; say what would help."""
    found = list(examine(load_settings(context).settings))
    is_well = all(finding.status != "wrong" for finding in found)
    if as_json:
        print(json.dumps({"well": is_well, "findings": [f._asdict() for f in found]}))
        return 0 if is_well else 1
    width = max(len(finding.about) for finding in found)
    for finding in found:
        line = f"{_MARKS[finding.status]} {finding.about:{width}}  {finding.told}"
        print(fitted(escaped(line), sys.stdout, width + 4))
        if finding.advice:
            advice = escaped(f"  {'':{width}}  -> {finding.advice}")
            print(fitted(advice, sys.stdout, width + 7))
    advised = sum(finding.status == "advice" for finding in found)
    wrong = sum(finding.status == "wrong" for finding in found)
    print()
    print(f"{wrong} wrong (X), {advised} to think about (!)" if wrong or advised else "all is well")
    return 0 if is_well else 1


def examine(settings: Settings) -> Iterator[Finding]:
    """Look at everything, in the order in which it is told.

    Args:
        settings: Of this installation.
    """
    yield from _versions()
    yield from _processor(settings)
    yield from _gpu(settings)
    yield from _memory()
    yield from _home(settings)
    yield from _server(settings)


def _versions() -> Iterator[Finding]:
    version = sys.version_info[:2]
    name = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    fits = _OLDEST <= version < _TOO_NEW
    advice = "" if fits else "the wheels that are needed exist for Python 3.11 to 3.13"
    yield Finding("python", "ok" if fits else "advice", name, advice)
    yield Finding("mezzotint", "ok", f"{mezzotint.__version__} in {Path(__file__).parents[2]}")
    found = {name: _version(name) for name in _LIBRARIES}
    told = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    wrong = _unmet()
    yield Finding(
        "libraries",
        "wrong" if wrong else "ok",
        f"{told}{'; ' if wrong else ''}{'; '.join(wrong)}",
        "pip install --force-reinstall mezzotint" if wrong else "",
    )
    if _version("torchvision"):
        yield Finding(
            "torchvision",
            "advice",
            f"{_version('torchvision')} is installed; Mezzotint needs none",
            "one that does not fit torch breaks diffusers: pip uninstall torchvision",
        )
    there = [name for name, package in _EXTRAS.items() if _version(package)]
    absent = [name for name in _EXTRAS if name not in there]
    without = f"; without {', '.join(absent)}" if absent else ""
    yield Finding("extras", "ok", f"{', '.join(there) or 'none'}{without}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _unmet() -> list[str]:
    """Return what this package requires and the environment has not."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("mezzotint") or ()]
    except metadata.PackageNotFoundError:  # run from sources, without an installation
        return []
    unmet: list[str] = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if not version:
            unmet.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version.partition("+")[0], prereleases=True):
            unmet.append(f"{requirement.name} {version} is not {requirement.specifier}")
    return unmet


def _processor(settings: Settings) -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    model, flags = _cpu()
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "amx_bf16") if name in flags]
    told = f"{model or platform.machine()}, {usable} of {cores} cores"
    told += f", {', '.join(known)}" if known else ""
    if flags and "avx2" not in flags:
        yield Finding("processor", "advice", told, "without AVX2 every picture takes much longer")
    else:
        yield Finding("processor", "ok", told)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and int(threads) < usable:
        yield Finding(
            "threads",
            "advice",
            f"OMP_NUM_THREADS={threads}, and {usable} cores are there",
            "unset it, unless other programs need the cores",
        )
    if settings.models.backend == "torch" and not _gpus():
        yield Finding(
            "backend",
            "advice",
            "models.backend is torch",
            "auto takes OpenVINO on a processor, which is faster there",
        )
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * usable:
        load = f"{os.getloadavg()[0]:.1f} processes want {usable} cores"
        yield Finding("load", "advice", load, "times that are measured now will be too long")


def _cpu() -> tuple[str, frozenset[str]]:
    """Return the processor's name and flags, as far as Linux tells."""
    try:
        first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return platform.processor(), frozenset()
    lines = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    said = {key.strip(): value.strip() for key, value in lines.items()}
    return said.get("model name", ""), frozenset(said.get("flags", "").split())


def _gpu(settings: Settings) -> Iterator[Finding]:
    gpus, torch = _gpus(), _version("torch")
    wanted = settings.models.placement.device
    if not gpus:
        if platform.system() == "Darwin" and platform.machine() == "arm64":
            yield Finding("gpu", "ok", f"Apple's, as mps; models.placement.device is {wanted}")
        elif wanted.startswith("cuda"):
            yield Finding("gpu", "wrong", f"none, and models.placement.device is {wanted}",
                          "set it to auto, or see that nvidia-smi finds the GPU")  # fmt: skip
        else:
            yield Finding("gpu", "ok", "none; pictures are drawn on the processor")
        return
    told = "; ".join(gpus)
    if "+cpu" in torch:
        yield Finding(
            "gpu",
            "advice",
            f"{told}, and torch {torch} cannot use it",
            "install torch's CUDA build: pip install --force-reinstall 'torch==2.13.*'",
        )
    elif wanted == "cpu":
        yield Finding("gpu", "advice", f"{told}, and models.placement.device is cpu", "set auto")
    else:
        yield Finding("gpu", "ok", told)


def _gpus() -> list[str]:
    """Return each NVIDIA GPU as its driver names it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = ("--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            [program, *query], capture_output=True, text=True, timeout=_WAIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.split(", ") for line in done.stdout.splitlines() if done.returncode == 0]
    return [
        f"{line[0]}, {line[1]} ({line[2]} used), driver {line[3]}"
        for line in lines
        if len(line) == 4
    ]


def _memory() -> Iterator[Finding]:
    from mezzotint.service.provision.memory_limit import group_limit

    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    group = group_limit()
    limit = machine if group is None else min(machine, group)
    told = f"{limit / _GIB:.1f} GiB"
    told += (
        f" of this machine's {machine / _GIB:.1f}, by its control group" if limit < machine else ""
    )
    available = _available()
    told += f", {available / _GIB:.1f} free" if available else ""
    if limit < _LITTLE_MEMORY:
        advice = "enough for the built-in models; Stable Diffusion needs about 6 GiB"
        yield Finding("memory", "advice", told, advice)
    else:
        yield Finding("memory", "ok", told)


def _available() -> int:
    """Return the bytes that programs may still have, 0 where nobody tells."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    found = next((line for line in lines if line.startswith("MemAvailable:")), "")
    return int(found.split()[1]) * 1024 if found else 0


def _home(settings: Settings) -> Iterator[Finding]:
    home = settings.home_path
    there = next(p for p in (home, *home.parents) if p.exists())
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        yield Finding(
            "home", "wrong", f"{home} cannot be written", "chown it, or set MEZZOTINT_HOME"
        )
        return
    free = shutil.disk_usage(there).free
    told = f"{home}, {free / _GIB:.1f} GiB free"
    status: Status = "advice" if free < _LITTLE_DISK else "ok"
    yield Finding("home", status, told, "a model may need more" if status == "advice" else "")
    parts = {"models": home / "models", "jobs": Path(settings.jobs.folder)}
    parts |= {f"cache/{p.name}": p for p in sorted((home / "cache").glob("*")) if p.is_dir()}
    sizes = {name: _bytes(path) for name, path in parts.items()}
    shown = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sizes.items() if size)
    yield Finding("disk", "ok", shown or "nothing is kept yet")
    if settings.engine.cache_disk_bytes == 0:
        yield Finding(
            "cache", "advice", "engine.cache_disk_bytes is 0", "pictures are drawn again each time"
        )


def _bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
        except OSError:
            continue
    return total


def _server(settings: Settings) -> Iterator[Finding]:
    from mezzotint.cli.local.servers import find_server

    url = find_server(settings.home_path)
    if url:
        yield Finding("server", "ok", f"runs at {url}; `generate` uses it")
        return
    yield Finding("server", "ok", "none runs on this home")
    serve = settings.serve
    ports: dict[str, Any] = {
        "port": serve.port,
        "management_port": serve.management_port,
        "metrics_port": serve.metrics_port,
    }
    taken = [f"{name} {port}" for name, port in ports.items() if port and not _is_free(port)]
    if taken:
        told = f"{', '.join(taken)} of serve: taken by another program"
        yield Finding("ports", "advice", told, "mezzotint serve --port 0 takes a free one")
    else:
        yield Finding("ports", "ok", f"{', '.join(map(str, ports.values()))} are free")


def _is_free(port: int) -> bool:
    """Whether a port of loopback can be listened on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            own.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
