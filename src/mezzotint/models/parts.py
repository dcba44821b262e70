"""Parts: the pieces a model is wired from, known before they are built.

A diffusers folder, a single file and loose objects all become the same thing:
configurations as plain data, plus functions that build the torch modules when a
network is first called. Reading a folder checks everything that can be checked
without torch: pickles are refused, sizes must be those the headers promise, and
digests must be those that were expected.
"""

import hashlib
import importlib.util
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.class_defaults import with_class_defaults, with_scheduler_defaults
from mezzotint.models.digests import DIGESTS
from mezzotint.models.reading import refuse_special, refuse_special_below
from mezzotint.plain import is_dict, is_mapping

__all__ = [
    "LORA_HEADER_BYTES",
    "QUANTIZERS",
    "SCALES",
    "STORED_BYTES",
    "Part",
    "Parts",
    "SafetensorsHeader",
    "check_digest",
    "combine_digests",
    "digest_files",
    "find_weights",
    "most_stored",
    "read_header",
    "read_json",
    "refuse_missing_quantizer",
    "refuse_pickle",
    "refuse_stored",
    "refuse_whole_numbers",
    "stored_together",
]

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
STORED_BYTES: Mapping[str, int] = {
    "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
"""Types that weights are stored in, as safetensors spells them, and their bytes."""

SCALES = (".scale_weight", ".weight_scale")
"""Ends of the names of what 8-bit floats are multiplied by, where a file says so."""

QUANTIZERS: dict[str, tuple[str, str]] = {
    "auto-round": ("auto_round", "auto-round"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "gguf": ("gguf", "gguf"),
    "hqq": ("hqq", "hqq"),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "sdnq": ("sdnq", "sdnq"),
    "torchao": ("torchao", "torchao"),
}
"""Module, and name in the package registry, of each way to quantize that needs a package.

Source: the quantizers of diffusers 0.42 and transformers 5.
"""

MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
LORA_HEADER_BYTES = 4 << 20
"""Bytes that the header of a LoRA may have: those of large ones, with what their trainers say
of every tag that they saw, have less than two million, and keys bring theirs along."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One network of a model: what it is, and how to build it.

    Args:
        role: ``"unet"``, ``"transformer"``, ``"vae"``, ``"text_encoder"``, ...
        class_name: Class in diffusers or transformers.
        config: Its configuration as plain data; what it lacks has the class's default.
        build: Makes the torch module with its weights in a given ``torch.dtype``.
        mapped: Gives the module with its weights mapped from their files and in the types that
            they are stored in, told the type to compute in; inside, the files are watched.
            None where that cannot be.
        digest: sha256 of its weights and configuration.
        num_bytes: Bytes of its weights in memory, as stored.
        packed: What most of its weights stay in memory as, ``"Q4_0"`` say, whatever type is
            computed in; "" where they are converted to that.
        stored: Type of most of its weights, see :data:`STORED_BYTES`.
    """

    role: str
    class_name: str
    config: Mapping[str, Any]
    build: Callable[[Any], Any] = field(repr=False)
    mapped: Callable[[Any], AbstractContextManager[Any]] | None = field(default=None, repr=False)
    digest: str = ""
    num_bytes: int = 0
    packed: str = ""
    stored: str = "F32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", with_class_defaults(self.class_name, self.config))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything a family wires into a model.

    Args:
        name: Store name or path, for messages.
        pipeline: Class name of the diffusers pipeline the parts belong to.
        networks: Network parts by role.
        tokenizers: :class:`~mezzotint.models.prompts.Tokens` by role.
        scheduler: The scheduler's configuration, with ``_class_name``; what it lacks has
            the default of its class.
        config: The pipeline's own configuration (``force_zeros...``, ``id2label``).
        digest: sha256 over the content of all files.
        path: Where the files are, "" if in memory.
    """

    name: str
    pipeline: str
    networks: Mapping[str, Part]
    tokenizers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    scheduler: Mapping[str, Any] = field(default_factory=dict[str, Any])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    digest: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        filled = with_scheduler_defaults(self.scheduler, self.pipeline)
        object.__setattr__(self, "scheduler", filled)


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Names, shapes and types of a safetensors file, read without its data.

    ``tensors`` maps a name to ``(dtype, shape)``; ``metadata`` is the free text
    map that the format allows; ``data_bytes`` counts the data alone.
    """

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    metadata: Mapping[str, str]
    data_bytes: int

    @property
    def weights(self) -> tuple[str, ...]:
        """Type of each tensor that is no vector or number."""
        return tuple(dtype for dtype, shape in self.tensors.values() if len(shape) > 1)

    @property
    def stored(self) -> str:
        """The type of most weights."""
        return most_stored(self.weights)


def most_stored(kinds: Iterable[str]) -> str:
    """Return the type that most weights have, ``"F32"`` where no narrower one has more than half.

    Args:
        kinds: Type of each weight, as safetensors spells it.
    """
    counts = Counter(kinds)
    narrow = {kind: n for kind, n in counts.items() if STORED_BYTES.get(kind, 4) < 4}
    if sum(narrow.values()) * 2 <= counts.total():
        return "F32"
    return max(narrow, key=lambda kind: narrow[kind])


def stored_together(kinds: Iterable[str]) -> str:
    """Return the type for a model of several networks: the widest, bfloat16 before float16.

    Where one network was made for the range of bfloat16, float16 would overflow in it.

    Args:
        kinds: ``Part.stored`` of each network.
    """
    found = set(kinds)
    if not found or any(STORED_BYTES.get(kind, 4) == 4 for kind in found):
        return "F32"
    return "F16" if found == {"F16"} else "BF16"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CardError: If the file is missing, is no JSON, or is no object.
        WeightsError: If it is a named pipe, a socket or a device.
    """
    refuse_special(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CardError(f"{path} is not JSON: {error}") from None
    if not is_dict(data):
        raise CardError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data


def refuse_pickle(path: Path) -> None:
    """Refuse a file whose loading could run code.

    Raises:
        WeightsError: If the file's kind is a pickle; says how to convert it.
    """
    if path.suffix.lower() in PICKLES:
        new = path.with_name(re.sub("^pytorch_model", "model", path.stem) + ".safetensors")
        raise WeightsError(
            f"{path} is a pickle, and loading a pickle can run any code it holds; convert it "
            "once, on a machine you can afford to lose: import torch, safetensors.torch; "
            f"state = torch.load({str(path)!r}, weights_only=True); "
            "state = state.get('state_dict', state); "
            "state = {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)}; "
            f"safetensors.torch.save_file(state, {str(new)!r}, {{'format': 'pt'}})"
        )


def refuse_missing_quantizer(config: Mapping[str, Any], *, where: object) -> None:
    """Refuse weights that only a package which is not installed could read.

    Args:
        config: A network's configuration.
        where: Its file, for the message.

    Raises:
        WeightsError: If the package is missing; names it.
    """
    quantized = config.get("quantization_config")
    method = quantized.get("quant_method") if is_mapping(quantized) else None
    if not isinstance(method, str) or method not in QUANTIZERS:
        return
    module, package = QUANTIZERS[method]
    if not _is_there(module):
        raise WeightsError(
            f"{where} says that its weights are quantized by {method}, which needs the package "
            f"{package}, and it is not installed: pip install {package}, or take weights that "
            "are not quantized"
        )


def _is_there(module: str) -> bool:
    """Tell whether a module can be imported; its parent is, and no more."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def refuse_stored(folder: Path, headers: Sequence[SafetensorsHeader], *, where: object) -> None:
    """Refuse what only networks that run step by step here can be stored as.

    Args:
        folder: Of a network of a pipeline that runs as diffusers wrote it.
        headers: Of its files.
        where: The pipeline, for the message.

    Raises:
        WeightsError: If its weights are a GGUF file, or 8-bit floats with scales.
    """
    packed = sorted(folder.glob("*.gguf"))
    scaled = any(name.endswith(SCALES) for header in headers for name in header.tensors)
    if packed or scaled:
        what = packed[0].name if packed else "8-bit weights with scales"
        raise WeightsError(
            f"{folder} holds {what}, and {where} runs whole, as diffusers wrote it: there only "
            "weights that diffusers saved are read. Convert them once with its from_single_file "
            "and save_pretrained"
        )


def refuse_whole_numbers(
    config: Mapping[str, Any], headers: Iterable[SafetensorsHeader], *, where: object
) -> None:
    """Refuse weights of 8-bit whole numbers of which nothing says what they stand for.

    Args:
        config: A network's configuration.
        headers: Of its files; none of the ways to quantize that are read here was found.
        where: Its folder, for the message.

    Raises:
        WeightsError: If there are some; names the first.
    """
    if is_mapping(config.get("quantization_config")):
        return
    for header in headers:
        for name, (kind, shape) in header.tensors.items():
            if kind in ("I8", "U8") and len(shape) > 1:
                raise WeightsError(
                    f"{where}: {name[:200]} is stored as whole numbers ({kind}), and neither "
                    "scales beside it nor a quantization_config in config.json say what they "
                    "stand for; take the files as their quantizer wrote them, or others"
                )


def read_header(path: Path, *, most_bytes: int = MAX_HEADER_BYTES) -> SafetensorsHeader:
    """Read the header of a safetensors file and check it against the file's size.

    Args:
        path: The file.
        most_bytes: Bytes that the header may have.

    Raises:
        WeightsError: If the file is missing, is no safetensors file, says of a tensor what
            cannot be, or is shorter or longer than its header says.
    """
    refuse_pickle(path)
    refuse_special(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES + 1
            text = stream.read(length) if length <= most_bytes else b""
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}") from None
    if most_bytes < length <= min(size, MAX_HEADER_BYTES):
        raise WeightsError(
            f"{path} has a safetensors header of {length} bytes, and at most {most_bytes} are "
            "read; save it again with less metadata"
        )
    if text[:1] != b"{" or len(text) != length:
        raise WeightsError(
            f"{path} is not a safetensors file or its header is cut off ({size} bytes found)"
        )
    try:
        found = _header_of(json.loads(text))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise WeightsError(
            f"{path} has a safetensors header that cannot be read: {error}"
        ) from None
    expected = 8 + length + found.data_bytes
    if size != expected:
        raise WeightsError(
            f"{path} is corrupt: expected {expected} bytes by its own header, found {size}; "
            "copy or download it again"
        )
    return found


def _header_of(entries: dict[str, Any]) -> SafetensorsHeader:
    """Return what the JSON of a header says.

    Raises:
        ValueError, KeyError, TypeError: If it says what cannot be.
    """
    said = dict(entries.pop("__metadata__", {}))
    metadata = {str(key): str(text) for key, text in said.items()}
    for text in (*metadata, *metadata.values(), *entries):
        text.encode()  # JSON can spell halves of characters, which nobody can be told
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    data_bytes = 0
    for name, entry in entries.items():
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str):
            raise ValueError(f"dtype of {name[:100]!r} must be text, got {kind!r:.100}")
        kind.encode()
        if not _are_counts(shape):
            raise ValueError(f"shape of {name[:100]!r} must be numbers of rows, got {shape!r:.100}")
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError(
                f"data_offsets of {name[:100]!r} must be where it begins and ends, got "
                f"{offsets!r:.100}"
            )
        tensors[name] = (kind, tuple(shape))
        data_bytes = max(data_bytes, offsets[1])
    return SafetensorsHeader(tensors, metadata, data_bytes)


