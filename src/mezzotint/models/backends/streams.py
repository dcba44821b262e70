"""Streams: into how many parts a denoiser's rows are dealt; known without a tensor library."""

import os

__all__ = ["count_cores", "denoiser_streams"]


def count_cores() -> int:
    """Count the cores that this process may run on, as OpenVINO does: those of its first thread."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(os.getpid()))
    return os.cpu_count() or 1


def denoiser_streams() -> int:
    """Return into how many parts a denoiser's rows are dealt: two, where two cores are."""
    return 2 if count_cores() > 1 else 1
