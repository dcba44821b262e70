"""Flow transformers: what families over packed patches and one text encoder share.

A family is one file with a function that calls its network and a :class:`FlowFamily`:
how its text is read, what its steps are, what it takes. Guidance, noise, solvers, start
pictures, masks, regions, previews and LoRAs are those of every latent model.

Rows of one call have texts of different length. Each is filled up to one of a few lengths
and says by a mask which of its tokens are text; the length is that of the request's
longest text, rounded up, and so the same whoever else is in the call (see the decision
"Texts are filled up to lengths that a request alone decides").

Dimensions: R rows, C latent channels, h and w latent rows and columns, T text tokens,
D width of their states.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad

from mezzotint.errors import CardError
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.autoencoder import Autoencoder
from mezzotint.models.families.common import drawing_defaults, part_of, token_width
from mezzotint.models.families.flows.language import MakeReader, TextStates
from mezzotint.models.families.flows.seeing import SeeingEncoder
from mezzotint.models.families.latent import LatentModel
from mezzotint.models.networks import Call, Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.spec import Family, ModelSpec
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule
from mezzotint.types import Size

__all__ = ["PICTURE_PLACES", "TEXT_MASK", "FlowFamily", "FlowModel"]

TEXT_MASK = "text_mask"
"""Name of the conditioning tensor that tells text from what fills it up. (R, T), bool."""

TEXT_STATES = "encoder_hidden_states"
REFERENCE = "reference"
"""What names of conditioning tensors with the latents of a reference start with."""

PICTURE_PLACES = "picture_places"
"""Name of the conditioning tensor with the text tokens before each reference. (R, K), whole."""

MAX_REFERENCE_PIXELS = 1024 * 1024  # larger ones are made smaller, as in diffusers' pipelines
CHUNK = 128  # tokens of the shortest filled text; longer ones are twice as long, and so on
MAX_LEVELS = 1000
VAE_SCALE = 8  # of the real checkpoints; tiny ones differ


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFamily:
    """What tells one family of flow transformers from another.

    Args:
        family: Its name.
        call: Calls the transformer with latents (R, C, h, w) and named tensors, and
            answers the velocity ``noise - clean``.
        prepare: Changes the transformer's layers once, when it is built.
        text: Makes what reads its prompts.
        defaults: What the parts say of the spec: steps, guidance, limits, ...
        side_px: Side of the pictures it draws best.
        patch: Latent rows and columns of one token.
        multiple: Latent rows and columns that sides are a multiple of; 0 for those of a token.
        reads_padding: Whether what fills a text up is seen, as it was in training.
        takes_controls: Whether there are ControlNets of it.
        max_references: Pictures that it takes beside the prompt.
        fit: Makes of such a picture (H, W, 3) what the autoencoder reads, (1, 3, H', W') in
            [-1, 1], told of how many pixels sides are a multiple.
        guidance_norm_block: See :class:`~mezzotint.models.spec.ModelSpec`.
        scheduler: What the pipeline says of noise levels beyond the scheduler's file.
    """

    family: Family
    call: Call
    text: MakeReader
    defaults: Callable[[Parts], Mapping[str, Any]]
    prepare: Callable[[nn.Module], Any] | None = None
    side_px: int = 1024
    patch: int = 2
    multiple: int = 0
    reads_padding: bool = False
    takes_controls: bool = False
    max_references: int = 0
    fit: Callable[[Any, int], Tensor] | None = None
    guidance_norm_block: tuple[int, int, int] | None = None
    scheduler: Mapping[str, Any] = field(default_factory=lambda: {"spaced_per_step": True})


class FlowModel(LatentModel):
    """A flow transformer over an autoencoder's latents, told what to draw by a language model.

    Args:
        parts: The pieces.
        placement: Where and in which type networks compute.
        row: Its family.
    """

    def __init__(self, parts: Parts, placement: Placement, row: FlowFamily) -> None:
        transformer = part_of(parts, "transformer")
        self.networks = {}
        self._row = row
        self._text = row.text(parts, self.networks, placement)
        denoiser = TorchNetwork.of(transformer, row.call, placement)
        if row.prepare is not None:
            denoiser.change("attention", row.prepare)
        denoiser.fixes_sizes = True  # packing and rotary positions count tokens
        self.networks["denoiser"] = denoiser
        self._autoencoder = Autoencoder(part_of(parts, "vae"), self.networks, placement)
        self.reads_references = isinstance(self._text, SeeingEncoder)
        scale = self._autoencoder.scale
        multiple = (row.multiple or row.patch) * scale
        levels = _levels(parts)
        side = row.side_px * scale // (VAE_SCALE * 2 // row.patch)
        defaults = drawing_defaults(
            parts,
            scheduler="flow_euler",
            denoiser="transformer",
            **{"default_size": Size(side, side), **row.defaults(parts)},
        )
        if levels:
            defaults |= _with_levels(levels["sample_sigmas"], defaults)
        self.spec = ModelSpec(
            name=parts.name,
            digest=parts.digest,
            path=parts.path,
            family=row.family,
            prediction_type="flow",
            scheduler_config={**parts.scheduler, **row.scheduler, **levels},
            latent_channels=self._autoencoder.channels,
            latent_scale=scale,
            size_multiple=multiple,
            min_size_px=multiple,
            token_limit=self._text.window,
            token_width=token_width(transformer.config) if row.takes_controls else 0,
            max_references=row.max_references,
            guidance_norm_block=row.guidance_norm_block,
            **defaults,
        )
        self.denoiser = NetworkDenoiser(self._predict, noise_schedule(parts.scheduler), "flow")

    def encode_references(self, pictures: Sequence[Any]) -> dict[str, Tensor]:
        """Encode each picture in its own size; see :meth:`Model.encode_references`."""
        if not self._row.max_references:
            return super().encode_references(pictures)
        fit, multiple = self._row.fit or _reference, self.spec.size_multiple
        return {
            f"{REFERENCE}{k:02d}": self.encode_image(fit(picture, multiple))
            for k, picture in enumerate(pictures)
        }

    def sequence_length(self, size: Size) -> int:
        """Return the number of tokens of a picture."""
        _, rows, columns = self.latent_shape(size)
        return (rows // self._row.patch) * (columns // self._row.patch)

    def align(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Give prompts that will share a network call the length of the longest."""
        if self._row.reads_padding:
            return list(prompts)
        most = max((self._chunks(prompt) for prompt in prompts), default=1)
        return [p if p.num_chunks == most else replace(p, num_chunks=most) for p in prompts]

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into the states of its tokens, filled up, and their mask."""
        return [self._conditioning(prompt, self._text.embed(prompt)) for prompt in prompts]

    def encode_seeing(self, prompt: Prompt, pictures: Sequence[Any]) -> Conditioning:
        """Read a prompt together with pictures; see :meth:`Model.encode_seeing`."""
        if not isinstance(self._text, SeeingEncoder):
            return super().encode_seeing(prompt, pictures)
        return self._conditioning(prompt, self._text.embed_seeing(prompt, pictures))

    def _chunks(self, prompt: Prompt) -> int:
        """Return the chunks that a text is filled up to: 1, 2, 4, ..."""
        chunks = -(-max(self._text.count(prompt), 1) // CHUNK)
        return 1 << (max(chunks, prompt.num_chunks) - 1).bit_length()

    def _conditioning(self, prompt: Prompt, states: TextStates) -> Conditioning:
        """Fill the states of a text up, and say what the network is told beside them."""
        hidden = states.hidden
        if self._row.reads_padding:
            tensors = {TEXT_STATES: hidden}
            if states.mask is not None:
                tensors[TEXT_MASK] = states.mask
        else:
            count = hidden.shape[1]
            length = self._chunks(prompt) * CHUNK
            tensors = {
                TEXT_STATES: pad(hidden, (0, 0, 0, length - count)),
                TEXT_MASK: (torch.arange(length) < count)[None],
            }
        if states.places:
            tensors[PICTURE_PLACES] = torch.tensor([states.places])
        scale = prompt.distilled_guidance
        if self.spec.takes_distilled_guidance:
            scale = self.spec.default_guidance_scale if scale is None else scale
            tensors["guidance"] = torch.tensor([float(scale)])
        return Conditioning(tensors, notes=states.notes)


def _levels(parts: Parts) -> dict[str, tuple[float, ...]]:
    """Return the noise levels that the authors of a model set, {} if they set none.

    Raises:
        CardError: If they are none that fall from at most 1 to above 0.
    """
    said = parts.config.get("sample_sigmas")
    if said is None:
        return {}
    levels = [float(s) if isinstance(s, int | float) else math.nan for s in said]
    is_falling = all(a > b for a, b in pairwise([*levels, 0.0]))
    if not levels or len(levels) > MAX_LEVELS or not (levels[0] <= 1 and is_falling):
        raise CardError(
            f"{parts.name}: sample_sigmas must be 1 to {MAX_LEVELS} numbers that fall from at "
            f"most 1 to above 0, got {str(said)[:100]}"
        )
    return {"sample_sigmas": tuple(levels)}


def _with_levels(levels: Sequence[float], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return steps and limits of a model whose authors set its noise levels."""
    count = len(levels)
    told = f"noise levels are those of its authors at {count} steps, evenly spaced at others"
    return {"default_steps": count, "limits": (*defaults.get("limits", ()), told)}


def _reference(pixels: Any, multiple: int) -> Tensor:
    """Fit a picture to what the network saw in training: an area, and sides in patches.

    Args:
        pixels: Shape (H, W, 3), uint8.
        multiple: Of both sides; what is over is cut off around the middle.

    Returns:
        Shape (1, 3, H', W'), float32, in [-1, 1].
    """
    picture = Image.fromarray(pixels)
    area = picture.width * picture.height
    if area > MAX_REFERENCE_PIXELS:
        factor = math.sqrt(MAX_REFERENCE_PIXELS / area)
        size = (int(picture.width * factor), int(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    width, height = (max(side // multiple, 1) * multiple for side in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    cut = picture.crop((left, top, left + width, top + height))
    return torch.as_tensor(np.array(cut)).float().movedim(-1, 0)[None] / 255 * 2 - 1
