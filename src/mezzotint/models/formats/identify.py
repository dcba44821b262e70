"""Identify: what kind of model lies at a path, told from names alone.

Each layout is known by one file: ``model_index.json`` (a diffusers folder),
``mezzotint_run.json`` (a run of our trainer), ``config.json`` of the format
``mezzotint-gan`` or ``mezzotint-derived``, one ``.safetensors`` file, an archive.
"""

from pathlib import Path
from typing import Literal

from mezzotint.errors import UnknownName, WeightsError
from mezzotint.models.parts import read_json, refuse_pickle
from mezzotint.models.reading import refuse_special

__all__ = ["ModelLayout", "identify"]

ModelLayout = Literal["pipeline", "gan", "derived", "run", "single_file", "archive", "mar"]

_MAR_SUFFIXES = (".mar", ".tar.gz", ".tgz")


def identify(path: Path) -> ModelLayout:
    """Tell what kind of model lies at a path, from names alone.

    Raises:
        UnknownName: If nothing is there.
        WeightsError: If it is a pickle, a named pipe, a device, or nothing that we know.
    """
    path = Path(path)
    if not path.exists():
        raise UnknownName("model", str(path), (), field="model")
    refuse_special(path)
    if path.is_file():
        return _identify_file(path)
    if (path / "model_index.json").is_file():
        return "pipeline"
    if (path / "mezzotint_run.json").is_file():
        return "run"
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if config.get("format") == "mezzotint-gan":
        return "gan"
    if config.get("format") == "mezzotint-derived":
        return "derived"
    if (path / "MAR-INF" / "MANIFEST.json").is_file():
        return "mar"
    if config:
        raise WeightsError(
            f"{path} holds one part of a model ({config.get('_class_name', 'unknown class')}); "
            "a model is the whole pipeline's folder, with its model_index.json"
        )
    if packed := sorted(path.glob("*.gguf")):
        raise _alone(packed[0])
    raise WeightsError(
        f"{path} holds no model: expected model_index.json (diffusers), mezzotint_run.json "
        "(a training run), or config.json with generator.safetensors (a GAN)"
    )


def _identify_file(path: Path) -> ModelLayout:
    refuse_pickle(path)
    if path.suffix == ".safetensors":
        return "single_file"
    if path.suffix == ".mzt":
        return "archive"
    if path.name.endswith(_MAR_SUFFIXES):
        return "mar"
    if path.suffix == ".gguf":
        raise _alone(path)
    raise WeightsError(
        f"{path} is no model file: expected .safetensors, .mzt or .mar, got {path.suffix or 'none'}"
    )


def _alone(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} holds a denoiser alone, and a model has text encoders and an autoencoder too: "
        f"mezzotint models add NAME {path.name} --base FOLDER takes them from a diffusers folder "
        "of its model; or put it there yourself, in place of the safetensors beside "
        "transformer/config.json, and name that folder"
    )
