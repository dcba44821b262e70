"""Base: what a model is to the engine, the trainer and the plain loop.

A model is three things (azula's idea): words to conditioning (``encode``), a
denoiser, and latents to pictures (``decode``). A GAN has no denoiser, an
unconditional network needs no words; the road is the same for all of them.

Rules for every model:
    - Nothing about a request is kept in a model: every method is a function of
      its arguments, so requests may share a model in any order.
    - Weights are in ``eval`` mode and need no gradients.
    - Rows of one call are different images: each with its own noise level and
      its own conditioning. What is said about row k depends on row k alone.
    - Latents are float32 on the outside; a model casts at its networks' doors.

Dimensions: B rows, C latent channels, h and w latent rows and columns, T tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

import mezzotint
from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.models.spec import ModelSpec
from mezzotint.models.stepped_call import SteppedCall
from mezzotint.sampling.denoiser import Denoiser
from mezzotint.types import Size

__all__ = ["Conditioning", "Model", "Network", "Prompt", "Report"]

Report = Callable[[int, str], None]
"""Told ``(row, sentence)`` when something was changed on the way, e.g. a picture rescued."""


class Network(Protocol):
    """One forward pass behind one seam, so that a backend can take torch's place.

    Inputs are named tensors whose first dimension is the row; outputs are
    tensors with the same rows. A network casts to its own dtype and device and
    answers in float32 on the device of its first input.
    """

    def __call__(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network once over all rows."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """All that an encoder needs to know of one row: plain, hashable, a cache key.

    Args:
        text: What the user wrote.
        size: Size of the picture (SDXL conditions on it).
        negative: True for the unconditional half. An empty negative text may be
            encoded differently from an empty prompt (SDXL: zeros).
        class_label: Class for class-conditional models; None is the model's
            "no class" (the unconditional half of a DiT).
        distilled_guidance: Guidance scale that the network takes as an input
            (FLUX, LCM); ignored by models whose spec does not say
            ``takes_distilled_guidance``.
        truncation: Truncation psi of a GAN, 1 is off.
        num_chunks: Chunks of ``token_limit`` tokens to fill; the two halves of a
            guided image need the same number, see :meth:`Model.align`.
        dialect: How weights in the text are read.
        lora_scales: One scale per LoRA of the model view, () for a model without.
        negative_text: The other half's text, for models that run whole.
        num_inference_steps: Steps asked for, for models that run whole.
        references: Digests of the pictures that are read together with the text, for models
            that read them so (:attr:`Model.reads_references`).
    """

    text: str = ""
    size: Size = Size(512, 512)
    negative: bool = False
    class_label: int | None = None
    distilled_guidance: float | None = None
    truncation: float = 1.0
    num_chunks: int = 1
    dialect: str = "plain"
    lora_scales: tuple[float, ...] = ()
    negative_text: str = ""
    num_inference_steps: int | None = None
    references: tuple[str, ...] = ()


class Conditioning(Mapping[str, Tensor]):
    """What an encoder made of prompts: named tensors, one row per prompt.

    Immutable. Rows are stacked for a network call and taken apart again; what
    can be stacked has the same :attr:`shape_key`.

    Args:
        tensors: Named tensors, each with the same first dimension.
        rows: Number of rows; needed only where there are no tensors.
        notes: What was changed on the way (text cut at the token limit, ...),
            one sentence each, for the result's warnings.

    Raises:
        ShapeError: If the tensors disagree about the number of rows.
    """

    __slots__ = ("_tensors", "notes", "rows")

    def __init__(
        self,
        tensors: Mapping[str, Tensor] | None = None,
        *,
        rows: int = 1,
        notes: Sequence[str] = (),
    ) -> None:
        self._tensors = dict(sorted((tensors or {}).items()))
        counts = {int(tensor.shape[0]) for tensor in self._tensors.values()}
        if len(counts) > 1:
            shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
            raise ShapeError(f"conditioning tensors must have equally many rows, got {shapes}")
        self.rows: int = counts.pop() if counts else rows
        self.notes: tuple[str, ...] = tuple(notes)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in self._tensors.items())
        return f"Conditioning({shapes or 'nothing'}; {self.rows} rows)"

    @property
    def shape_key(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Names and shapes of a row: what must be equal inside one network call."""
        return tuple((name, tuple(t.shape[1:])) for name, t in self._tensors.items())

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(t.numel() * t.element_size() for t in self._tensors.values())

    def row(self, index: int) -> "Conditioning":
        """Return one row as a conditioning of its own."""
        rows = {name: t[index : index + 1] for name, t in self._tensors.items()}
        return Conditioning(rows, notes=self.notes)

    def pick(self, order: Sequence[int]) -> "Conditioning":
        """Return some rows in some order; a row may come twice."""
        index = list(order)
        rows = {name: t[index] for name, t in self._tensors.items()}
        return Conditioning(rows, rows=len(index), notes=self.notes)

    def to(self, device: torch.device | str) -> "Conditioning":
        """Return the same conditioning on another device."""
        device = torch.device(device)
        if all(tensor.device == device for tensor in self._tensors.values()):
            return self
        moved = {name: t.to(device) for name, t in self._tensors.items()}
        return Conditioning(moved, rows=self.rows, notes=self.notes)

    def replace(self, **tensors: Tensor) -> "Conditioning":
        """Return a copy with some tensors exchanged or added."""
        return Conditioning({**self._tensors, **tensors}, rows=self.rows, notes=self.notes)

    @classmethod
    def stack(cls, conditionings: Sequence["Conditioning"]) -> "Conditioning":
        """Put rows under each other.

        Raises:
            ShapeError: If the shape keys differ, or there is nothing to stack.
        """
        if not conditionings:
            raise ShapeError("nothing to stack: no conditioning given")
        keys = {conditioning.shape_key for conditioning in conditionings}
        if len(keys) > 1:
            raise ShapeError(f"conditionings of different shape cannot share a call: {keys}")
        first = conditionings[0]
        tensors = {name: torch.cat([c[name] for c in conditionings]) for name in first}
        notes = tuple(dict.fromkeys(note for c in conditionings for note in c.notes))
        return cls(tensors, rows=sum(c.rows for c in conditionings), notes=notes)


