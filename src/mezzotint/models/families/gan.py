"""GANs: a latent vector to a picture in one pass, on the same road as every model.

A GAN is a model without a denoiser: its plan has zero steps, its starting noise is
the latent vector, ``decode`` is the generator
(:mod:`mezzotint.models.families.gan_generator`).

A GAN folder holds ``config.json`` and ``generator.safetensors``; the state of a
DCGAN is named ``main.0.weight`` ... as the tutorial names it, plus
``class_embedding.weight`` where classes steer it. Weights may be stored as int8 rows
(:mod:`mezzotint.models.int8_rows`).

Dimensions: B rows, Z latent size, E class embedding size, H and W picture rows and
columns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest, ShapeError, WeightsError, WorkFailed
from mezzotint.files import write_atomically
from mezzotint.models.backends.row_sizes import RowSizes
from mezzotint.models.base import Conditioning, Model, Network, Prompt, Report
from mezzotint.models.digests import DIGESTS
from mezzotint.models.families.gan_generator import (
    CONFIG_FILE,
    GanConfig,
    Generator,
    build_generator,
)
from mezzotint.models.finite import rows_not_finite
from mezzotint.models.int8_rows import SUFFIX, expand_rows, expanded_shapes, round_rows
from mezzotint.models.networks import TorchNetwork
from mezzotint.models.parts import combine_digests, digest_files, read_header
from mezzotint.models.quiet_loading import sole_building
from mezzotint.models.spec import ModelSpec
from mezzotint.types import Size

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "GanConfig",
    "GanModel",
    "build_generator",
    "load_gan",
    "write_gan",
]

WEIGHTS_FILE = "generator.safetensors"
_MEAN_DRAWS = 1024
_NEAR = 1e-9  # to the border of two classes, counted in classes


class GanModel(Model):
    """A generator on the road of every model.

    Without a class label the latent vector decides the class, so that one seed
    gives one picture whoever asks. Truncation psi scales the latent vector towards
    its mean: 1 is off, smaller is more typical and less varied.

    Args:
        config: The GAN's configuration.
        network: Takes ``latents`` (B, Z) and, with classes, ``class_labels`` (B,);
            answers pictures (B, C, H, W).
        name: Store name.
        digest: sha256 of the folder's content.
        path: Where it is.
        mapping: Takes ``latents`` z (B, Z) and answers w (B, Z); with it ``network``
            takes w, and truncation pulls towards the mean w.
    """

    certifies_rows = True

    def __init__(
        self,
        config: GanConfig,
        network: Network,
        *,
        name: str,
        digest: str = "",
        path: str = "",
        mapping: Network | None = None,
    ) -> None:
        self.config = config
        self.denoiser = None
        self.networks = {"decoder": network, **({"mapping": mapping} if mapping else {})}
        self._mean_w: Tensor | None = None
        self.spec = gan_spec(config, name=name, digest=digest, path=path)
        self._sizes = {role: self._certify(role) for role in self.networks}

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return (Z,); a GAN has one size.

        Raises:
            ShapeError: If ``size`` is not that size.
        """
        if size != self.spec.default_size:
            raise ShapeError(
                f"{self.spec.name} draws {self.spec.default_size} px only, got {size}",
                field="width" if size.width != self.spec.default_size.width else "height",
                value=str(size),
                allowed=str(self.spec.default_size),
            )
        return (self.config.latent_size,)

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn class labels and truncations into conditionings.

        Raises:
            InvalidRequest: If a class label does not exist.
        """
        return [self._encode_one(prompt) for prompt in prompts]

    def _encode_one(self, prompt: Prompt) -> Conditioning:
        label, count = prompt.class_label, self.config.num_classes
        if label is not None and not 0 <= label < count:
            allowed = f"0 to {count - 1}" if count else "no class label"
            raise InvalidRequest(
                f"latent.class_label of {self.spec.name} must be {allowed}, got {label}",
                field="latent.class_label",
                value=label,
                allowed=allowed,
            )
        tensors = {"truncation": torch.tensor([prompt.truncation], dtype=torch.float32)}
        if "mapping" in self.networks:
            tensors["is_w"] = torch.zeros(1)
        if count:
            tensors["class_labels"] = torch.tensor([-1 if label is None else label])
        return Conditioning(tensors)

    def decode(
        self,
        latents: Tensor,
        conditioning: Conditioning | None = None,
        *,
        report: Report | None = None,
    ) -> Tensor:
        """Draw the pictures; see :meth:`mezzotint.models.base.Model.decode`."""
        if latents.ndim != 2 or latents.shape[1] != self.config.latent_size:
            raise ShapeError(
                f"expected latents of shape (B, {self.config.latent_size}), "
                f"got {tuple(latents.shape)}"
            )
        inputs = {"latents": self._truncated(latents.float(), conditioning)}
        if self.config.num_classes:
            labels = conditioning["class_labels"] if conditioning is not None else None
            inputs["class_labels"] = self._choose_classes(latents, labels)
        pictures = self._call("decoder", inputs)
        if rows := rows_not_finite(pictures):
            raise WorkFailed(f"{self.spec.name} drew values that are not finite in rows {rows}")
        return pictures.expand(-1, 3, -1, -1) if pictures.shape[1] == 1 else pictures

    def map_latents(self, latents: Tensor) -> Tensor | None:
        """Return w of z, row by row, or None without a mapping network. Shape (B, Z)."""
        mapping = self.networks.get("mapping")
        if mapping is None:
            return None
        return self._call("mapping", {"latents": latents.float()})

    def _truncated(self, latents: Tensor, conditioning: Conditioning | None) -> Tensor:
        """Scale z towards 0, or w towards its mean. Shape (B, Z)."""
        psi = None if conditioning is None else conditioning.get("truncation")
        if "mapping" not in self.networks:
            return latents if psi is None else latents * psi[:, None]
        is_w = None if conditioning is None else conditioning.get("is_w")
        mapped = latents
        if is_w is None or not any(_plain(is_w)):
            mapped = self._mapped(latents)
        elif not bool(is_w.all()):
            places = torch.nonzero(is_w == 0)[:, 0]
            mapped = latents.index_put((places,), self._mapped(latents[places]))
        if psi is None or all(share == 1 for share in _plain(psi)):
            return mapped
        mean, share = self._mean().to(mapped.device), psi[:, None]
        return torch.where(share == 1, mapped, mean + share * (mapped - mean))

    def _mapped(self, latents: Tensor) -> Tensor:
        mapped = self.map_latents(latents)
        assert mapped is not None  # noqa: S101 - there is a mapping network
        return mapped

    def _mean(self) -> Tensor:
        """Return the mean w of fixed draws of z. Shape (1, Z)."""
        if self._mean_w is None:
            generator = torch.Generator().manual_seed(0)
            draws = torch.randn(_MEAN_DRAWS, self.config.latent_size, generator=generator)
            mapped = self.map_latents(draws)
            assert mapped is not None  # noqa: S101 - there is a mapping network
            self._mean_w = mapped.double().mean(dim=0, keepdim=True).float()
        return self._mean_w

    def _choose_classes(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Fill in missing labels: the mean of a latent vector, made uniform, picks one."""
        if latents.device.type == "cpu":
            chosen = self._choose_at_once(latents, labels)
            if chosen is not None:
                return chosen
        mean = latents.double().sum(dim=1) / math.sqrt(latents.shape[1])
        uniform = 0.5 * (1 + torch.erf(mean / math.sqrt(2)))
        drawn = (uniform * self.config.num_classes).long().clamp(0, self.config.num_classes - 1)
        if labels is None:
            return drawn
        return torch.where(labels.to(drawn.device) < 0, drawn, labels.to(drawn.device))

    def _choose_at_once(self, latents: Tensor, labels: Tensor | None) -> Tensor | None:
        """Choose classes with plain numbers, which takes a tenth of a millisecond less.

        Returns:
            None where a number is so near the border of two classes that its last digits, which
            are not those of torch, might decide.
        """
        count = self.config.num_classes
        asked = [-1] * len(latents) if labels is None else [int(label) for label in _plain(labels)]
        sums = latents.detach().numpy().sum(axis=1, dtype=np.float64).tolist()
        for row, label in enumerate(asked):
            if label >= 0:
                continue
            mean = sums[row] / math.sqrt(latents.shape[1])
            if math.isnan(mean):
                return None
            place = 0.5 * (1 + math.erf(mean / math.sqrt(2))) * count
            if not abs(place - round(place)) > _NEAR:
                return None
            asked[row] = int(place)
        return torch.tensor(asked)

    def _call(self, role: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """Call a network with as many rows at once as leave each row's bits alone."""
        network, total = self.networks[role], len(inputs["latents"])
        answers: list[Tensor] = []
        start = 0
        while start < total:
            rows = self._sizes[role].largest(total - start)
            part = {name: tensor[start : start + rows] for name, tensor in inputs.items()}
            answers.append(network(**part)[0])
            start += rows
        return _join(answers)

    @property
    def trial_rows(self) -> int:
        """Rows of the next call of :meth:`try_rows`."""
        return next((rows for s in self._sizes.values() if (rows := s.next_rows)), 0)

    def try_rows(self) -> None:
        """Make one call of a trial; see :class:`~mezzotint.models.backends.row_sizes.RowSizes`."""
        for sizes in self._sizes.values():
            if sizes.next_rows:
                sizes.advance()
                return

    def _certify(self, role: str) -> RowSizes:
        """Return the sizes of calls of a network, of which nothing is known yet."""
        network = self.networks[role]

        def draw(rows: int) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(rows)
            inputs = {"latents": torch.randn(rows, self.config.latent_size, generator=generator)}
            if self.config.num_classes and role == "decoder":
                inputs["class_labels"] = torch.arange(rows) % self.config.num_classes
            return inputs

        return RowSizes(lambda inputs: network(**inputs)[0], draw)

    def use_network(self, role: str, network: Network) -> None:
        """Let another backend answer, and certify its row counts anew."""
        super().use_network(role, network)
        self._sizes = {**self._sizes, role: self._certify(role)}


def _plain(numbers: Tensor) -> list[float]:
    """Return a line of numbers as plain ones, quicker to look through when they are few."""
    return numbers.tolist()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Put pictures under each other; on a CPU without waking torch's threads for a copy."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].device.type != "cpu":
        return torch.cat(list(parts))
    return torch.as_tensor(np.concatenate([part.numpy() for part in parts]))


def gan_spec(config: GanConfig, *, name: str, digest: str = "", path: str = "") -> ModelSpec:
    """Return the spec of a GAN."""
    classes = ("without a class label the seed decides the class",) if config.num_classes else ()
    return ModelSpec(
        name=name,
        digest=digest,
        family="gan",
        latent_channels=config.latent_size,
        latent_scale=1,
        size_multiple=config.image_size,
        default_size=Size(config.image_size, config.image_size),
        min_size_px=config.image_size,
        max_size_px=config.image_size,
        fixed_size=True,
        default_steps=0,
        default_guidance_scale=1.0,
        takes_prompt=False,
        takes_negative_prompt=False,
        takes_guidance=False,
        takes_image=False,
        num_classes=config.num_classes,
        class_names=config.class_names,
        has_mapping=config.mapping_layers > 0,
        token_limit=0,
        has_steps=False,
        licence=config.licence,
        limits=(
            "takes no text: it draws what it was trained on",
            f"draws {config.image_size}x{config.image_size} px only",
            *classes,
        ),
        path=path,
    )


def load_gan(
    folder: Path,
    *,
    name: str | None = None,
    expected: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> GanModel:
    """Load a GAN folder.

    Args:
        folder: Holds ``config.json`` and ``generator.safetensors``.
        name: Store name; the folder's path if None.
        expected: sha256 by file name, where it is known.
        dtype: Type to compute in.
        device: Where to compute.

    Raises:
        CardError: If the configuration cannot be understood.
        WeightsError: If the weights are missing, corrupt, or do not fit it.
    """
    folder = Path(folder)
    config = GanConfig.load(folder)
    weights = folder / WEIGHTS_FILE
    header = read_header(weights)
    digests = digest_files(folder, [folder / CONFIG_FILE, weights], expected=expected)
    digest = combine_digests(digests)
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in Generator(config).state_dict().items()}
    _check_fit(weights, wanted, expanded_shapes(header.tensors))
    _check_scales(weights, header.tensors)

    def build(dtype: torch.dtype) -> nn.Module:
        with sole_building(), torch.device("meta"):
            generator = Generator(config)
        generator.to_empty(device="cpu")
        with DIGESTS.loading({folder / f: found for f, found in digests.items()}):
            state = expand_rows(load_file(weights))
        counters = {k: torch.zeros((), dtype=torch.long) for k in wanted if k not in state}
        generator.load_state_dict({**state, **counters})
        return generator.to(dtype)

    counted = (shape for key, shape in wanted.items() if not key.endswith("num_batches_tracked"))
    network = TorchNetwork(
        build,
        _call,
        dtype=dtype,
        device=device,
        num_bytes=dtype.itemsize * sum(math.prod(shape) for shape in counted),
        digest=digest,
    )
    mapping = None
    if config.mapping_layers:

        def inner(_dtype: torch.dtype) -> nn.Module:
            return network.module.mapping  # pyright: ignore[reportReturnType]

        mapping = TorchNetwork(inner, _map, dtype=dtype, device=device, digest=digest)
    return GanModel(
        config,
        network,
        name=name or str(folder),
        digest=digest,
        path=str(folder),
        mapping=mapping,
    )


def _call(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    draw: Any = module.draw
    return (draw(inputs["latents"], inputs.get("class_labels")),)


def _map(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return (module(inputs["latents"]),)


def _check_fit(
    path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse weights of another shape than the configuration's."""
    needed = {k for k in wanted if not k.endswith("num_batches_tracked")}
    for key in sorted(needed | set(found)):
        if key not in wanted:
            raise WeightsError(f"{path} has a tensor {key} that {CONFIG_FILE} has no place for")
        if key not in found:
            raise WeightsError(f"{path} lacks the tensor {key} that {CONFIG_FILE} asks for")
        if tuple(found[key]) != wanted[key]:
            raise WeightsError(
                f"{path}: {key} has shape {tuple(found[key])}, {CONFIG_FILE} asks for {wanted[key]}"
            )


def _check_scales(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Refuse integers that no scale makes weights of."""
    for key, (kind, _) in tensors.items():
        if kind == "I8" and key + SUFFIX not in tensors:
            raise WeightsError(f"{path}: {key} is int8, and there is no {key}{SUFFIX} of its rows")


def write_gan(
    folder: Path, config: GanConfig, state: Mapping[str, Tensor], *, int8: Sequence[str] = ()
) -> Path:
    """Write a GAN folder; equal weights give equal bytes.

    Args:
        folder: Made if it is not there.
        config: What the weights are.
        state: The generator's state.
        int8: Names of weights to store as int8 rows.

    Returns:
        The folder.

    Raises:
        WeightsError: If the weights do not fit the configuration.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in Generator(config).state_dict().items()}
    kept = {k: v.detach().cpu().contiguous() for k, v in sorted(state.items())}
    _check_fit(folder / WEIGHTS_FILE, wanted, {k: tuple(v.shape) for k, v in kept.items()})
    for name in int8:
        kept |= round_rows(name, kept[name])
    write_atomically(folder / WEIGHTS_FILE, save(kept, metadata={"format": "pt"}))
    text = json.dumps(config.to_plain(), indent=2, ensure_ascii=False) + "\n"
    write_atomically(folder / CONFIG_FILE, text.encode())
    return folder
