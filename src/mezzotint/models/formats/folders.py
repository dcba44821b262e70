"""Folders: a diffusers folder, or a loaded pipeline, becomes a Model.

Reading a folder builds nothing: configurations are read, weights are checked,
and a network comes into memory when it is first called.
"""

import contextlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.base import Model
from mezzotint.models.digests import DIGESTS, own_weights
from mezzotint.models.exported import LIBRARIES
from mezzotint.models.formats.filling import LeavingPages, from_folder
from mezzotint.models.formats.fit import misfits
from mezzotint.models.formats.packed_files import (
    Stored,
    build_packed,
    find_stored,
    plain_state,
    read_stored,
)
from mezzotint.models.formats.processors import read_image_settings
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.parts import (
    Part,
    Parts,
    combine_digests,
    digest_files,
    most_stored,
    read_header,
    read_json,
    refuse_missing_quantizer,
    refuse_whole_numbers,
    stored_together,
)
from mezzotint.models.prompts import load_tokens
from mezzotint.plain import is_list
from mezzotint.registry import Registry

__all__ = [
    "FAMILIES",
    "assemble",
    "load_pipeline",
    "native_pipeline",
    "read_part",
    "read_parts",
]

INDEX = "model_index.json"
ORIGIN, LEVELS = "_name_or_path", "sample_sigmas"
TOKENS = ("tokenizer", "processor")  # a processor brings a tokenizer along
UNUSED_ROLES = ("safety_checker", "feature_extractor", "image_encoder")
KEPT_SUFFIXES = (".json", ".txt", ".model")
_STORED_AS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class _Folder:
    """One network's folder: library, class, files and the variant they are of."""

    library: str
    class_name: str
    path: Path
    weights: tuple[Path, ...]
    variant: str | None
    stored: Stored | None = None


def _sd(parts: Parts, placement: Placement) -> Model:
    from mezzotint.models.families.sd import LatentUNetModel

    return LatentUNetModel(parts, placement)


def _sd3(parts: Parts, placement: Placement) -> Model:
    from mezzotint.models.families.sd3 import SD3Model

    return SD3Model(parts, placement)


def _flux(parts: Parts, placement: Placement) -> Model:
    from mezzotint.models.families.flux import FluxModel

    return FluxModel(parts, placement)


def _flow(parts: Parts, placement: Placement) -> Model:
    from mezzotint.models.families.flows.model import FlowModel
    from mezzotint.models.families.flows.table import FLOW_FAMILIES

    return FlowModel(parts, placement, FLOW_FAMILIES[parts.pipeline])


def _pixart(parts: Parts, placement: Placement) -> Model:
    from mezzotint.models.families.pixart import PixArtModel

    return PixArtModel(parts, placement)


def _unconditional(parts: Parts, placement: Placement) -> Model:
    from mezzotint.models.families.unconditional import PixelUNetModel

    return PixelUNetModel(parts, placement)


def _dit(parts: Parts, placement: Placement) -> Model:
    from mezzotint.models.families.dit import DiTModel

    return DiTModel(parts, placement)


Family = Callable[[Parts, Placement], Model]
"""Makes a model of the parts of a folder; no weights are read before they are called."""

FAMILIES: Registry[Family] = Registry(
    "pipeline",
    {
        "ChromaImg2ImgPipeline": _flow,
        "ChromaInpaintPipeline": _flow,
        "ChromaPipeline": _flow,
        "DDIMPipeline": _unconditional,
        "DDPMPipeline": _unconditional,
        "DiTPipeline": _dit,
        "Flux2KleinPipeline": _flow,
        "Flux2Pipeline": _flow,
        "FluxPipeline": _flux,
        "LatentConsistencyModelPipeline": _sd,
        "Lumina2Pipeline": _flow,
        "Lumina2Text2ImgPipeline": _flow,
        "PixArtAlphaPipeline": _pixart,
        "PixArtSigmaPipeline": _pixart,
        "QwenImage21Pipeline": _flow,
        "QwenImageImg2ImgPipeline": _flow,
        "QwenImageInpaintPipeline": _flow,
        "QwenImagePipeline": _flow,
        "SanaPipeline": _flow,
        "StableDiffusion3Pipeline": _sd3,
        "StableDiffusionImg2ImgPipeline": _sd,
        "StableDiffusionPipeline": _sd,
        "StableDiffusionXLPipeline": _sd,
        "ZImageImg2ImgPipeline": _flow,
        "ZImageInpaintPipeline": _flow,
        "ZImagePipeline": _flow,
    },
    group="mezzotint.models",
)
"""Pipelines that run step by step here, by ``_class_name``; any other is served whole.

Plug-ins add theirs through the entry-point group ``mezzotint.models``: the name is the
pipeline's, what it loads a :data:`Family`.
"""


