"""Ahead: the networks of last time are compiled while torch is still being imported.

Importing torch keeps one core of a fresh process busy for over a second; compiling networks
that are exported already needs OpenVINO alone, and another core. What one process had compiled
for a request is known to the next one that is asked for the same kind. Whether a network fits
is decided where it is taken, by its file and by all settings; one that nobody takes is let go.

No torch is imported here.
"""

import contextlib
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from mezzotint.models.backends.flattening import flatten_planes
from mezzotint.models.backends.mapped import giving_back, largest_constant
from mezzotint.models.backends.quiet import import_openvino

__all__ = ["compile_network", "compiled", "drop", "start"]

_Known = tuple[str, Mapping[str, Any], bool]

_MAX_BYTES = 256 << 20  # of constants: a second copy of larger ones would be felt
_LOCK = threading.Lock()
_WAITING: dict[str, "Future[Any]"] = {}
_COMPILED: list[_Known] = []
_MAX_COMPILED = 16  # a process that compiles more is no short one


def compile_network(
    core: Any, exported: Any, settings: Mapping[str, Any], *, is_flat: bool = False
) -> tuple[Any, Any]:
    """Compile an exported network for the CPU, or take the one that was compiled ahead.

    Pages of its file are given back while it is compiled.

    Args:
        core: OpenVINO.
        exported: The path of its file, or the network itself, which is never ahead.
        settings: All that decides how it computes.
        is_flat: Whether its graph is first arranged as
            :func:`~mezzotint.models.backends.flattening.flatten_planes` does.

    Returns:
        What is compiled, and the numbers of its largest constant where they lie; None if it
        has no constants.
    """
    made = None
    if isinstance(exported, Path):
        known = (exported.name, dict(settings), is_flat)
        with _LOCK:
            if len(_COMPILED) < _MAX_COMPILED:
                _COMPILED.append(known)
            made = _WAITING.pop(json.dumps(known), None)
    network = made.result() if made is not None else None
    return network or _compile(core, exported, settings, is_flat)


def compiled() -> list[_Known]:
    """Return what this process has compiled, in order: file, settings, whether it is flat."""
    with _LOCK:
        return list(_COMPILED)


def start(folder: Path, networks: Sequence[_Known]) -> None:
    """Begin to compile networks on a thread; nothing is done where they are missing or large.

    Args:
        folder: Of the exported networks.
        networks: What :func:`compiled` returned in a process before.
    """
    found = [folder / name for name, _, _ in networks]
    try:
        sizes = [path.with_suffix(".bin").stat().st_size for path in found]
    except OSError:  # deleted meanwhile: they are exported anew
        return
    if not found or sum(sizes) > _MAX_BYTES:
        return
    with _LOCK:
        made = [_WAITING.setdefault(json.dumps(known), Future()) for known in networks]
    work = list(zip(networks, found, made, strict=True))
    threading.Thread(target=_work, args=(work,), name="mezzotint-ahead", daemon=True).start()


def drop() -> None:
    """Let go of what nobody has taken."""
    with _LOCK:
        _WAITING.clear()


def _work(work: Sequence[tuple[_Known, Path, "Future[Any]"]]) -> None:
    """Compile one after the other, in the order in which they will be asked for."""
    for (_, settings, is_flat), path, made in work:
        network = None
        with contextlib.suppress(Exception):  # whoever takes it compiles it, and tells why not
            network = _compile(import_openvino().Core(), path, settings, is_flat)
        made.set_result(network)


def _compile(
    core: Any, exported: Any, settings: Mapping[str, Any], is_flat: bool
) -> tuple[Any, Any]:
    graph = exported
    if isinstance(exported, Path):
        graph = core.read_model(exported)
    elif is_flat:
        graph = exported.clone()
    held = largest_constant(graph)
    if is_flat:
        flatten_planes(graph)
    with giving_back(held):
        return core.compile_model(graph, "CPU", dict(settings)), held
