"""Streams: into how many parts a denoiser's rows are dealt; known without a tensor library."""

import os

__all__ = ["denoiser_streams"]


def denoiser_streams() -> int:
    """Return into how many parts a denoiser's rows are dealt: two, where two cores are."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 2 if (count or 1) > 1 else 1
