"""Sources: the data of a run, opened, checked and reported."""

import math
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.array_data import ArrayData
from mezzotint.train.data.arrays import ArrayLayout
from mezzotint.train.data.dataset import DataReport, Dataset
from mezzotint.train.data.pictures import load_pictures

__all__ = ["array_layout", "data_kind", "load_data"]

_ARRAY_SUFFIXES = (".npy", ".npz", ".zarr")


def array_layout(config: TrainConfig) -> ArrayLayout:
    """Return what the axes of an array mean to the network that is asked for."""
    kinds: dict[str, ArrayLayout] = {"mlp": "points", "unet1d": "series"}
    return kinds.get(config.network.kind, "fields")


def data_kind(config: TrainConfig) -> str:
    """Look at the path and say what it holds.

    Raises:
        InvalidRequest: If it does not exist or holds nothing that is known.
    """
    path = Path(config.data.path)
    if not path.exists():
        raise InvalidRequest(f"data.path {path} does not exist", field="data.path", value=str(path))
    if config.data.kind != "auto":
        return config.data.kind
    if path.suffix in _ARRAY_SUFFIXES or (path / "zarr.json").exists():
        return "arrays"
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return "parquet"
    if path.suffix == ".tar" or (path.is_dir() and any(path.glob("*.tar"))):
        return "webdataset"
    if path.is_dir() and any(child.is_dir() for child in path.iterdir()):
        return "classes" if config.conditioning.kind == "class" else "images"
    if path.is_dir():
        return "images"
    raise InvalidRequest(
        f"data.path {path.name} is nothing that is known: a folder of pictures, .parquet, .tar, "
        ".npy, .npz or Zarr",
        field="data.path",
        value=str(path),
    )


def load_data(config: TrainConfig) -> tuple[Dataset, DataReport]:
    """Open the data of a run, check it, and report what it is.

    Raises:
        InvalidRequest: If the data is missing, empty, broken, of mixed sizes,
            lacks the captions or classes that the run needs, or is smaller than
            a batch.
    """
    if data_kind(config) == "arrays":
        data: Any = ArrayData(config, array_layout(config))
        report = data.report()
    else:
        data, report = load_pictures(config, data_kind(config))
    _check(config, data)
    return data, report


def _check(config: TrainConfig, data: Dataset) -> None:
    """Refuse data that the run cannot use."""
    count = len(data.buckets)
    if config.conditioning.kind == "class" and not data.labels:
        raise InvalidRequest(
            'conditioning.kind "class" needs labels: class folders, data.label_column or '
            "data.labels",
            field="conditioning.kind",
        )
    if config.conditioning.kind == "text":
        missing = [k for k in range(count) if not data.captions or not data.captions[k]]
        if missing:
            raise InvalidRequest(
                f'conditioning.kind "text" needs a caption for every picture, {len(missing)} of '
                f"{count} have none, first {data.name(missing[0])} (NAME.txt beside NAME.png, "
                "metadata.jsonl, or data.caption_column)",
                field="data.caption_column",
            )
    kept = int(count * config.data.held_out)
    if config.data.held_out and not kept:
        least = math.ceil(1e4 / count) / 1e4
        raise InvalidRequest(
            f"data.held_out must keep at least one of {count} samples, got "
            f"{config.data.held_out:g}, which keeps none",
            field="data.held_out",
            value=config.data.held_out,
            allowed=f"{least:g} to 0.5" if count > 1 else "0",
        )
    usable = count - kept
    if config.loop.batch_size > usable:
        raise InvalidRequest(
            f"loop.batch_size must be at most the {usable} samples there are to train on, got "
            f"{config.loop.batch_size}",
            field="loop.batch_size",
            value=config.loop.batch_size,
            allowed=f"1 to {usable}",
        )
