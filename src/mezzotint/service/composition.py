"""Composition: what a service in one process is made of. Torch-free.

The configurations of the rooms below, whole, so that a setting that is read arrives
where it acts. The doors do not import this: what a worker is given is plain data to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mezzotint.engine.config import EngineConfig
from mezzotint.images.config import ImageConfig
from mezzotint.models.config import ModelsConfig
from mezzotint.plain import Checked, is_mapping, write
from mezzotint.service.config import HandlersConfig

__all__ = ["ServiceConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig(Checked):
    """What a service in one process is made of.

    Args:
        ready: Names of models to have ready, ``name`` or ``name=path``, or other forms of
            :meth:`~mezzotint.service.provision.registration.ModelRegistration.name_wanted`; the
            others load when first asked for.
        model_store: Folder whose files can be registered by their names, "" for none.
        register_paths: Whether a model can be registered by a path or Hub id while it runs;
            by its name in the model store it always can.
        runs: Folder whose training runs can be registered too, "" for none.
        engine: How the engine shares the device.
        handlers: What handler code may take.
        images: Limits on pictures that come from outside.
        models: Where models are and where they compute; ``models.home`` is the folder of
            the installation.
    """

    ready: tuple[str, ...] = ()
    model_store: str = ""
    register_paths: bool = True
    runs: str = ""
    engine: EngineConfig = field(default_factory=EngineConfig)
    handlers: HandlersConfig = field(default_factory=HandlersConfig)
    images: ImageConfig = field(default_factory=ImageConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)

    def options(self, over: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return it as plain data, which the factory in a worker process reads.

        Args:
            over: Options that win, e.g. ``{"models": {"backend": "torch"}}``; what they
                leave out stays.
        """
        return _merged(write(self), over or {})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested plain data with some values exchanged."""
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if is_mapping(below) and is_mapping(value) else value
    return merged
