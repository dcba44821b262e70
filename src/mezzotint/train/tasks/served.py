"""Bases that are told more than a caption: Stable Diffusion XL, 3, and FLUX.

Their networks also want pooled texts, sizes or a guidance scale, from two or three text
encoders. All of that is made by the very model that serves them, so what a LoRA is trained
with is what it is drawn with. The base stays as it is; only a LoRA can be learnt on it.

Dimensions: B samples, C latent channels, h and w latent rows and columns.
"""

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Conditioning, Model, Prompt
from mezzotint.models.exported import exported_class
from mezzotint.models.families.flux import call_flux
from mezzotint.models.families.runs import RUN_FILE, RunDescription
from mezzotint.models.families.sd import call_unet
from mezzotint.models.families.sd3 import call_mmdit
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.data.latents import LatentSpace
from mezzotint.train.losses import Mixture, Noising
from mezzotint.train.tasks.base import Batch
from mezzotint.train.tasks.ground_base import Ground
from mezzotint.types import Size

__all__ = ["SERVED_PIPELINES", "ServedGround", "open_served"]

_Call = Callable[[Any, Mapping[str, Tensor]], tuple[Tensor, ...]]
SERVED_PIPELINES: Mapping[str, tuple[str, _Call]] = {
    "StableDiffusionXLPipeline": ("unet", call_unet),
    "StableDiffusion3Pipeline": ("transformer", call_mmdit),
    "FluxPipeline": ("transformer", call_flux),
}
"""The role of the network of each pipeline, and how it is called."""


@dataclass(slots=True)
class ServedGround(Ground):
    """A network and its surroundings, conditioned by the model that serves it.

    Args:
        folder: The base's folder.
        role: The network's folder inside it.
        model: The base as a model; its own network is never built.
        call: How the network is called.
    """

    folder: Path = Path()
    role: str = ""
    model: Any = None
    call: Any = None
    _told: dict[tuple[str, Size, bool], Conditioning] = field(default_factory=dict)

    def steer(
        self,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
        dropout: float,
    ) -> dict[str, Tensor]:
        """Return what the network is told of each caption, a fraction of them dropped.

        A dropped caption is told as the unconditional half of a guided picture is.
        """
        rows, device = len(batch.samples), batch.samples.device
        height, width = batch.samples.shape[-2:]
        dropped = torch.rand(rows, generator=generator) < dropout
        pairs = zip(batch.captions, dropped, strict=True)
        told = [self._tell(text, Size(width, height), bool(gone)) for text, gone in pairs]
        return {name: torch.cat([one[name] for one in told]).float().to(device) for name in told[0]}

    @torch.no_grad()
    def _tell(self, text: str, size: Size, dropped: bool) -> Conditioning:
        """Encode one caption alone, and keep it."""
        key = ("" if dropped else text, size, dropped)
        if key not in self._told:
            prompt = Prompt(text=key[0], size=size, negative=dropped)
            (self._told[key],) = self.model.encode([prompt])
        return self._told[key]

    def predict(
        self, network: Any, clean: Tensor, noise: Tensor, mixture: Mixture, steering: Any
    ) -> Tensor:
        """Return what the network says about a noisy sample. Shape (B, C, h, w)."""
        kind = next(network.parameters()).dtype
        inputs = {"sample": mixture.mix(clean, noise), **steering}
        told = {name: value.to(kind) for name, value in inputs.items()}
        return self.call(network, {**told, "timestep": mixture.time})[0]

    def fresh(self) -> nn.Module:
        """Return the network as it came, for what is added to its weights."""
        return _load(self.folder / self.role, torch.float32)

    def write(self, folder: Path, network: nn.Module, training: Mapping[str, Any]) -> None:
        """Write the base's folder with another network in it."""
        for path in sorted(self.folder.rglob("*")):
            inner = path.relative_to(self.folder)
            if inner.parts[0] == self.role or inner.parts[0].startswith("."):
                continue
            if path.is_dir():
                (folder / inner).mkdir(parents=True, exist_ok=True)
            else:
                (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                _link_or_copy(path, folder / inner)
        saving: Any = network
        saving.save_pretrained(str(folder / self.role))
        about = {**self.description.to_plain(), "training": dict(training), "family": "pipeline"}
        (folder / RUN_FILE).write_text(json.dumps(about, indent=1), "utf-8")


def _link_or_copy(source: Path, target: Path) -> None:
    """Put a file in a second place: the same bytes on disk where that can be."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _load(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Load a network of diffusers from its folder."""
    file = folder / "config.json"
    name = json.loads(file.read_text("utf-8")).get("_class_name")
    cls = exported_class("diffusers", name, where=file, kind=nn.Module)
    return cls.from_pretrained(
        str(folder),
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        torch_dtype=dtype,
    )


def open_served(folder: Path, name: str, config: TrainConfig, data: Dataset) -> ServedGround:
    """Open a base of `SERVED_PIPELINES`.

    With ``loop.precision = "bf16"`` the frozen weights are held in bfloat16.

    Raises:
        InvalidRequest: If anything but a LoRA shall be learnt, or sizes do not fit.
        ModelError: If the folder is broken.
    """
    if config.kind != "lora":
        raise InvalidRequest(
            f'base {config.base} is a {name}, on which kind "lora" alone can be trained, got '
            f'"{config.kind}"',
            field="kind",
            value=config.kind,
        )
    role, call = SERVED_PIPELINES[name]
    latents = LatentSpace(folder)
    shape = latents.shape_of(tuple(data.shape))
    # A copy of the spec says what sizes the base takes.
    model = Model.load(str(folder))
    multiple = model.spec.size_multiple
    for side in data.shape[1:]:
        if side % multiple:
            raise InvalidRequest(
                f"data.resolution must be a multiple of {multiple} px for {config.base}, got "
                f"{side}",
                field="data.resolution",
                value=side,
            )
    half = config.loop.precision == "bf16"
    network = _load(folder / role, torch.bfloat16 if half else torch.float32)
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    description = RunDescription(
        network=type(network).__name__,
        data="latents",
        shape=shape,
        scheduler=scheduler,
        conditioning="text",
        text_tokens=model.spec.token_limit,
        latent_factor=latents.factor,
        channels=config.data.channels,
        default_steps=model.spec.default_steps,
        default_guidance_scale=model.spec.default_guidance_scale,
        licence=config.licence,
    )
    return ServedGround(
        description,
        network,
        Noising(copy.deepcopy(scheduler), config.objective),
        None,
        latents,
        folder=folder,
        role=role,
        model=model,
        call=call,
    )
