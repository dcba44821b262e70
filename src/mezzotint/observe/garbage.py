"""Garbage: full collections that do not stop a server.

A process with a framework and a model in it holds a quarter of a million objects, and a full
collection of Python's looks at each: a tenth of a second for which nothing is answered, just
while much is asked. In a process that is ours alone, what is there once a model is ready is
taken out of later collections (``gc.freeze``); where a model goes, everything is looked at
again. In a user's own process nothing of this is done.
"""

import gc

__all__ = ["collect", "own_process", "settle"]


class _Process:
    """What is known of this process."""

    is_ours = False


def own_process() -> None:
    """Say that this process serves and does nothing else."""
    _Process.is_ours = True


def settle() -> None:
    """Take all that is alive now out of later collections, in a process that is ours."""
    if _Process.is_ours:
        gc.collect()
        gc.freeze()


def collect() -> None:
    """Collect everything; in a process that is ours also what was taken out before."""
    if _Process.is_ours:
        gc.unfreeze()
        settle()
    else:
        gc.collect()
