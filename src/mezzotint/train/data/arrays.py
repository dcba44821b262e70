"""Arrays of any kind as training data: points, series and fields.

``.npy``, ``.npz`` and Zarr, read in place; the first axis counts samples. What
the other axes mean follows from the network: points (N, D), series (N, L) or
(N, C, L), fields (N, H, W) or (N, C, H, W). Values are normalised with
statistics of the whole array, which belong to the model from then on.

Dimensions: N samples, D features, C channels, L length, H and W rows and columns.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.runs import Normalisation
from mezzotint.train.config.model import DataConfig

__all__ = [
    "ArrayLayout",
    "check_values",
    "measure",
    "open_array",
    "open_class_names",
    "open_labels",
    "shape_of",
]

ArrayLayout = Literal["points", "series", "fields"]
_CHUNK = 4096
_AXES = {
    "points": {2: "(N, D)"},
    "series": {2: "(N, L)", 3: "(N, C, L)"},
    "fields": {3: "(N, H, W)", 4: "(N, C, H, W)"},
}


def _pick(source: Any, names: list[str], wanted: str, path: Path, field: str) -> Any:
    """Return the named array of a collection, or its only one."""
    if wanted:
        if wanted not in names:
            raise InvalidRequest(
                f"{field} {wanted!r} is not in {path.name}, which holds {', '.join(names)}",
                field=field,
                value=wanted,
                allowed=", ".join(names),
            )
        return source[wanted]
    if len(names) != 1:
        raise InvalidRequest(
            f"{path.name} holds {len(names)} arrays, name one with {field}: {', '.join(names)}",
            field=field,
            allowed=", ".join(names),
        )
    return source[names[0]]


def _open(path: Path, wanted: str, field: str) -> Any:
    """Open one array without reading it all."""
    if not path.exists():
        raise InvalidRequest(f"data.path {path} does not exist", field="data.path", value=str(path))
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            archive = np.load(path, allow_pickle=False)
            return _pick(archive, list(archive.files), wanted, path, field)
        return _open_zarr(path, wanted, field)
    except InvalidRequest:
        raise
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InvalidRequest(
            f"data.path {path} cannot be read as an array: {error}", field="data.path"
        ) from None


def _open_zarr(path: Path, wanted: str, field: str) -> Any:
    """Open a Zarr array, or an array of a Zarr group."""
    try:
        import zarr
    except ImportError:
        raise InvalidRequest(
            f"data.path {path.name} looks like Zarr, which needs the package zarr "
            "(pip install mezzotint[train])",
            field="data.path",
        ) from None
    store = zarr.open(str(path), mode="r")
    if isinstance(store, zarr.Array):
        return store
    return _pick(store, sorted(store.array_keys()), wanted, path, field)


def open_array(config: DataConfig, layout: ArrayLayout) -> Any:
    """Open the array of a run and check that its axes fit the network.

    Returns:
        An array-like that reads slices of its first axis.

    Raises:
        InvalidRequest: If it is missing, not numeric, empty, or of the wrong rank.
    """
    array = _open(Path(config.path), config.array, "data.array")
    kind = np.dtype(array.dtype).kind
    if kind not in "fiub":
        raise InvalidRequest(
            f"data.path must hold numbers, {Path(config.path).name} holds {array.dtype}",
            field="data.path",
        )
    allowed = _AXES[layout]
    if len(array.shape) not in allowed:
        raise InvalidRequest(
            f"data.path must have the axes {' or '.join(allowed.values())} for {layout}, "
            f"got shape {tuple(array.shape)}",
            field="data.path",
            value=str(tuple(array.shape)),
            allowed=" or ".join(allowed.values()),
        )
    if 0 in array.shape:
        raise InvalidRequest(
            f"data.path is empty: {Path(config.path).name} has shape {tuple(array.shape)}",
            field="data.path",
        )
    return array


def open_labels(config: DataConfig, count: int) -> np.ndarray | None:
    """Open the integer class labels, if there are any. Shape (N,), int64.

    Raises:
        InvalidRequest: If there is not one whole non-negative number per sample.
    """
    if not config.labels:
        return None
    path = Path(config.path)
    if path.suffix == ".npy":  # beside it, as a file of its own
        path = path.with_name(config.labels)
    labels = np.asarray(_open(path, config.labels if path.suffix != ".npy" else "", "data.labels"))
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise InvalidRequest(
            f"data.labels must be {count} whole numbers from 0, one per sample, got "
            f"{labels.dtype} of shape {labels.shape}",
            field="data.labels",
        )
    return labels.astype(np.int64)


def open_class_names(config: DataConfig, count: int) -> tuple[str, ...]:
    """Open the names of the classes; their numbers where there are none.

    Args:
        config: The data of the run.
        count: Classes that the labels speak of.

    Raises:
        InvalidRequest: If there is not one text for each class.
    """
    if not config.class_names:
        return tuple(str(k) for k in range(count))
    path = Path(config.path)
    if path.suffix == ".npy":  # beside it, as a file of its own
        path = path.with_name(config.class_names)
    wanted = config.class_names if path.suffix != ".npy" else ""
    names = np.asarray(_open(path, wanted, "data.class_names"))
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) < count:
        raise InvalidRequest(
            f"data.class_names must be {count} texts, one for each class, got {names.dtype} of "
            f"shape {names.shape}",
            field="data.class_names",
        )
    return tuple(str(name) for name in names)


def check_values(config: DataConfig, shape: tuple[int, ...], norm: Normalisation) -> None:
    """Refuse channels without a name where others have one, and sound beyond full scale.

    Raises:
        InvalidRequest: Says what came.
    """
    if config.channel_names and len(config.channel_names) != shape[0]:
        raise InvalidRequest(
            f"data.channel_names must name the {shape[0]} channels of the data, got "
            f"{len(config.channel_names)}",
            field="data.channel_names",
        )
    low, high = min(norm.low), max(norm.high)
    if config.sample_rate and (low < -1 or high > 1):
        raise InvalidRequest(
            "data.sample_rate says that the series are sound, whose values are fractions of full "
            f"scale, -1 to 1, got {low:g} to {high:g}; divide them (whole numbers of 16 bits by "
            "32768)",
            field="data.sample_rate",
        )


def shape_of(array: Any, layout: ArrayLayout) -> tuple[int, ...]:
    """Return the shape of one sample as the network sees it, channels first."""
    shape = tuple(int(side) for side in array.shape[1:])
    if layout == "points":
        return shape
    return shape if len(shape) == (2 if layout == "series" else 3) else (1, *shape)


def measure(
    array: Any, layout: ArrayLayout, kind: Literal["standard", "range", "none"]
) -> Normalisation:
    """Measure the statistics of every channel and refuse values that are not finite in float32.

    Two passes in float64 over pieces, so that large files need little memory.

    Raises:
        InvalidRequest: If a value is NaN, infinite, or larger than float32 holds; names the
            first sample.
    """
    shape = shape_of(array, layout)
    total = np.zeros(shape[0])
    square = np.zeros(shape[0])
    low, high = np.full(shape[0], np.inf), np.full(shape[0], -np.inf)
    count = 0
    for piece in _pieces(array, shape):
        bad = _is_bad(piece)
        if bad.any():
            what = "beyond float32" if np.isfinite(piece[bad]).all() else "not finite"
            raise InvalidRequest(
                f"data.path holds values that are {what}: sample "
                f"{count + int(bad.argmax())} is the first of {_count_bad(array, shape)}; "
                "leave such samples out or fill them in",
                field="data.path",
            )
        count += len(piece)
        flat = piece.reshape(len(piece), shape[0], -1)
        total += flat.sum((0, 2))
        low, high = np.minimum(low, flat.min((0, 2))), np.maximum(high, flat.max((0, 2)))
    size = count * int(np.prod(shape[1:], dtype=np.int64))
    mean = total / size
    if kind == "standard":
        for piece in _pieces(array, shape):
            flat = piece.reshape(len(piece), shape[0], -1)
            square += ((flat - mean[:, None]) ** 2).sum((0, 2))
        shift, scale = mean, np.sqrt(square / size)
    elif kind == "range":
        shift, scale = (low + high) / 2, (high - low) / 2
    else:
        shift, scale = np.zeros(shape[0]), np.ones(shape[0])
    scale = np.where(scale > 0, scale, 1.0)  # a constant channel stays what it is
    return Normalisation(
        kind=kind,
        shift=tuple(shift.tolist()),
        scale=tuple(scale.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
    )


def _count_bad(array: Any, shape: tuple[int, ...]) -> int:
    """Count the samples with a value that is not finite in float32."""
    return sum(int(_is_bad(piece).sum()) for piece in _pieces(array, shape))


def _is_bad(piece: np.ndarray) -> np.ndarray:
    """Tell which samples hold a value that is not finite in float32, which networks read. (n,)."""
    # The largest of a sample is NaN where one of its values is.
    largest: np.ndarray = np.abs(piece).reshape(len(piece), -1).max(1, initial=0.0)
    return np.logical_not(largest <= np.finfo(np.float32).max)


def _pieces(array: Any, shape: tuple[int, ...]) -> Any:
    """Read an array in pieces of float64, (n, *shape)."""
    for start in range(0, array.shape[0], _CHUNK):
        piece = np.asarray(array[start : start + _CHUNK], dtype=np.float64)
        yield piece.reshape(len(piece), *shape)