def native_pipeline(path: Path) -> bool:
    """Tell whether a diffusers folder runs step by step here, from its files alone.

    A pipeline of a known class with parts its family does not understand (a
    U-Net with further input channels, say) does not.

    Raises:
        CardError: If its index cannot be read, or names no pipeline.
    """
    index = read_json(Path(path) / INDEX)
    if not index.get("_class_name"):
        raise CardError(f"{Path(path) / INDEX} names no pipeline: it has no _class_name")
    if str(index["_class_name"]) not in FAMILIES:
        return False
    unet, vae = (_config(Path(path), role) for role in ("unet", "vae"))
    if not unet or not vae:
        return True
    return unet.get("in_channels", 4) == vae.get("latent_channels", 4)


def _config(path: Path, role: str) -> dict[str, Any]:
    """Read the configuration of a role, {} if there is none."""
    file = path / role / "config.json"
    return read_json(file) if file.is_file() else {}


def load_pipeline(
    path: str | Path,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    variant: str | None = None,
    expected: Mapping[str, str] | None = None,
) -> Model:
    """Load a diffusers folder of a native family.

    Args:
        path: The folder, with its ``model_index.json``.
        name: Name in the store; the path if None.
        device: ``"cpu"``, ``"cuda"``, ...
        dtype: One type for all networks; None follows the type policy of
            :meth:`~mezzotint.models.networks.Placement.choose`.
        variant: ``"fp16"`` and the like, to insist on that set of weights.
        expected: sha256 by path inside the folder, from a card or manifest.

    Raises:
        CardError: If a configuration is missing, cannot be read, names a class
            of another library, or the pipeline is of no native family.
        WeightsError: If weights are missing, corrupt or pickles.
    """
    parts = read_parts(Path(path), name=name, variant=variant, expected=expected)
    stored = stored_together(part.stored for part in parts.networks.values())
    model = assemble(parts, Placement.choose(device, dtype, stored=stored))
    model.spec = replace(model.spec, limits=(*model.spec.limits, *_told(parts)))
    return _add_preview(model, Path(path), Placement.choose(device, dtype, stored=stored))


def _add_preview(model: Model, path: Path, placement: Placement) -> Model:
    """Let a folder's tiny decoder draw previews; it changes no picture, so no digest."""
    from mezzotint.models.families.autoencoder import PREVIEW_FOLDER, PREVIEW_ROLE, call_decoder

    if (path / PREVIEW_FOLDER).is_dir():
        part = read_part(
            path / PREVIEW_FOLDER,
            PREVIEW_ROLE,
            library="diffusers",
            class_name="AutoencoderTiny",
        )
        channels = part.config.get("latent_channels", 4)
        if channels != model.spec.latent_channels:
            raise CardError(
                f"{path / PREVIEW_FOLDER} decodes {channels} channels, "
                f"the model has {model.spec.latent_channels}"
            )
        model.use_network(PREVIEW_ROLE, TorchNetwork.of(part, call_decoder, placement))
    return model


def assemble(parts: Parts, placement: Placement) -> Model:
    """Wire parts into a model of their family.

    Raises:
        CardError: If the pipeline is of no native family.
        WeightsError: If a part is missing, or parts do not fit together.
    """
    if parts.pipeline not in FAMILIES:
        raise CardError(
            f"{parts.name} is a {parts.pipeline}, which has no native family; "
            f"native: {', '.join(FAMILIES)}"
        )
    if problems := misfits(parts):
        raise WeightsError(f"{parts.name}: parts do not fit together: {'; '.join(problems)}")
    return FAMILIES[parts.pipeline](parts, placement)


