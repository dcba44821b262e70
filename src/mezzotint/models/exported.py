"""Exported classes: what a model's configuration may name.

``model_index.json``, ``_class_name`` and ``architectures`` are words of a stranger. A class
is taken by them only where diffusers or transformers exports one of that name, made in the
library itself. Classes that look up another (``AutoModel``) are taken only where no file
beside the weights sends them to code of the model's own.
"""

import inspect
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mezzotint.errors import CardError
from mezzotint.models.parts import read_json

__all__ = ["LIBRARIES", "exported_class", "pipeline_class", "refuse_own_code"]

LIBRARIES = ("diffusers", "transformers")
_NEVER = "code inside a model folder never runs"


def exported_class(library: str, name: object, *, where: object, kind: type | None = None) -> Any:
    """Return a class that a library exports.

    Args:
        library: One of :data:`LIBRARIES`.
        name: Its name, as a configuration has it.
        where: What names it, for messages.
        kind: What it must be a subclass of, None for any class.

    Raises:
        CardError: If the library exports no class of that name, or one of another kind.
    """
    if library not in LIBRARIES:
        raise CardError(
            f"{where} names a class of {library!r}; only classes of diffusers and transformers "
            f"are loaded, {_NEVER}"
        )
    return _class_of(import_module(library), library, name, where, kind)


def pipeline_class(module: str, name: object, *, where: object) -> Any:
    """Return a class that one of diffusers' pipelines brings along, a safety checker say.

    Args:
        module: Name of the pipeline's module: ``stable_diffusion``.
        name: The class's name.
        where: What names it, for messages.

    Raises:
        CardError: If diffusers has no such module, or no such class in it.
    """
    found: Any = getattr(import_module("diffusers.pipelines"), module, None)
    if not isinstance(found, ModuleType):
        raise CardError(f"{where} is a class of {module!r}, not of pipelines.{module}; {_NEVER}")
    return _class_of(found, "diffusers", name, where, None)


def _class_of(module: Any, library: str, name: object, where: object, kind: type | None) -> Any:
    """Return a module's class of that name, which stands in a file of the library."""
    found: Any = None
    if isinstance(name, str) and name.isidentifier() and not name.startswith("_"):
        found = getattr(module, name, None)
    if not inspect.isclass(found) or found.__module__.partition(".")[0] != library:
        version = getattr(import_module(library), "__version__", "")
        raise CardError(
            f"{where} names {_shown(name)}, which this {library} ({version}) has not; {_NEVER}"
        )
    if kind is not None and not issubclass(found, kind):
        raise CardError(f"{where} names {library}'s {name}, which is no {kind.__name__}")
    return found


def _shown(name: object) -> str:
    """Return a name as one short line."""
    return (name if isinstance(name, str) and name.isidentifier() else repr(name))[:80]


def refuse_own_code(folder: Path) -> None:
    """Refuse a component that sends the classes which look up others to code of its own.

    Raises:
        CardError: If one of its configurations holds ``auto_map``, or cannot be read.
    """
    for file in sorted(folder.glob("*config.json")):
        if "auto_map" in read_json(file):
            raise CardError(
                f"{file} wants code of its own (auto_map); {_NEVER}. Remove auto_map if the model "
                "works without"
            )
