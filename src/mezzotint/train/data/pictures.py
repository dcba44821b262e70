"""Pictures as training data: folders, class folders, Parquet, WebDataset shards.

Every picture is opened once before training: what is broken is named, equal
ones are found by digest, sizes are counted. Decoded pictures are kept in
memory up to a limit and read again beyond it.

Dimensions: B pictures, C channels, H and W pixels.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mezzotint.errors import ImageError, InvalidRequest
from mezzotint.images.codec import decode_image
from mezzotint.models.families.runs import DataKind, Normalisation
from mezzotint.plain import is_dict
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.config.model import DataConfig
from mezzotint.train.data.dataset import DataReport
from mezzotint.types import Size

__all__ = ["Picture", "PictureData", "bucket_sizes", "find_pictures", "load_pictures"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png", "webp", "jpeg")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture that was found: where, how to read it, what is said about it."""

    name: str
    read: Callable[[], bytes]
    caption: str = ""
    label: str = ""


def find_pictures(config: DataConfig, kind: str) -> list[Picture]:
    """List the pictures of a source, in a fixed order.

    Raises:
        InvalidRequest: If there is none, or the source cannot be read.
    """
    finders = {
        "images": _find_in_folder,
        "classes": _find_in_classes,
        "parquet": _find_in_parquet,
        "webdataset": _find_in_tars,
    }
    found = list(finders[kind](config, Path(config.path)))
    if not found:
        raise InvalidRequest(
            f"data.path {config.path} holds no pictures ({', '.join(_SUFFIXES)})",
            field="data.path",
            value=config.path,
        )
    return found


def _files(folder: Path) -> list[Path]:
    """List the pictures below a folder, sorted by name."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    return sorted(path for path in found if path.is_file())


def _find_in_folder(config: DataConfig, folder: Path) -> Iterator[Picture]:
    """Find pictures with ``metadata.jsonl`` or ``NAME.txt`` captions."""
    described = _read_metadata(folder / "metadata.jsonl")
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        about = described.get(name, {})
        caption = str(about.get(config.caption_column, "")).strip()
        sidecar = path.with_suffix(".txt")
        if not caption and sidecar.is_file():
            caption = _as_text(sidecar.read_bytes(), sidecar.name).strip()
        label = str(about.get(config.label_column, "")) if config.label_column else ""
        yield Picture(name, path.read_bytes, caption, label)
    missing = [name for name in described if not (folder / name).is_file()]
    if missing:
        raise InvalidRequest(
            f"metadata.jsonl names {len(missing)} pictures that are not there, first {missing[0]}",
            field="data.path",
        )


def _as_text(data: bytes, name: str) -> str:
    """Read a caption or a description, with or without a byte order mark.

    Raises:
        InvalidRequest: If it is no UTF-8; names the file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"data.path holds a text that is no UTF-8: {name}, byte {error.start}",
            field="data.path",
        ) from None


def _read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """Read ``metadata.jsonl``: one object a line with ``file_name``."""
    described: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return described
    # Lines of JSON end at "\n" alone: a caption may hold what else Python takes for an end.
    for number, line in enumerate(_as_text(path.read_bytes(), path.name).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            described[str(entry["file_name"])] = entry
        except (ValueError, KeyError, TypeError):
            raise InvalidRequest(
                f'metadata.jsonl line {number} must be an object with "file_name", got '
                f"{line[:60]!r}",
                field="data.path",
            ) from None
    return described


def _find_in_classes(config: DataConfig, folder: Path) -> Iterator[Picture]:
    """Find pictures in one folder per class."""
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in _files(child):
            yield Picture(path.relative_to(folder).as_posix(), path.read_bytes, "", child.name)


def _find_in_parquet(config: DataConfig, path: Path) -> Iterator[Picture]:
    """Find pictures in the rows of Parquet files, as bytes or ``{"bytes": ...}``."""
    try:
        from pyarrow import Table, parquet
    except ImportError:
        raise InvalidRequest(
            "data.path is Parquet, which needs the package pyarrow (pip install mezzotint[train])",
            field="data.path",
        ) from None
    for file in [path] if path.is_file() else sorted(path.glob("*.parquet")):
        try:
            table = parquet.read_table(file, memory_map=True)
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"data.path {file.name} cannot be read as Parquet: {error}", field="data.path"
            ) from None
        names = table.column_names
        column = config.image_column or next((n for n in _IMAGE_COLUMNS if n in names), "")
        if column not in names:
            raise InvalidRequest(
                f"data.image_column {column or 'is needed: no usual name'} is not in {file.name}, "
                f"which has {', '.join(names)}",
                field="data.image_column",
                allowed=", ".join(names),
            )
        for row in range(table.num_rows):

            def read(table: Table = table, row: int = row, column: str = column) -> bytes:
                value = table[column][row].as_py()
                return value["bytes"] if is_dict(value) else value

            def text(key: str, table: Table = table, row: int = row) -> str:
                value = table[key][row].as_py() if key and key in table.column_names else None
                return "" if value is None else str(value).strip()

            yield Picture(
                f"{file.name}:{row}", read, text(config.caption_column), text(config.label_column)
            )


