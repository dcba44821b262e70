"""Language models that see: a prompt and the pictures to edit, read in one call.

Each picture stands in the frame of the prompt, before its text, as so many tokens as the
language model makes of it. Their states are left out again: the network has the picture's
latents in their place, and is told where that is.

Dimensions: K pictures, L tokens of a call, T tokens of text, D hidden width, N patches of
all pictures, F numbers of a patch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mezzotint.models.base import Network, Prompt
from mezzotint.models.chat_text import CHAT_FORMATS, PICTURE
from mezzotint.models.families.flows.language import ROLE, LanguageEncoder, TextStates
from mezzotint.models.networks import Call, Placement, TorchNetwork
from mezzotint.models.parts import Parts

__all__ = ["READ_SIDE_PX", "SeeingEncoder", "fit_picture", "seeing_model"]

READ_SIDE_PX = 1024
"""Side of a square of as many pixels as a picture to edit is read with."""

_MIDDLE = (0.5, 0.5, 0.5)  # mean and deviation of colours where the processor does not say


class SeeingEncoder(LanguageEncoder):
    """A language encoder that reads pictures with the prompt.

    Args:
        parts: With ``processor`` and ``text_encoder``.
        networks: See :class:`~mezzotint.models.families.flows.language.LanguageEncoder`.
        placement: Where and in which type it computes.
        family: ``CHAT_FORMATS`` has the frame of its prompts by it.
        call: How the language model is called.

    Raises:
        WeightsError: If a part is missing.
    """

    def __init__(
        self,
        parts: Parts,
        networks: dict[str, Network],
        placement: Placement,
        *,
        family: str,
        call: Call,
    ) -> None:
        chat = CHAT_FORMATS[family]
        super().__init__(parts, networks, placement, chat=chat, call=call, tokens_role="processor")
        vision: Mapping[str, Any] = parts.networks[ROLE].config.get("vision_config") or {}
        self._patch = int(vision.get("patch_size", 16))
        self._merge = int(vision.get("spatial_merge_size", 2))
        self._frames = int(vision.get("temporal_patch_size", 2))
        said: Mapping[str, Any] = parts.config.get("image_processor") or {}
        self._mean, self._deviation = (
            np.asarray(said.get(name) or _MIDDLE, np.float32)
            for name in ("image_mean", "image_std")
        )
        (self._mark,) = (token for token, _ in self.tokens.encode_whole(PICTURE))

    def embed_seeing(self, prompt: Prompt, pictures: Sequence[Any]) -> TextStates:
        """Read one prompt and its pictures.

        Args:
            prompt: With a digest for each picture.
            pictures: Each of shape (H, W, 3), uint8.
        """
        found = self._read(prompt)
        multiple = self._patch * self._merge
        seen = [self._patches(fit_picture(pixels, multiple)) for pixels in pictures]
        counts = iter([len(patches) // self._merge**2 for patches, _ in seen])
        ids, kept, places = list[int](), list[int](), list[int]()
        for k, token in enumerate(found.ids):
            if token == self._mark:
                places.append(len(kept))
                ids += [token] * next(counts)
            else:
                if not found.hidden[0] <= k < found.hidden[1]:
                    kept.append(len(ids))
                ids.append(token)
        tokens = torch.tensor([ids])
        (states,) = self._networks[ROLE](
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=(tokens == self._mark).int(),
            pixel_values=torch.cat([patches for patches, _ in seen]),
            image_grid_thw=torch.tensor([grid for _, grid in seen]),
        )
        return replace(self._states(found, states[:, kept]), places=tuple(places))

    def _patches(self, picture: Image.Image) -> tuple[Tensor, tuple[int, int, int]]:
        """Return a picture's patches, (N, F), those of one token together, and their grid.

        Source: ``Qwen2VLImageProcessor`` of transformers 5, whose frames are equal here.
        """
        patch, merge = self._patch, self._merge
        array = np.asarray(picture, np.float32) / np.float32(255)
        array = (array - self._mean) / self._deviation
        rows, columns = array.shape[0] // patch, array.shape[1] // patch
        cut = array.reshape(rows // merge, merge, patch, columns // merge, merge, patch, 3)
        cut = cut.transpose(0, 3, 1, 4, 6, 2, 5)[..., None, :, :].repeat(self._frames, axis=-3)
        return torch.as_tensor(cut.reshape(rows * columns, -1)), (1, rows, columns)


def fit_picture(pixels: Any, multiple: int) -> Image.Image:
    """Bring a picture to the area that pictures to edit are read with, its proportions kept.

    Args:
        pixels: Shape (H, W, 3), uint8.
        multiple: Of both sides, in pixels.
    """
    picture = Image.fromarray(pixels)
    width = math.sqrt(READ_SIDE_PX**2 * (picture.width / picture.height))
    height = width / (picture.width / picture.height)
    sides = [max(round(side / multiple), 1) * multiple for side in (width, height)]
    return picture.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)


def seeing_model(
    family: str, call: Call, *, prepare: Callable[[Any], None]
) -> Callable[[Parts, dict[str, Network], Placement], SeeingEncoder]:
    """Return what makes the text encoder of a family whose language model sees.

    Args:
        family: ``CHAT_FORMATS`` has the frame of its prompts by it.
        call: How the language model is called.
        prepare: Changes its layers once, when it is built.
    """

    def make(parts: Parts, networks: dict[str, Network], placement: Placement) -> SeeingEncoder:
        encoder = SeeingEncoder(parts, networks, placement, family=family, call=call)
        network = networks[ROLE]
        assert isinstance(network, TorchNetwork)  # noqa: S101 - the encoder made it
        network.change("states", prepare)
        network.stays_in_torch = True  # how many patches there are decides its loops
        return encoder

    return make
