"""Runs: the model that a training run leaves behind where no pipeline fits.

Points, series and fields of numbers, and pictures steered by a class or a text
in pixel space have no diffusers pipeline. Their run folder is::

    mezzotint_run.json      what it is: data, statistics, schedule, defaults
    network/                config.json + diffusion_pytorch_model.safetensors
    text_encoder/ tokenizer/    where text steers it
    vae/                    where it works in a latent space

The statistics that normalised the training data are the model's: ``values``
undoes them. ``decode`` draws: pictures as they are, points and series as plots.

Dimensions: B rows, D features, C channels, L length, h and w rows and columns.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest, WeightsError, WorkFailed
from mezzotint.models.base import Conditioning, Model, Prompt, Report
from mezzotint.models.digests import own_weights
from mezzotint.models.exported import exported_class
from mezzotint.models.families.array_networks import ARRAY_NETWORKS
from mezzotint.models.networks import TorchNetwork
from mezzotint.models.parts import find_weights
from mezzotint.models.quiet_loading import sole_building
from mezzotint.models.spec import ModelSpec
from mezzotint.plain import Checked, read
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import frame_of, noise_schedule
from mezzotint.types import Size

__all__ = [
    "RUN_FILE",
    "Normalisation",
    "RunDescription",
    "RunModel",
    "call_network",
    "load_network",
    "load_run",
]

RUN_FILE = "mezzotint_run.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
DataKind = Literal["points", "series", "fields", "pixels", "latents"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation(Checked):
    """Statistics of the training data, one number per channel.

    Args:
        kind: How the statistics were chosen.
        shift: Subtracted; in the data's units.
        scale: Divided by; in the data's units, never 0.
        low: Smallest value seen, for drawing.
        high: Largest value seen, for drawing.
    """

    kind: Literal["standard", "range", "none"] = "none"
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    def _table(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        """Give per-channel numbers the rank of (B, C, ...)."""
        table = torch.tensor(values, dtype=like.dtype, device=like.device)
        return table.reshape(1, -1, *([1] * (like.ndim - 2)))

    def apply(self, values: Tensor) -> Tensor:
        """Turn data units into what the network sees. Shape (B, C, ...)."""
        if not self.shift:
            return values
        return (values - self._table(self.shift, values)) / self._table(self.scale, values)

    def undo(self, latents: Tensor) -> Tensor:
        """Turn what the network made into data units. Shape (B, C, ...)."""
        if not self.shift:
            return latents
        return latents * self._table(self.scale, latents) + self._table(self.shift, latents)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """The content of ``mezzotint_run.json``.

    Args:
        network: Class of the network.
        data: What a sample is.
        shape: Shape of one sample, channels first.
        scheduler: The noise schedule as a diffusers scheduler configuration.
        normalisation: Statistics of the data.
        conditioning: ``none``, ``class`` or ``text``.
        num_classes: Classes; the table's last extra row means "no class".
        class_names: Their names.
        channel_names: What each channel of an array is, with its unit; empty if nobody said.
        sample_rate: Values a second of a series that is sound, in Hz; 0 is no sound.
        text_tokens: Longest caption in tokens.
        latent_factor: Pixels per latent row and column, 1 without a VAE.
        channels: Channels of the pictures, 3 or 1.
        default_steps: Steps where a request says nothing.
        default_guidance_scale: Guidance where a request says nothing.
        default_scheduler: Scheduler where a request says nothing; "" is the first of its
            frame, ``ddim`` or ``flow_euler``.
        licence: SPDX id or a sentence.
        training: Configuration, steps and versions, for people.
    """

    network: str
    data: DataKind
    shape: tuple[int, ...]
    scheduler: Mapping[str, Any]
    normalisation: Normalisation = field(default_factory=Normalisation)
    conditioning: Literal["none", "class", "text"] = "none"
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    channel_names: tuple[str, ...] = ()
    sample_rate: int = 0
    text_tokens: int = 77
    latent_factor: int = 1
    channels: int = 3
    default_steps: int = 50
    default_guidance_scale: float = 1.0
    default_scheduler: str = ""
    licence: str = "unknown"
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def to_plain(self) -> dict[str, Any]:
        """Return what is written to ``mezzotint_run.json``."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        norm = self.normalisation
        plain["normalisation"] = {name: getattr(norm, name) for name in norm.__slots__}
        return {"format": 1, "family": "denoiser", **plain}

    @classmethod
    def load(cls, folder: Path) -> "RunDescription":
        """Read the description of a run folder.

        Raises:
            WeightsError: If it is missing or cannot be understood.
        """
        try:
            plain = json.loads((folder / RUN_FILE).read_text("utf-8"))
            family = plain.pop("family")
            if plain.pop("format") != 1 or family != "denoiser":
                raise WeightsError(f"{folder} is a training run of {family}, which draws nothing")
            plain["normalisation"] = read(Normalisation, plain["normalisation"], "normalisation")
            plain["shape"] = tuple(plain["shape"])
            plain["class_names"] = tuple(plain["class_names"])
            plain["channel_names"] = tuple(plain.get("channel_names", ()))
            return cls(**plain)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"cannot read {folder / RUN_FILE}: {error}") from None

    def spec(self, *, name: str, digest: str, path: str) -> ModelSpec:
        """Return the model's spec."""
        height, width = self._picture_size()
        prediction = str(self.scheduler.get("prediction_type", "flow"))
        guided = self.conditioning != "none"
        is_flow = frame_of(self.scheduler) == "flow"
        multiple = self.latent_factor if self.data == "latents" else 1
        return ModelSpec(
            name=name,
            digest=digest,
            family="denoiser",
            prediction_type=prediction,  # type: ignore[arg-type]
            scheduler_config=dict(self.scheduler),
            latent_channels=self.shape[0],
            latent_scale=self.latent_factor,
            size_multiple=multiple,
            default_size=Size(width, height),
            min_size_px=min(width, height),
            max_size_px=max(width, height),
            fixed_size=True,
            default_steps=self.default_steps,
            default_guidance_scale=self.default_guidance_scale if guided else 1.0,
            default_scheduler=self.default_scheduler or ("flow_euler" if is_flow else "ddim"),
            takes_prompt=self.conditioning == "text",
            takes_negative_prompt=self.conditioning == "text",
            takes_guidance=guided,
            takes_image=self.data in ("pixels", "latents"),
            num_classes=self.num_classes,
            class_names=self.class_names,
            token_limit=self.text_tokens if self.conditioning == "text" else 0,
            licence=self.licence,
            limits=() if self.data in ("pixels", "latents") else (f"answers are {self.data},"
                                                                  " drawn as plots",),
            path=path,
        )  # fmt: skip

    def _picture_size(self) -> tuple[int, int]:
        """Return (height, width) in pixels of what ``decode`` draws."""
        if self.data == "points":
            return 64, 64
        if self.data == "series":
            return 128, 256
        return self.shape[1] * self.latent_factor, self.shape[2] * self.latent_factor