class Model(ABC):
    """Weights with three abilities; see the module's text for the rules.

    Attributes:
        spec: What the model is and can do.
        denoiser: Estimates clean latents; None for a GAN, which has no steps.
        networks: The model's networks by role (``"denoiser"``, ``"decoder"``,
            ``"encoder"``, ``"text_encoder"``, ...). A backend replaces an entry
            with :meth:`use_network`.
        fast_networks: Those of its fast copy, by role, once there is one.
        notes: What every picture's warnings say of how the model computes here.
        study: Learns, while nobody waits, what a later copy will draw faster with; may raise
            :class:`~mezzotint.observe.interruption.Interrupted`, and is called again then. None
            where there is nothing to learn.
        certifies_rows: Whether it finds out itself how many rows a call of its decoder may
            have without changing one of them, so that a backend may deal them out.
        control_reads: Tensors of the prompt that a view's ControlNets read for the unconditional
            half too.
        reads_references: Whether what reads the prompt sees the pictures of
            ``image_references`` too, see :meth:`encode_seeing`.
    """

    certifies_rows = False
    control_reads: tuple[str, ...] = ()
    reads_references = False
    notes: tuple[str, ...] = ()
    study: Callable[[], None] | None = None
    fast_networks: Mapping[str, Network] = MappingProxyType({})
    spec: ModelSpec
    denoiser: Denoiser | None
    networks: dict[str, Network]

    @abstractmethod
    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return the shape of one image's latents, without the row dimension."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into a conditioning of one row.

        Each answer is a function of its own prompt alone, bit for bit.

        Raises:
            InvalidRequest: If the model cannot take what the prompt holds.
        """

    def encode_seeing(self, prompt: Prompt, pictures: Sequence[Any]) -> Conditioning:
        """Turn a prompt and the pictures that are read with it into a conditioning of one row.

        Args:
            prompt: With a digest for each picture.
            pictures: Each of shape (H, W, 3), uint8.

        Returns:
            A function of both alone, bit for bit.

        Raises:
            InvalidRequest: If the model reads texts alone.
        """
        raise InvalidRequest(
            f"model {self.spec.name} takes no image_references", field="image_references"
        )

    @abstractmethod
    def decode(
        self,
        latents: Tensor,
        conditioning: Conditioning | None = None,
        *,
        report: Report | None = None,
    ) -> Tensor:
        """Turn clean latents into pictures.

        Args:
            latents: Clean latents. Shape (B, *latent_shape), float32.
            conditioning: The prompts' conditioning, B rows; only a GAN needs it.
            report: Told when a picture had to be rescued in float32.

        Returns:
            Pictures in [-1, 1]. Shape (B, 3, H, W), float32.

        Raises:
            WorkFailed: If a picture is not finite even in float32. Neighbours
                are spared by decoding the rows one by one.
        """

    @property
    def latent_offset(self) -> float:
        """What an autoencoder's shift takes off a clean latent."""
        return 0.0

    def begin(self, latents: Tensor, conditioning: Conditioning) -> SteppedCall[Tensor]:
        """Return a run that takes its own steps, for models that run whole.

        Args:
            latents: What :meth:`draw_latents` drew. Shape (1, *latent_shape).
            conditioning: Of the prompt, one row.

        Returns:
            A call that pauses after each step and answers what :meth:`decode` would.

        Raises:
            InvalidRequest: If the engine takes the model's steps itself.
        """
        raise InvalidRequest(f"model {self.spec.name} does not run whole")

    def sequence_length(self, size: Size) -> int:
        """Return the tokens a picture has in the network, for a shift that depends on it.

        0 where the network is no transformer over patches.
        """
        return 0

    def draw_latents(self, size: Size, generator: torch.Generator) -> Tensor:
        """Draw one image's starting noise on the CPU.

        Args:
            size: Size of the picture.
            generator: The image's own generator, fresh from its seed.

        Returns:
            Standard normal noise. Shape (1, *latent_shape), float32.
        """
        return torch.randn((1, *self.latent_shape(size)), generator=generator, dtype=torch.float32)

    def align(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Give prompts that will share a network call the same number of chunks."""
        most = max((prompt.num_chunks for prompt in prompts), default=1)
        return [p if p.num_chunks == most else replace(p, num_chunks=most) for p in prompts]

    def encode_image(
        self, images: Tensor, generators: Sequence[torch.Generator | None] | None = None
    ) -> Tensor:
        """Turn pictures into clean latents.

        Args:
            images: Pictures in [-1, 1]. Shape (B, 3, H, W), float32.
            generators: One CPU generator per picture for encoders that draw
                from a distribution; None takes its mean.

        Returns:
            Clean latents. Shape (B, *latent_shape), float32.

        Raises:
            InvalidRequest: If the model has no encoder.
        """
        raise InvalidRequest(
            f"model {self.spec.name} cannot start from an image", field="image", allowed="no image"
        )

    def encode_control(self, index: int, picture: Tensor | None, size: Size) -> Tensor:
        """Turn a prepared control picture into what a ControlNet reads.

        Args:
            index: Which of the view's ControlNets.
            picture: Shape (1, 3, H, W), float32, in [0, 1]; None for zeros of the right shape.
            size: Of the picture.

        Returns:
            Pixels of shape (1, 3, H, W), or latents of shape (1, *latent_shape), float32.

        Raises:
            InvalidRequest: If the model is no view with ControlNets, see
                :func:`mezzotint.models.adapters.controlnet.with_controlnets`.
        """
        raise InvalidRequest(f"model {self.spec.name} carries no ControlNet {index}")

    def encode_image_prompt(self, index: int, pictures: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Turn pictures into the tokens that an IP-Adapter's cross attention listens to.

        Args:
            index: Which of the view's IP-Adapters.
            pictures: Each of shape (H, W, 3), uint8.

        Returns:
            Tokens of the pictures, and of no picture for the unconditional half. Each
            of shape (1, T, D), float32.

        Raises:
            InvalidRequest: If the model is no view with IP-Adapters, see
                :func:`mezzotint.models.adapters.ip_adapter.with_ip_adapters`.
        """
        raise InvalidRequest(f"model {self.spec.name} carries no IP-Adapter {index}")

    def encode_references(self, pictures: Sequence[Any]) -> dict[str, Tensor]:
        """Turn the pictures of ``image_references`` into tensors of a conditioning.

        Args:
            pictures: Each of shape (H, W, 3), uint8.

        Returns:
            Tensors of one row by name; each name and shape is the same for what may share
            a call.

        Raises:
            InvalidRequest: If the model takes none.
        """
        raise InvalidRequest(
            f"model {self.spec.name} takes no image_references", field="image_references"
        )

    def map_latents(self, latents: Tensor) -> Tensor | None:
        """Return w of a GAN's z, or None for models without a mapping network. Shape (B, Z)."""
        return None

    def preview_matrix(self) -> Tensor | None:
        """Return the linear map from latent channels to RGB, or None if there is none.

        Shape (C + 1, 3), float32; the last row is the bias; RGB is in [-1, 1].
        """
        return None

    def preview(self, latents: Tensor) -> Tensor | None:
        """Return a rough picture of an estimate of the clean latents.

        Args:
            latents: Shape (1, *latent_shape), float32.

        Returns:
            Shape (3, h, w), float32, in [-1, 1] or a little beyond, on the CPU; None
            where latents do not look like anything.
        """
        estimate = latents[0].float().cpu()
        matrix = self.preview_matrix()
        if matrix is None:
            return estimate if estimate.ndim == 3 and estimate.shape[0] == 3 else None
        bias = matrix[-1][:, None, None]
        return torch.einsum("chw,cr->rhw", estimate, matrix[:-1]) + bias

    @property
    def trial_rows(self) -> int:
        """Rows of the next call of :meth:`try_rows`; 0 where there is nothing to try."""
        return 0

    def try_rows(self) -> None:
        """Make one call that finds out how many rows a call may have.

        One that raises changes nothing.

        Raises:
            InvalidRequest: If the model does not certify its rows itself.
        """
        raise InvalidRequest(f"model {self.spec.name} has no rows to try")

    def use_network(self, role: str, network: Network) -> None:
        """Let another backend answer for one of :attr:`networks`."""
        self.networks[role] = network

    def cut_autoencoder(
        self,
        *,
        slicing: bool | None = None,
        tiling: bool | None = None,
        circular: bool | None = None,
    ) -> int | None:
        """Let the autoencoder take pictures one at a time, or large ones in tiles.

        Args:
            slicing: Whether pictures go through it one at a time; None leaves it as it is.
            tiling: Whether a picture larger than a tile is cut into overlapping tiles.
            circular: Whether what lies outside a picture is its other side.

        Returns:
            Side of a tile in pixels, or None if the model has no autoencoder to cut.
        """
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, for the store's budget; with those of its fast copy.

        A network whose fast copy draws, and that has not drawn itself, holds nothing.
        """
        return sum(self._role_bytes(role) for role in self.networks)

    def _role_bytes(self, role: str) -> int:
        """Return the bytes of a network and of its fast copy."""
        own = self.networks[role]
        fast = self.fast_networks.get(role, own)
        both = {id(n): n for n in (own, fast)}
        if len(both) > 1 and getattr(fast, "num_bytes", 0) and not getattr(own, "is_held", True):
            del both[id(own)]  # what adds nothing calls this one's module
        return sum(int(getattr(network, "num_bytes", 0)) for network in both.values())

    @staticmethod
    def load(source: Any, **options: Any) -> "Model":
        """Load a model by store name, path or Hub id; see :mod:`mezzotint.models.store.store`.

        Raises:
            UnknownName: If nothing is called that.
            ModelError: If its files are missing, corrupt or unsafe.
        """
        return mezzotint.load_model(source, **options)

    @staticmethod
    def from_components(**components: Any) -> "Model":
        """Wire loose parts into a model; see :mod:`mezzotint.models.formats.components`.

        Raises:
            ShapeError: If the parts do not fit together.
        """
        return mezzotint.from_components(**components)
