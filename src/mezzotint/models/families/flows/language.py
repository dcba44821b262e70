"""Language models as text encoders: a framed prompt to the states of its tokens.

Each prompt is read by a call of its own, filled up to one of a few lengths, so that its
states are a function of the prompt alone and a backend compiles few shapes. A token sees
only what stands before it, and what fills up stands behind; it may stand in front where the
network sees all of a call.

Dimensions: T tokens, L tokens of a call, D hidden width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.models.base import Network, Prompt
from mezzotint.models.chat_text import CHAT_FORMATS, ChatFormat, ChatIds, chat_ids
from mezzotint.models.networks import Call, Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.prompts import Tokens

__all__ = [
    "LanguageEncoder",
    "MakeReader",
    "TextReader",
    "TextStates",
    "call_layers",
    "language_model",
]

ROLE = "text_encoder"
LEAST_LENGTH = 64  # tokens of the shortest call


@dataclass(frozen=True, slots=True)
class TextStates:
    """States (1, T, D) that the network may see, notes for the result, and where they are text.

    ``mask`` has shape (1, T), bool; None where the states are those of text alone, or the
    network is not told. ``places`` are the tokens before each picture that was read with the
    text.
    """

    hidden: Tensor
    notes: tuple[str, ...]
    mask: Tensor | None = None
    places: tuple[int, ...] = ()


class TextReader(Protocol):
    """What a family reads its prompts with."""

    @property
    def window(self) -> int:
        """Tokens whose states the network may see."""
        ...

    def count(self, prompt: Prompt) -> int:
        """Count the tokens whose states the network may see."""
        ...

    def embed(self, prompt: Prompt) -> TextStates:
        """Read one prompt."""
        ...


def call_layers(*layers: int) -> Call:
    """Return a call that answers the states of some layers, side by side. (R, L, D)."""

    def call(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        body: Any = getattr(module, "model", module)  # without the head that predicts words
        output = body(**inputs, output_hidden_states=True, use_cache=False)
        return (torch.cat([output.hidden_states[k] for k in layers], dim=-1),)

    return call


class LanguageEncoder:
    """A tokenizer, a frame for prompts and a language model.

    Args:
        parts: With ``tokenizer`` and ``text_encoder``.
        networks: The model's networks; the encoder is added, and looked up at each call.
        placement: Where and in which type it computes.
        chat: The frame.
        call: How the language model is called.
        is_whole: Whether the network sees all that a call can hold, what fills it up too.
        tokens_role: What the tokenizer is called among the parts.

    Raises:
        WeightsError: If either part is missing.
    """

    def __init__(
        self,
        parts: Parts,
        networks: dict[str, Network],
        placement: Placement,
        *,
        chat: ChatFormat,
        call: Call,
        is_whole: bool = False,
        tokens_role: str = "tokenizer",
    ) -> None:
        for role, known in ((tokens_role, parts.tokenizers), (ROLE, parts.networks)):
            if role not in known:
                raise WeightsError(f"{parts.name} has no {role}, which {parts.pipeline} needs")
        self.tokens: Tokens = parts.tokenizers[tokens_role]
        self._networks = networks
        self._chat = chat
        self._is_whole = is_whole
        said = self.tokens.fills_front
        self._fills_front = is_whole and (chat.fills_front if said is None else said)
        network = TorchNetwork.of(parts.networks[ROLE], call, placement)
        # What fills up in front sees nothing: torch answers zeros there, others no numbers.
        network.stays_in_torch = self._fills_front
        networks[ROLE] = network

    @property
    def window(self) -> int:
        """Tokens whose states the network may see."""
        return self._chat.window

    def count(self, prompt: Prompt) -> int:
        """Count the tokens whose states the network may see, one for each picture."""
        return self._read(prompt).num_seen

    def embed(self, prompt: Prompt) -> TextStates:
        """Read one prompt."""
        found = self._read(prompt)
        ids, (first, last) = found.ids, found.hidden
        length = found.limit
        if not self._is_whole:
            length = min(max(LEAST_LENGTH, 1 << (len(ids) - 1).bit_length()), length)
        padding = length - len(ids)
        front, behind = (padding, 0) if self._fills_front else (0, padding)
        pad = self.tokens.pad
        inputs = {
            "input_ids": torch.tensor([[*[pad] * front, *ids, *[pad] * behind]]),
            "attention_mask": torch.tensor([[*[0] * front, *[1] * len(ids), *[0] * behind]]),
        }
        (states,) = self._networks[ROLE](**inputs)
        seen = length if self._is_whole else len(ids)
        hidden = torch.cat([states[:, :first], states[:, last:seen]], dim=1)
        return self._states(found, hidden)

    def _states(self, found: ChatIds, hidden: Tensor) -> TextStates:
        """Say beside the states what was not read."""
        return TextStates(hidden, (*found.cuts, *found.unheard))

    def _read(self, prompt: Prompt) -> ChatIds:
        return chat_ids(
            self.tokens,
            self._chat,
            prompt.text,
            prompt.dialect,
            negative=prompt.negative,
            pictures=len(prompt.references),
        )


MakeReader = Callable[[Parts, dict[str, Network], Placement], TextReader]
"""Makes what reads prompts, of the parts of a model."""


def language_model(family: str, call: Call, *, is_whole: bool = False) -> MakeReader:
    """Return what makes the text encoder of a family that a language model reads for.

    Args:
        family: ``CHAT_FORMATS`` has the frame of its prompts by it.
        call: How the language model is called.
        is_whole: Whether the network sees all that a call can hold, what fills it up too.
    """

    def make(parts: Parts, networks: dict[str, Network], placement: Placement) -> TextReader:
        chat = CHAT_FORMATS[family]
        return LanguageEncoder(parts, networks, placement, chat=chat, call=call, is_whole=is_whole)

    return make