class _FastNetwork:
    """A network without the exactness of rows, for thousands of samples at once."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module.eval().requires_grad_(False)

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        device = next(self.module.parameters()).device
        home = next(iter(inputs.values())).device
        with torch.no_grad():
            answer = call_network(self.module, **{k: v.to(device) for k, v in inputs.items()})
        return (answer.float().to(home),)


def _call_inputs(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a network with named tensors."""
    return (call_network(module, **inputs),)


def call_network(
    module: nn.Module,
    *,
    sample: Tensor,
    timestep: Tensor,
    class_labels: Tensor | None = None,
    prompt_embeds: Tensor | None = None,
) -> Tensor:
    """Call a network of any of our kinds with the arguments that it takes.

    The trainer and the model share this, so that they cannot differ.
    """
    if prompt_embeds is not None:
        return module(sample, timestep, encoder_hidden_states=prompt_embeds).sample
    if class_labels is not None:
        answer = module(sample, timestep, class_labels=class_labels)
    else:
        answer = module(sample, timestep)
    return answer if isinstance(answer, Tensor) else answer.sample


class RunModel(Model):
    """A trained network with its statistics, as every other model.

    Args:
        description: What the run is.
        network: The network, weights loaded.
        name: Name in the store or path.
        digest: sha256 of the files.
        path: Folder, "" if in memory only.
        tokenizer: Tokenizer, for text.
        text_encoder: Text encoder, for text.
        vae: Autoencoder, for latents.
        exact: Whether a row's answer must not depend on its neighbours, as the
            engine needs it; False is faster for thousands of points.
    """

    def __init__(
        self,
        description: RunDescription,
        network: nn.Module,
        *,
        name: str = "run",
        digest: str = "0" * 64,
        path: str = "",
        tokenizer: Any = None,
        text_encoder: nn.Module | None = None,
        vae: Any = None,
        exact: bool = True,
    ) -> None:
        self.description = description
        self.spec = description.spec(name=name, digest=digest, path=path)
        weight = next(network.parameters())
        size = sum(p.numel() * p.element_size() for p in network.parameters())
        door = TorchNetwork(
            lambda dtype: nn.Module.to(network, dtype),  # diffusers' own warns of nothing
            _call_inputs,
            device=weight.device,
            num_bytes=size,
            digest=digest,
        )
        self._network = network
        self.networks = {"denoiser": door if exact else _FastNetwork(network)}
        self.denoiser = NetworkDenoiser(
            self._predict,
            noise_schedule(description.scheduler),
            str(description.scheduler.get("prediction_type", "flow")),
        )
        self._tokenizer = tokenizer
        self._text_encoder = text_encoder.eval() if text_encoder is not None else None
        self._vae = vae.eval().requires_grad_(False) if vae is not None else None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self._network.parameters()).device

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return the shape of one sample; it does not depend on ``size``."""
        return self.description.shape

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn labels or texts into conditionings, one row each."""
        return [self._encode_one(prompt) for prompt in prompts]

    def _encode_one(self, prompt: Prompt) -> Conditioning:
        about = self.description
        if about.conditioning == "class":
            label = prompt.class_label
            if prompt.negative or label is None:
                label = about.num_classes
            elif label >= about.num_classes:
                raise InvalidRequest(
                    f"latent.class_label must be 0 to {about.num_classes - 1}, got {label}",
                    field="latent.class_label",
                    value=label,
                )
            return Conditioning({"class_labels": torch.tensor([label])})
        if about.conditioning == "text":
            assert self._text_encoder is not None  # noqa: S101  (load_run always gives one)
            embeds, cut = encode_text(
                self._tokenizer, self._text_encoder, prompt.text, about.text_tokens
            )
            notes = [f"prompt cut after {about.text_tokens} tokens"] if cut else []
            return Conditioning({"prompt_embeds": embeds}, notes=notes)
        return Conditioning(rows=1)

    def _predict(self, latents: Tensor, timestep: Tensor, conditioning: Any) -> Tensor:
        """Call the network with what the denoiser scaled for it."""
        inputs = dict(conditioning) if conditioning is not None else {}
        return self.networks["denoiser"](sample=latents, timestep=timestep, **inputs)[0]

    def values(self, latents: Tensor) -> Tensor:
        """Return samples in the units of the training data. Shape (B, *shape)."""
        return self.description.normalisation.undo(latents)

    def decode(
        self,
        latents: Tensor,
        conditioning: Conditioning | None = None,
        *,
        report: Report | None = None,
    ) -> Tensor:
        """Draw samples. Shape (B, 3, H, W), float32 in [-1, 1]."""
        from mezzotint.models.families.plots import draw_fields, draw_points, draw_series

        if not torch.isfinite(latents).all():
            raise WorkFailed(f"model {self.spec.name} answered values that are not finite")
        about = self.description
        if about.data == "points":
            return draw_points(self.values(latents), about.normalisation)
        if about.data == "series":
            return draw_series(self.values(latents), about.normalisation)
        if about.data == "fields":
            return draw_fields(self.values(latents), about.normalisation)
        if about.data == "latents":
            assert self._vae is not None  # noqa: S101  (load_run always gives one)
            with torch.inference_mode():
                latents = torch.cat([self._decode_row(row[None]) for row in latents])
        return latents.expand(-1, 3, -1, -1).clamp(-1, 1).contiguous()

    def _decode_row(self, row: Tensor) -> Tensor:
        """Decode one row, so that neighbours cannot change its rounding."""
        assert self._vae is not None  # noqa: S101
        config = self._vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        device = next(self._vae.parameters()).device
        return self._vae.decode((row / config.scaling_factor + shift).to(device)).sample.to(
            row.device
        )

    def encode_image(
        self, images: Tensor, generators: Sequence[torch.Generator | None] | None = None
    ) -> Tensor:
        """Turn pictures into clean latents; only pictures have them."""
        about = self.description
        if about.data == "pixels":
            return images if about.channels == 3 else images.mean(1, keepdim=True)
        if about.data == "latents" and self._vae is not None:
            config = self._vae.config
            shift = getattr(config, "shift_factor", None) or 0.0
            with torch.inference_mode():
                means = self._vae.encode(images).latent_dist.mode()
            return (means - shift) * config.scaling_factor
        return super().encode_image(images, generators)