def read_parts(
    path: Path,
    *,
    name: str | None = None,
    variant: str | None = None,
    expected: Mapping[str, str] | None = None,
) -> Parts:
    """Read and check everything in a diffusers folder without building a network.

    Raises:
        CardError: See :func:`load_pipeline`.
        WeightsError: See :func:`load_pipeline`.
    """
    index = read_json(path / INDEX)
    networks: dict[str, _Folder] = {}
    tokenizers: dict[str, Path] = {}
    files = {path / INDEX}
    scheduler: dict[str, Any] = {}
    for role, entry in index.items():
        if role.startswith("_") or role in UNUSED_ROLES or not _is_component(entry):
            continue
        library, class_name = entry
        _check_library(path, role, library)
        folder = path / role if (path / role).is_dir() else path
        if folder == path and role.startswith(("text_encoder", *TOKENS)):
            raise CardError(
                f"{path} is not a whole pipeline: {INDEX} names a {role}, and there is no such "
                "folder"
            )
        if role == "scheduler":
            file = folder / "scheduler_config.json"
            scheduler = {"_class_name": class_name, **read_json(file)}
            files.add(file)
        elif role.startswith(TOKENS):
            tokenizers[role] = folder
            files |= {f for f in folder.iterdir() if f.suffix in KEPT_SUFFIXES}
        else:
            weights, kind = find_stored(folder, library=library, variant=variant)
            networks[role] = _Folder(library, class_name, folder, tuple(weights), kind)
            files |= {folder / "config.json", *weights}
    if not scheduler and index.get("_class_name") in FAMILIES:
        raise CardError(f"{path} is not a whole pipeline: {INDEX} names no scheduler")
    if missing := [str(file) for file in sorted(files) if not file.is_file()]:
        raise CardError(f"{path} is not a whole pipeline: {missing[0]} is missing")
    digests = digest_files(path, files, expected=expected)
    return Parts(
        name=name or str(path),
        pipeline=str(index.get("_class_name")),
        networks={
            role: _folder_part(role, found, digests=digests, root=path)
            for role, found in networks.items()
        },
        tokenizers={role: load_tokens(folder) for role, folder in tokenizers.items()},
        scheduler=scheduler,
        config={**_settings(index), **read_image_settings(path / "processor")},
        digest=combine_digests(digests),
        path=str(path),
    )


def read_part(
    path: Path, role: str, *, library: str, class_name: str, wholes: Collection[str] = ()
) -> Part:
    """Read and check the folder of one network without building it.

    Args:
        path: Folder with ``config.json`` and safetensors weights.
        role: What the network is for.
        library: ``"diffusers"`` or ``"transformers"``.
        class_name: Its class there.
        wholes: Classes that hold one among other parts, which the library leaves out.

    Raises:
        CardError: If its configuration is missing, or names another class.
        WeightsError: If weights are missing, corrupt or pickles.
    """
    config = read_json(path / "config.json")
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), class_name)
    if named != class_name and named not in wholes:
        raise CardError(f"{path} must hold a {class_name}, it holds a {named}")
    weights, kind = find_stored(path, library=library)
    digests = digest_files(path, {path / "config.json", *weights})
    found = _Folder(library, class_name, path, tuple(weights), kind)
    return _folder_part(role, found, digests=digests, root=path)