def _are_counts(value: Any) -> bool:
    """Whether a value is a list of whole numbers that a computer counts with."""
    return isinstance(value, list) and all(
        type(n) is int and 0 <= n < 1 << 63 for n in cast("list[Any]", value)
    )


def find_weights(folder: Path, *, variant: str | None = None) -> tuple[list[Path], str | None]:
    """Find the safetensors files of one network's folder.

    Args:
        folder: Folder with a ``config.json`` and weights.
        variant: ``"fp16"`` and the like to insist on one; None takes the plain
            files, or a variant if there is nothing else.

    Returns:
        The files (several if the weights are sharded, the index not among them)
        and the variant they are of.

    Raises:
        WeightsError: If there are none, a shard is missing or not the one that its index is
            of, or there are only pickles.
    """
    refuse_special_below(folder)
    names = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
    stems = ("diffusion_pytorch_model", "model")
    found = [n for n in names if re.fullmatch(rf"({'|'.join(stems)})(\..+)?\.safetensors", n)]
    found += [
        n
        for n in names
        if re.fullmatch(rf"({'|'.join(stems)})\.safetensors\.index(\..+)?\.json", n)
    ]
    variants = {_variant(name): name for name in sorted(found, key=lambda n: n.endswith("json"))}
    variants = {kind: name for kind, name in variants.items() if "-of-" not in name}
    chosen = variant if variant is not None or None in variants else next(iter(variants), None)
    if chosen not in variants:
        pickles = [path for path in names.values() if path.suffix in PICKLES]
        if pickles and not variants:
            refuse_pickle(pickles[0])
        wanted = f"{variant} weights" if variant else "weights"
        raise WeightsError(
            f"{wanted} missing: {folder} holds no {stems[0]}.safetensors or {stems[1]}.safetensors"
            + (f", only the variants {', '.join(map(str, variants))}" if variants else "")
        )
    name = variants[chosen]
    if not name.endswith(".json"):
        return [names[name]], chosen
    places = read_json(names[name]).get("weight_map")
    listed = {str(k): str(v) for k, v in places.items()} if is_mapping(places) else {}
    shards = sorted(set(listed.values()))
    if missing := [shard for shard in shards if shard not in names]:
        raise WeightsError(f"weights missing: {folder / missing[0]}, which {name} lists")
    held = {shard: read_header(names[shard]).tensors for shard in shards}
    for tensor, shard in listed.items():
        if tensor not in held[shard]:
            raise WeightsError(
                f"{names[shard]} does not hold {tensor[:200]}, which {name} says it does; copy or "
                "download both again"
            )
    return [names[shard] for shard in shards], chosen