def _find_in_tars(config: DataConfig, path: Path) -> Iterator[Picture]:
    """Find pictures in WebDataset shards: files that share a key are one sample."""
    import tarfile

    for shard in [path] if path.is_file() else sorted(path.glob("*.tar")):
        samples: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    if member.isfile():
                        folder, _, base = member.name.rpartition("/")
                        key, _, suffix = base.partition(".")
                        place = (member.offset_data, member.size)
                        samples.setdefault(f"{folder}/{key}", {})[suffix.lower()] = place
        except (OSError, tarfile.TarError) as error:
            raise InvalidRequest(
                f"data.path {shard.name} cannot be read as a tar: {error}", field="data.path"
            ) from None
        for key, parts in samples.items():
            suffix = config.image_column or next((s[1:] for s in _SUFFIXES if s[1:] in parts), "")
            if suffix not in parts:
                continue
            yield _tar_picture(config, shard, key.lstrip("/"), suffix, parts)


def _tar_picture(
    config: DataConfig, shard: Path, key: str, suffix: str, parts: dict[str, tuple[int, int]]
) -> Picture:
    """Describe one sample of a shard; bytes are read when they are needed."""

    def slice_of(name: str) -> bytes:
        offset, size = parts[name]
        with shard.open("rb") as stream:
            stream.seek(offset)
            return stream.read(size)

    about: dict[str, Any] = {}
    if "json" in parts:
        try:
            about = json.loads(slice_of("json"))
        except ValueError:
            about = {}
    caption = slice_of("txt").decode("utf-8", "replace") if "txt" in parts else ""
    caption = caption or str(about.get(config.caption_column, ""))
    label = _as_text(slice_of("cls"), f"{shard.name}:{key}.cls").strip() if "cls" in parts else ""
    if config.label_column:
        label = str(about.get(config.label_column, label))
    return Picture(f"{shard.name}:{key}", lambda: slice_of(suffix), caption.strip(), label)


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """Return sizes of about equal area, the square first, up to 2:1 and 1:2."""
    area = resolution * resolution
    found = {Size(resolution - resolution % multiple, resolution - resolution % multiple)}
    side = multiple
    while side <= 2 * resolution:
        other = max(multiple, int(area / side) // multiple * multiple)
        if max(side, other) <= 2 * min(side, other):
            found |= {Size(side, other), Size(other, side)}
        side += multiple
    return sorted(found, key=lambda s: (abs(s.width - s.height), s.width))


def _nearest(size: Size, choices: Sequence[Size]) -> int:
    """Return the bucket whose aspect is nearest."""
    aspect = np.log(size.width / size.height)
    return min(
        range(len(choices)),
        key=lambda k: (abs(np.log(choices[k].width / choices[k].height) - aspect), k),
    )


def _fit(pixels: np.ndarray, size: Size, how: str) -> np.ndarray:
    """Bring a picture to a size: scale and crop the middle, or scale and pad with white."""
    picture = Image.fromarray(pixels)
    if picture.size == size:
        return pixels
    scales = (size.width / picture.width, size.height / picture.height)
    scale = min(scales) if how == "pad" else max(scales)
    wide = max(1, round(picture.width * scale))
    high = max(1, round(picture.height * scale))
    scaled = picture.resize((wide, high), Image.Resampling.LANCZOS)
    left, top = (wide - size.width) // 2, (high - size.height) // 2
    if how == "pad":
        canvas = Image.new("RGB", size, (255, 255, 255))
        canvas.paste(scaled, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(scaled.crop((left, top, left + size.width, top + size.height)))


class PictureData:
    """Pictures as a data set; see :class:`mezzotint.train.data.dataset.Dataset`.

    Args:
        config: The data of the run.
        pictures: Usable pictures.
        sizes: Size of each bucket.
        buckets: Bucket of each picture.
    """

    kind: DataKind = "pixels"

    def __init__(
        self,
        config: DataConfig,
        pictures: Sequence[Picture],
        sizes: Sequence[Size],
        buckets: Sequence[int],
    ) -> None:
        self._config, self._pictures, self._sizes = config, list(pictures), list(sizes)
        self.buckets = list(buckets)
        common = Counter(self.buckets).most_common(1)[0][0]
        self.shape = (config.channels, self._sizes[common].height, self._sizes[common].width)
        self.captions = [p.caption for p in pictures] if any(p.caption for p in pictures) else []
        names = sorted({p.label for p in pictures if p.label}, key=_label_order)
        self.class_names = tuple(names)
        order = {name: k for k, name in enumerate(names)}
        whole = bool(names) and all(p.label for p in pictures)
        self.labels = [order[p.label] for p in pictures] if whole else []
        self.normalisation = Normalisation()
        self._cache: dict[int, np.ndarray] = {}
        self._cached_bytes = 0

    def keep(self, index: int, pixels: np.ndarray) -> np.ndarray:
        """Fit a decoded picture to its bucket and keep it while there is room."""
        fitted = _fit(pixels, self._sizes[self.buckets[index]], self._config.fit)
        if self._config.channels == 1:
            fitted = np.asarray(Image.fromarray(fitted).convert("L"))[..., None]
        fitted = np.ascontiguousarray(fitted.transpose(2, 0, 1))
        if self._cached_bytes + fitted.nbytes <= self._config.cache_mb << 20:
            self._cache[index] = fitted
            self._cached_bytes += fitted.nbytes
        return fitted

    def name(self, index: int) -> str:
        """Return the file name of a picture."""
        return self._pictures[index].name

    def read(self, indices: Sequence[int]) -> Tensor:
        """Return pictures in [-1, 1]. Shape (B, C, H, W), float32."""
        rows: list[np.ndarray] = []
        for index in indices:
            pixels = self._cache.get(index)
            if pixels is None:
                pixels = self.keep(index, decode_image(self._pictures[index].read(), field="data"))
            rows.append(pixels)
        return torch.as_tensor(np.stack(rows)).float() / 127.5 - 1


def _label_order(label: str) -> tuple[int, float, str]:
    """Sort labels that are numbers as numbers."""
    return (0, float(label), "") if label.isdecimal() else (1, 0.0, label)


def load_pictures(config: TrainConfig, kind: str) -> tuple[PictureData, DataReport]:
    """Find, open and check all pictures.

    Raises:
        InvalidRequest: If there is none, or some are broken or of another size
            and the configuration does not say what to do with them.
    """
    options = config.data
    found = find_pictures(options, kind)
    usable: list[Picture] = []
    decoded: list[tuple[Size, np.ndarray | None]] = []
    broken: list[str] = []
    digests: dict[bytes, list[str]] = {}
    room = options.cache_mb << 20
    for picture in found:
        try:
            data = picture.read()
            pixels = decode_image(data, field=picture.name)
        except (ImageError, OSError, TypeError) as error:
            broken.append(f"{picture.name}: {str(error).removeprefix(f'{picture.name} ')}")
            continue
        digests.setdefault(hashlib.sha256(data).digest(), []).append(picture.name)
        room -= pixels.nbytes
        usable.append(picture)
        size = Size(pixels.shape[1], pixels.shape[0])
        decoded.append((size, pixels if room > 0 else None))
    _refuse_broken(options, broken, len(usable))
    sizes = [size for size, _ in decoded]
    choices = _choose_sizes(options, sizes, [picture.name for picture in usable])
    buckets = [_nearest(size, choices) if len(choices) > 1 else 0 for size in sizes]
    data_set = PictureData(options, usable, choices, buckets)
    for index, (_, pixels) in enumerate(decoded):
        if pixels is not None:
            data_set.keep(index, pixels)
    report = DataReport(
        kind="pictures",
        count=len(usable),
        sizes={str(size): n for size, n in Counter(sizes).most_common()},
        captions=sum(bool(p.caption) for p in usable),
        classes=dict(sorted(Counter(p.label for p in usable if p.label).items())),
        duplicates=tuple(tuple(names) for names in digests.values() if len(names) > 1),
        broken=tuple(broken),
        warnings=tuple(_warn(options, sizes, choices)),
    )
    return data_set, report


def _refuse_broken(options: DataConfig, broken: list[str], usable: int) -> None:
    """Name broken pictures, unless they shall be skipped and some are left."""
    if broken and (options.on_broken == "refuse" or not usable):
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise InvalidRequest(
            f"data.path holds {len(broken)} broken pictures: {'; '.join(broken[:3])}{more}; "
            'remove them or set data.on_broken = "skip"',
            field="data.path",
        )


def _choose_sizes(options: DataConfig, sizes: list[Size], names: list[str]) -> list[Size]:
    """Return the sizes that pictures are brought to."""
    if options.fit == "buckets":
        assert options.resolution is not None  # noqa: S101  (checked by DataConfig)
        return bucket_sizes(options.resolution, options.bucket_multiple)
    common = Counter(sizes).most_common(1)[0][0]
    if options.fit == "exact":
        if options.resolution is not None:
            common = Size(options.resolution, options.resolution)
        odd = [k for k, size in enumerate(sizes) if size != common]
        if odd:
            what = "mixed sizes" if options.resolution is None else "other sizes than resolution"
            raise InvalidRequest(
                f"data.path holds pictures of {what}: {len(odd)} of {len(sizes)} are not "
                f"{common}, first {names[odd[0]]} with {sizes[odd[0]]}; set data.fit to "
                '"crop", "pad" or "buckets"',
                field="data.fit",
                allowed="crop, pad, buckets",
            )
        return [common]
    side = options.resolution or min(common)
    return [Size(side, side)]


def _warn(options: DataConfig, sizes: list[Size], choices: list[Size]) -> Iterator[str]:
    """Say what deserves a look."""
    if options.fit != "buckets":
        small = sum(size.width < choices[0].width or size.height < choices[0].height
                    for size in sizes)  # fmt: skip
        if small:
            yield f"{small} pictures are smaller than {choices[0]} and were enlarged"