def encode_text(
    tokenizer: Any, text_encoder: nn.Module, text: str, tokens: int
) -> tuple[Tensor, bool]:
    """Encode one text. Returns the embeddings (1, T, width) and whether it was cut."""
    ids = tokenizer(text, padding="max_length", max_length=tokens, truncation=True)["input_ids"]
    whole = tokenizer(text, truncation=False)["input_ids"]
    device = next(text_encoder.parameters()).device
    with torch.inference_mode():
        embeds = text_encoder(torch.tensor([ids], device=device))[0].float().cpu()
    return embeds, len(whole) > tokens


def load_run(
    folder: Path, *, name: str = "", digest: str = "0" * 64, device: str = "cpu"
) -> RunModel:
    """Load a run folder that holds ``mezzotint_run.json``.

    Args:
        folder: The run folder.
        name: Name in the store; the folder's if empty.
        digest: sha256 over its files.
        device: Where it computes, in float32.

    Raises:
        WeightsError: If a file is missing, corrupt, or does not fit.
    """
    folder = Path(folder)
    about = RunDescription.load(folder)
    with sole_building():
        network, parts = _load_parts(about, folder)
    own_weights(network)
    network.to(device)
    for part in ("text_encoder", "vae"):
        if part in parts:
            own_weights(parts[part])
            parts[part].to(device)
    return RunModel(
        about, network, name=name or folder.name, digest=digest, path=str(folder), **parts
    )


