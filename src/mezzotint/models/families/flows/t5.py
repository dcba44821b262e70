"""T5 as the only text encoder: one window of tokens, and which of them are text."""

from dataclasses import replace

import torch

from mezzotint.models.base import Network, Prompt
from mezzotint.models.families.flows.language import TextStates
from mezzotint.models.families.text import TextEncoder, call_last, text_encoder
from mezzotint.models.networks import Placement
from mezzotint.models.parts import Parts

__all__ = ["T5Reader"]


class T5Reader:
    """A T5 that is told which tokens are text, in a window of one length.

    Args:
        parts: With ``tokenizer`` and ``text_encoder``.
        networks: The model's networks; the encoder is added.
        placement: Where and in which type it computes.
        window: Tokens of a text, those that fill it up included.
        shown_filling: Tokens behind a text that the network is shown although they fill it up.
        lowers: Whether a prompt is read in lower case, without white space around it.

    Raises:
        WeightsError: If either part is missing.
    """

    def __init__(
        self,
        parts: Parts,
        networks: dict[str, Network],
        placement: Placement,
        *,
        window: int,
        shown_filling: int = 0,
        lowers: bool = False,
    ) -> None:
        self._t5: TextEncoder = text_encoder(
            parts,
            networks,
            placement,
            call=call_last,
            chunked=False,
            max_length=window,
            uses_mask=True,
        )
        self._shown_filling = shown_filling
        self._lowers = lowers
        if lowers:
            self._t5.tokens = self._t5.tokens.in_lower_case()

    @property
    def window(self) -> int:
        """Tokens of a text, those that fill it up included."""
        return self._t5.tokens.max_length

    def count(self, prompt: Prompt) -> int:
        """Count the tokens of a call."""
        return self.window

    def embed(self, prompt: Prompt) -> TextStates:
        """Read one prompt; the mask shows its tokens."""
        if self._lowers:
            prompt = replace(prompt, text=prompt.text.strip())
        found = self._t5.embed(prompt)
        (chunk, *_), _ = self._t5.tokens.split(prompt.text, prompt.dialect, chunked=False)
        shown = torch.arange(self.window) < sum(chunk.mask) + self._shown_filling
        return TextStates(found.hidden, found.notes, mask=shown[None])