def _settings(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pipeline's own settings, where it came from, and the unused parts."""
    unused = {role: index[role] for role in UNUSED_ROLES if _is_component(index.get(role))}
    own: dict[str, Any] = {
        k: v
        for k, v in index.items()
        if (not k.startswith("_") or k == ORIGIN) and (not isinstance(v, list) or k == LEVELS)
    }
    return {**own, **unused}


def _is_component(entry: Any) -> bool:
    """Tell whether an entry of the index names a class that is there."""
    return is_list(entry) and len(entry) == 2 and all(isinstance(e, str) for e in entry)


def _check_library(path: Path, role: str, library: str) -> None:
    """Refuse components whose class is code inside the folder."""
    if library not in LIBRARIES:
        raise CardError(
            f"{path / INDEX}: {role} is a class of {library!r}; only classes of diffusers and "
            "transformers are loaded, code inside a model folder never runs"
        )


def _told(parts: Parts) -> Iterator[str]:
    """Say of which networks the weights are packed, where, and what that means."""
    for role, part in parts.networks.items():
        if part.packed:
            yield (
                f"the {role}'s weights stay {part.packed} in memory "
                f"({part.num_bytes / 1e6:.0f} MB); each layer spreads its own out while it computes"
            )


def _folder_part(role: str, found: _Folder, *, digests: Mapping[str, str], root: Path) -> Part:
    """Describe one network of a folder."""
    config = read_json(found.path / "config.json")
    is_gguf = found.weights[0].suffix == ".gguf"
    headers = [] if is_gguf else [read_header(file) for file in found.weights]
    stored = read_stored(found.weights, headers)
    if stored is None or not stored.kind:
        refuse_missing_quantizer(config, where=found.path / "config.json")
        refuse_whole_numbers(config, headers, where=found.path)
    found = replace(found, stored=stored)
    names = [f.relative_to(root).as_posix() for f in (found.path / "config.json", *found.weights)]
    pinned = {root / name: digests[name] for name in names}
    digest = combine_digests({name: digests[name] for name in names})
    if stored is not None:
        stays = stored.kind if found.library == "diffusers" else ""
        is_spread = stored.kind and not stays
        return Part(
            role=role,
            class_name=found.class_name,
            config=config,
            build=lambda dtype: _build(found, dtype, pinned),
            digest=digest,
            num_bytes=2 * stored.num_weights if is_spread else stored.num_bytes,
            stored="BF16" if stored.kind else headers[0].stored,
            packed=stays,
        )
    return Part(
        role=role,
        class_name=found.class_name,
        config=config,
        build=lambda dtype: _build(found, dtype, pinned),
        mapped=lambda dtype: _mapped(found, dtype, pinned),
        digest=digest,
        num_bytes=sum(header.data_bytes for header in headers),
        stored=most_stored(kind for header in headers for kind in header.weights),
    )


def _build(found: _Folder, dtype: torch.dtype, pinned: Mapping[Path, str]) -> Any:
    """Build a network from its folder, and only from the bytes that its digest is of.

    Weights come mapped from their file, so that whoever writes to it changes the network;
    they are copied while the file is watched. A weight of another type than any that is
    stored was converted, which made its copy.
    """
    with DIGESTS.loading(pinned):
        if found.stored is not None:
            return _build_stored(found, dtype)
        stored = {kind for file in found.weights for kind, _ in read_header(file).tensors.values()}
        # Where each is converted into memory of its own, what was stored need not stay.
        is_converted = _STORED_AS.get(dtype) not in stored
        with LeavingPages() if is_converted else contextlib.nullcontext():
            module = _read(found, dtype)
        own_weights(module, lambda tensor: _STORED_AS.get(tensor.dtype) in {None, *stored})
        return module


def _build_stored(found: _Folder, dtype: torch.dtype) -> Any:
    """Build a network from files that diffusers and transformers do not write themselves."""
    config = read_json(found.path / "config.json")
    if found.library == "diffusers":
        return build_packed(found.class_name, config, found.weights, dtype, where=found.path)
    state = plain_state(found.weights, dtype, where=found.path)
    return _read(found, dtype, state)


@contextlib.contextmanager
def _mapped(
    found: _Folder, dtype: torch.dtype, pinned: Mapping[Path, str]
) -> Generator[torch.nn.Module]:
    """Give a network whose weights are mapped from its files, watched inside.

    Weights of several types cannot all stay where they lie: they are read into memory, in
    the type that is computed in.
    """
    with DIGESTS.loading(pinned):
        stored = {kind for file in found.weights for kind, _ in read_header(file).tensors.values()}
        lies_as = [torch_kind for torch_kind, kind in _STORED_AS.items() if {kind} == stored]
        yield _read(found, next(iter(lies_as), dtype))


def _read(
    found: _Folder, dtype: torch.dtype, state: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Build a network from its folder, or from weights that are given."""
    return from_folder(
        found.path, found.library, found.class_name, dtype, variant=found.variant, state=state
    )
