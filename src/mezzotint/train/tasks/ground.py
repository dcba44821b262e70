"""Grounds: a network with all that stands around it, fresh or from a model folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mezzotint.errors import InvalidRequest, MezzotintError
from mezzotint.models.families.runs import RUN_FILE, RunDescription, load_network
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.config.model import NetworkConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.data.latents import LatentSpace
from mezzotint.train.data.text import TextSide
from mezzotint.train.losses import Noising, scheduler_config
from mezzotint.train.networks import build_network, network_kind
from mezzotint.train.tasks.ground_base import Ground
from mezzotint.train.tasks.served import SERVED_PIPELINES, open_served

__all__ = ["Ground", "fresh_ground", "open_ground"]

_HOW = {
    "text": "put its words beside each picture (cat.txt beside cat.jpg)",
    "class": "put the pictures of each class into a folder of its own",
}
"""How pictures come to what steers a base."""
_PIPELINES: dict[str, tuple[str, Literal["none", "class", "text"]]] = {
    "StableDiffusionPipeline": ("unet", "text"),
    "LatentConsistencyModelPipeline": ("unet", "text"),
    "DDPMPipeline": ("unet", "none"),
    "DDIMPipeline": ("unet", "none"),
    "DiTPipeline": ("transformer", "class"),
}


def fresh_ground(config: TrainConfig, data: Dataset) -> Ground:
    """Build a network at random weights and what stands around it.

    Raises:
        InvalidRequest: If network, data and conditioning do not fit together.
    """
    latents = LatentSpace(Path(config.network.vae)) if config.network.vae else None
    kind: Any = "latents" if latents is not None else data.kind
    if latents is not None and data.kind != "pixels":
        raise InvalidRequest(
            f"network.vae makes latents of pictures, got {data.kind}", field="network.vae"
        )
    shape = data.shape if latents is None else latents.shape_of(data.shape)
    if config.data.sample_rate and kind != "series":
        raise InvalidRequest(
            f"data.sample_rate says that series are sound, got {kind}",
            field="data.sample_rate",
            value=config.data.sample_rate,
        )
    chosen = network_kind(config, kind)
    classes = len(data.class_names) if config.conditioning.kind == "class" else 0
    text = TextSide(config.network, data.captions) if config.conditioning.kind == "text" else None
    network = build_network(
        config, chosen, shape, num_classes=classes, text_width=text.width if text else 0
    )
    description = RunDescription(
        network=type(network).__name__,
        data=kind,
        shape=tuple(shape),
        scheduler=scheduler_config(config.objective, limit=_limit(kind, data)),
        normalisation=data.normalisation,
        conditioning=config.conditioning.kind,
        num_classes=classes,
        class_names=data.class_names if classes else (),
        channel_names=config.data.channel_names,
        sample_rate=config.data.sample_rate,
        text_tokens=config.network.text_tokens,
        latent_factor=latents.factor if latents else 1,
        channels=config.data.channels,
        default_guidance_scale=3.0 if config.conditioning.kind != "none" else 1.0,
        licence=config.licence,
    )
    return Ground(description, network, Noising.of(config.objective), text, latents)


def _limit(kind: str, data: Dataset) -> float | None:
    """Return the largest value that the network sees of the data; None for latents."""
    norm = data.normalisation
    if kind == "latents":
        return None
    if not norm.shift:
        return 1.0
    pairs = zip(norm.low, norm.high, norm.shift, norm.scale, strict=True)
    return max(max(high - shift, shift - low) / scale for low, high, shift, scale in pairs)


def open_ground(config: TrainConfig, data: Dataset) -> Ground:
    """Open the model that a run starts from.

    Raises:
        InvalidRequest: If ``base`` is no model that can be trained further, or
            does not fit the data.
    """
    folder = _base_folder(config.base)
    try:
        if (folder / "model_index.json").is_file():
            ground = _open_pipeline(folder, config, data)
        elif (folder / RUN_FILE).is_file():
            ground = _open_run(folder, config)
        else:
            raise InvalidRequest(
                f"base {config.base} is neither a diffusers folder nor a run folder",
                field="base",
                value=config.base,
            )
    except (OSError, ValueError, MezzotintError) as error:
        if isinstance(error, InvalidRequest):
            raise
        first = str(error).splitlines()[0]
        raise InvalidRequest(
            f"base {config.base} cannot be opened: {first}", field="base"
        ) from None
    _check_fit(ground, config, data)
    return ground


def _base_folder(base: str) -> Path:
    """Return the folder of a path or of a name in the store."""
    if Path(base).is_dir():
        return Path(base)
    from mezzotint.models.base import Model

    found = Model.load(base).spec.path
    if not found or not Path(found).is_dir():
        raise InvalidRequest(f"base {base} is not a model folder", field="base", value=base)
    return Path(found)


def _open_run(folder: Path, config: TrainConfig) -> Ground:
    """Open a run of :mod:`mezzotint.models.families.runs`."""
    about = RunDescription.load(folder)
    network = load_network(about.network, folder / "network")
    return Ground(
        replace(about, licence=config.licence, training={}),
        network,
        Noising(about.scheduler, config.objective),
        _frozen_text(folder, about.text_tokens) if about.conditioning == "text" else None,
        LatentSpace(folder) if about.data == "latents" else None,
    )


def _frozen_text(folder: Path, tokens: int) -> TextSide:
    """Open a model folder's text side, which stays as it is."""
    return TextSide(NetworkConfig(text_encoder=str(folder), text_tokens=tokens), ())