def _load_parts(about: RunDescription, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network of a run and what stands around it."""
    network = load_network(about.network, folder / "network")
    parts: dict[str, Any] = {}
    if about.conditioning == "text":
        parts["tokenizer"] = _load_part("transformers", "CLIPTokenizer", folder / "tokenizer")
        parts["text_encoder"] = _load_part("transformers", "CLIPTextModel", folder / "text_encoder")
    if about.data == "latents":
        parts["vae"] = _load_part("diffusers", "AutoencoderKL", folder / "vae")
    return network, parts


def _load_part(library: str, class_name: str, folder: Path) -> Any:
    """Load a tokenizer, or a network from its safetensors files and from nothing else."""
    options: dict[str, Any] = {}
    try:
        if folder.name != "tokenizer":
            find_weights(folder)  # refuses a pickle
            options["use_safetensors"] = True
        cls = exported_class(library, class_name, where=folder)
        return cls.from_pretrained(str(folder), trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"cannot load the {folder.name} in {folder}: {reason}") from None


def load_network(kind: str, folder: Path) -> nn.Module:
    """Rebuild a network from its folder."""
    if kind in ARRAY_NETWORKS:
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            network = ARRAY_NETWORKS[kind](**config)
            network.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise WeightsError(f"cannot load the network in {folder}: {error}") from None
        return network
    known = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel")
    if kind not in known:
        raise WeightsError(f"{folder} names the network {kind!r}; known: {', '.join(known)}")
    try:
        return exported_class("diffusers", kind, where=folder).from_pretrained(
            str(folder), use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot load the network in {folder}: {error}") from None
