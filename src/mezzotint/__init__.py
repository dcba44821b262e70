"""Mezzotint turns requests into pictures.

Names load when they are first used, so ``import mezzotint`` costs milliseconds
and loads neither torch nor numpy.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "mezzotint.api": ("Engine", "generate"),
    "mezzotint.client.asynchronous": ("AsyncClient", "AsyncClientJob"),
    "mezzotint.service.verification": ("Verification",),
    "mezzotint.client.client": ("Client", "ClientJob"),
    "mezzotint.errors": (
        "ArchiveError",
        "CardError",
        "DeadlineExceeded",
        "GateRejected",
        "ImageError",
        "InUse",
        "InvalidField",
        "InvalidRequest",
        "MezzotintError",
        "ModelError",
        "ModelNotAllowed",
        "NotReady",
        "OutOfMemory",
        "Overloaded",
        "QueueFull",
        "Refused",
        "ShapeError",
        "UnknownName",
        "WeightsError",
        "WorkFailed",
    ),
    "mezzotint.models.base": ("Model",),
    "mezzotint.pipelines": ("Pipeline", "PipelineOutput", "pipeline"),
    "mezzotint.sampling.loop": ("sample",),
    "mezzotint.train.config.config": ("TrainConfig",),
    "mezzotint.train.trainer": ("Trainer",),
    "mezzotint.types": (
        "Attempt",
        "Cancelled",
        "Failed",
        "Finished",
        "GenerationResult",
        "ImageFinished",
        "ImageInput",
        "ImageOutput",
        "Queued",
        "Size",
        "StageTimings",
        "Started",
        "Stepped",
        "Verdict",
    ),
}
_DELEGATES = {  # what Model's constructors stand for, without an import of those who import Model
    "from_components": "mezzotint.models.formats.components",
    "load_model": "mezzotint.models.store.direct",
}
_WHERE = {name: module for module, names in _HOMES.items() for name in names}
_PARTS = "mezzotint.request"  # every name that it lists is public: a new part needs no row here


def _names() -> list[str]:
    """Return every public name, sorted."""
    return sorted([*_WHERE, *importlib.import_module(_PARTS).__all__, "__version__"])


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _names()
    home = _WHERE.get(name) or _DELEGATES.get(name)
    if home is None and name[:1].isupper() and name in _names():
        home = _PARTS
    if home is None:
        raise AttributeError(f"module 'mezzotint' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_names()})
