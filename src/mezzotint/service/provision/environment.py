"""Environment: what arithmetic depends on, told after torch is loaded, or foreseen before.

Pictures are exact for an environment: device, type, backend, versions, threads (and cores, where
torch was told to take fewer: one or two are seen by the streams), and the instructions of the
processor. Threads and instructions are what torch says of itself. On a Linux machine with an
x86 processor and no accelerator they follow from the processor and the process alone, so that
a plan can name its environment without loading torch for it; where anything could make them
others, nothing is foreseen.
"""

import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import mezzotint
from mezzotint.images.metadata import library_versions
from mezzotint.models.backends.streams import count_cores, denoiser_streams
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.store.shipped import computes_on_processor
from mezzotint.plain import field_names

__all__ = ["DECISIVE", "Processor", "describe", "foresee", "foresee_processor"]

DECISIVE = ("ATEN_", "CUDA_", "DNNL_", "KMP_", "MKL_", "OMP_", "ONEDNN_", "OV_")
"""Beginnings of variables that say how many threads compute, on what, with which kernels."""

_CPUS = Path("/sys/devices/system/cpu")
_PROCESSOR = Path("/proc/cpuinfo")


class Processor(NamedTuple):
    """What torch says of the processor: its vector instructions, and threads of a call."""

    capability: str
    threads: int


def describe(
    device: str, backend: str, placement: PlacementConfig, processor: Processor | None
) -> dict[str, Any]:
    """Return what arithmetic depends on: device, type, backend, options, versions, threads.

    Args:
        device: ``"cpu"``, or an accelerator with its name.
        backend: Who computes networks.
        placement: Options that differ from the usual ones are told.
        processor: Of a ``cpu``.
    """
    found: dict[str, Any] = {
        "mezzotint": mezzotint.__version__,
        "device": device,
        "dtype": placement.dtype or ("float32" if device == "cpu" else "as stored"),
        "backend": backend,
        **library_versions(),
    }
    if processor is not None:
        found["cpu"], found["threads"] = processor
    usual = PlacementConfig()
    options = {
        name: getattr(placement, name)
        for name in field_names(PlacementConfig)
        if name not in ("device", "dtype") and getattr(placement, name) != getattr(usual, name)
    }
    if options:
        found["placement"] = options
    if "quantize" in options:
        found["torchao"] = metadata.version("torchao")
    if backend == "openvino":
        found["openvino"] = metadata.version("openvino")
        found["streams"] = denoiser_streams()
        told, cores = "OMP_NUM_THREADS" in os.environ, count_cores()
        if told and processor is not None and cores not in (1, 2, processor.threads):
            found["cores"] = cores  # OpenVINO takes all, whatever torch was told
    return found


def foresee(config: ModelsConfig, variables: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what :func:`describe` will say in this process, None where that is not certain.

    Args:
        config: Where models compute, and who computes.
        variables: The process's environment.
    """
    if not computes_on_processor(config.placement):
        return None
    processor = foresee_processor(variables)
    if processor is None:
        return None
    backend = "torch" if config.backend == "torch" else "openvino"
    return describe("cpu", backend, config.placement, processor)


def foresee_processor(variables: Mapping[str, str]) -> Processor | None:
    """Return what torch will say of this processor, None where that is not certain.

    torch computes with as many threads as there are cores that the process may run on, or as
    ``OMP_NUM_THREADS`` says if that is fewer.

    Args:
        variables: The process's environment; others than that one may change the answer.

    Source: ``compute_cpu_capability`` in ATen's DispatchStub.cpp and ``init_num_threads`` in
    its ParallelOpenMP.cpp, torch 2.13.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    decisive = {k: v for k, v in variables.items() if k.startswith(DECISIVE)}
    asked = decisive.pop("OMP_NUM_THREADS", "")
    if decisive or (asked and not (asked.isascii() and asked.isdigit() and int(asked))):
        return None
    capability, cores = _capability(), _cores(os.sched_getaffinity(0))
    if capability is None or cores is None:
        return None
    return Processor(capability, min(int(asked), cores) if asked else cores)


def _capability() -> str | None:
    """Return the vector instructions that torch's kernels are chosen by."""
    try:
        lines = _PROCESSOR.read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    if {"avx512f", "avx512vl", "avx512bw", "avx512dq", "fma"} <= set(flags):
        return "AVX512"
    return "AVX2" if {"avx2", "fma"} <= set(flags) else None


def _cores(cpus: Iterable[int]) -> int | None:
    """Count cores; None where a process has only some of the hardware threads of one."""
    allowed, found = set(cpus), set[frozenset[int]]()
    try:
        for cpu in allowed:
            siblings = (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text()
            together = frozenset(_read_list(siblings))
            if not together <= allowed:
                return None
            found.add(together)
    except (OSError, ValueError):
        return None
    return len(found)


def _read_list(text: str) -> Iterable[int]:
    """Read a list of the kernel's, such as ``0-1,8``."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