def _variant(name: str) -> str | None:
    """Return ``fp16`` of ``model.fp16.safetensors``, None where there is none."""
    middle = re.sub(r"^(diffusion_pytorch_model|model)|\.safetensors|\.index|\.json$", "", name)
    return middle.strip(".") or None


def check_digest(path: Path, *, expected: str | None) -> str:
    """Return a file's sha256 and compare it with what was expected.

    A file of the Hub's cache is a link to a blob named after its sha256, which
    then is what is expected.

    Raises:
        WeightsError: If the digests differ; names both.
    """
    found = DIGESTS.digest(path)
    blob = path.resolve().name
    wanted = expected or (blob if re.fullmatch(r"[0-9a-f]{64}", blob) else found)
    if wanted != found:
        raise WeightsError(
            f"{path} is corrupt: expected sha256 {wanted}, found {found}; copy or download it again"
        )
    return found


def digest_files(
    root: Path, files: Iterable[Path], *, expected: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the sha256 of each file by its path inside ``root``, checked.

    Raises:
        WeightsError: If a digest is not the expected one, or an expected file
            is missing.
    """
    expected = dict(expected or {})
    found: dict[str, str] = {}
    for path in sorted(set(files)):
        name = path.relative_to(root).as_posix()
        found[name] = check_digest(path, expected=expected.pop(name, None))
    for name, digest in expected.items():
        if not (root / name).is_file():
            raise WeightsError(f"{root / name} is missing, expected with sha256 {digest}")
        found[name] = check_digest(root / name, expected=digest)
    return found


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return one sha256 over named digests, independent of their order."""
    lines = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
