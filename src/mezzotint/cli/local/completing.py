"""Completing: the names that a shell offers where a flag takes one; torch-free, and silent.

Whatever goes wrong while a shell asks (no home, a broken card) offers nothing: an error in
the middle of a line that somebody types helps nobody.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import typer

from mezzotint.errors import MezzotintError

__all__ = ["adapters", "gates", "models", "schedulers", "settings", "sigma_schedules"]

Complete = Callable[[typer.Context, str], list[str]]


def _offering(names: Callable[[typer.Context], Iterable[str]]) -> Complete:
    """Return what a shell asks: the names that begin with what is typed."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        with contextlib.suppress(MezzotintError, OSError):
            return [name for name in names(ctx) if name.startswith(incomplete)]
        return []

    return complete


def _settings(ctx: typer.Context) -> Any:
    from mezzotint.cli.session import load_settings

    return load_settings(ctx).settings


def _models(ctx: typer.Context) -> Iterable[str]:
    from mezzotint.models.store.store import ModelStore

    return ModelStore(_settings(ctx).models).names()


def _known_settings(_: typer.Context) -> Iterable[str]:
    from mezzotint.settings import known_settings

    return known_settings()


def _schedulers(_: typer.Context) -> Iterable[str]:
    from mezzotint.planning.schedulers import scheduler_names

    return scheduler_names()


def _sigma_schedules(_: typer.Context) -> Iterable[str]:
    from mezzotint.schedulers import SIGMA_SCHEDULES

    return SIGMA_SCHEDULES


def _gates(_: typer.Context) -> Iterable[str]:
    from mezzotint.gates.registry import GATES

    return GATES.names()


def adapters(kind: str) -> Complete:
    """Return what offers the names of one kind of adapter."""

    def names(ctx: typer.Context) -> Iterable[str]:
        from mezzotint.service.provision.adapter_files import AdapterFiles

        return AdapterFiles(_settings(ctx).home_path, allow_paths=False).usable(kind)

    return _offering(names)


models = _offering(_models)
schedulers = _offering(_schedulers)
sigma_schedules = _offering(_sigma_schedules)
gates = _offering(_gates)
settings = _offering(_known_settings)
