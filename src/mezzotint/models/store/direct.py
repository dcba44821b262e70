"""Direct: a model from its name or path in one call, without an installation's service."""

from pathlib import Path
from typing import Any

from mezzotint.errors import UnknownName
from mezzotint.models.base import Model
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.store.store import ModelStore

__all__ = ["load_model"]


def load_model(source: str | Path, *, home: str | Path | None = None, **placement: Any) -> Model:
    """Load a model by store name, path or Hub id, without keeping it in a store.

    Args:
        source: What to load.
        home: Folder of the installation; the user's own if None.
        placement: Fields of :class:`~mezzotint.models.config.PlacementConfig`.

    Raises:
        UnknownName: If nothing is called that.
        ModelError: If its files are missing, corrupt or unsafe.
    """
    unknown = set(placement) - set(PlacementConfig.__dataclass_fields__)
    if unknown:
        raise UnknownName("option", sorted(unknown)[0], PlacementConfig.__dataclass_fields__)
    config = ModelsConfig(home=str(home or ""), placement=PlacementConfig(**placement))
    return ModelStore(config).load(str(source))