def _open_pipeline(folder: Path, config: TrainConfig, data: Dataset) -> Ground:
    """Open a diffusers folder."""
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    name = str(index.get("_class_name"))
    if name in SERVED_PIPELINES:
        return open_served(folder, name, config, data)
    if name not in _PIPELINES:
        known = ", ".join((*_PIPELINES, *SERVED_PIPELINES))
        raise InvalidRequest(
            f"base {config.base} is a {name}; trained further can be {known}",
            field="base",
            value=name,
            allowed=known,
        )
    role, conditioning = _PIPELINES[name]
    network = load_network(str(index[role][1]), folder / role)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    latents = LatentSpace(folder) if "vae" in index else None
    text = _frozen_text(folder, 512) if conditioning == "text" else None
    about: Any = network.config
    shape = tuple(data.shape)
    if latents is not None:
        shape = latents.shape_of(shape)
    labels: dict[str, str] = dict(index.get("id2label") or {})
    classes = int(about.get("num_embeds_ada_norm", 0)) if conditioning == "class" else 0
    description = RunDescription(
        network=type(network).__name__,
        data="latents" if latents is not None else "pixels",
        shape=shape,
        scheduler=scheduler,
        conditioning=conditioning,
        num_classes=classes,
        class_names=tuple(labels.get(str(k), str(k)) for k in range(classes)),
        text_tokens=text.tokens if text else 77,
        latent_factor=latents.factor if latents else 1,
        channels=config.data.channels,
        default_guidance_scale=1.0 if conditioning == "none" else 5.0,
        licence=config.licence,
    )
    return Ground(description, network, Noising(scheduler, config.objective), text, latents)


def _check_fit(ground: Ground, config: TrainConfig, data: Dataset) -> None:
    """Refuse data that the opened model cannot learn from."""
    about = ground.description
    wanted = about.conditioning
    has = {"none": True, "text": bool(data.captions), "class": bool(data.labels)}
    needs = f"base {config.base} is steered by {wanted}"
    if not has[wanted]:
        raise InvalidRequest(
            f"{needs}, which the data does not have: {_HOW[wanted]}",
            field="data.path",
        )
    channels = ground.latents.vae.config.in_channels if ground.latents else about.shape[0]
    if data.shape[0] != channels:
        raise InvalidRequest(
            f"base {config.base} works on {channels} channels, the data has {data.shape[0]}",
            field="data.channels",
            value=data.shape[0],
        )
    if wanted == "text" and not all(data.captions):
        raise InvalidRequest(
            f"{needs}, and {data.captions.count('')} of {len(data.captions)} pictures have no "
            f"caption: {_HOW['text']}",
            field="data.caption_column",
        )
