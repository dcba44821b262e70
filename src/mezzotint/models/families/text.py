"""Text encoders: token windows to hidden states, weighted as the dialect says.

Each prompt is encoded by calls of its own, one window at a time, so its
embedding is a function of the prompt alone and can be cached.

Dimensions: T tokens of all windows, L tokens of one, D hidden width, P pooled width.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.models.base import Network, Prompt
from mezzotint.models.networks import Call, Placement, TorchNetwork
from mezzotint.models.parts import Part, Parts
from mezzotint.models.prompts import Chunk, Tokens

__all__ = [
    "Embedding",
    "TextEncoder",
    "call_last",
    "call_penultimate",
    "call_pooled",
    "text_encoder",
]

MAX_POSITIONS = 4096
LEAST_WEIGHT = 1e-9  # a weight of 0 would be an infinite share in a blend


@dataclass(frozen=True, slots=True)
class Embedding:
    """Hidden states (1, T, D), pooled vector (1, P) or None, notes for the result."""

    hidden: Tensor
    pooled: Tensor | None
    notes: tuple[str, ...]


def call_last(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Answer the last hidden state (SD 1.x, 2.x, T5, BERT)."""
    return (module(**inputs)[0],)


def call_penultimate(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Answer the last but one hidden state and, with a projection, the pooled text."""
    output: Any = module(**inputs, output_hidden_states=True)
    hidden, first = output.hidden_states[-2], output[0]
    return (hidden, first) if first.ndim == 2 else (hidden,)


def call_pooled(module: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Answer the last hidden state and the pooled output (FLUX)."""
    output: Any = module(**inputs)
    return output.last_hidden_state, output.pooler_output


class TextEncoder:
    """One tokenizer and its encoder.

    Args:
        tokens: The tokenizer.
        networks: The model's networks; the encoder is looked up at each call.
        role: The encoder's name among them; an attribute too, as ``tokens`` is.
        uses_mask: Whether the encoder is told which tokens are padding.
        chunked: Whether long texts may take several windows.
    """

    def __init__(
        self,
        tokens: Tokens,
        networks: Mapping[str, Network],
        role: str,
        *,
        uses_mask: bool = False,
        chunked: bool = True,
    ) -> None:
        self.tokens = tokens
        self._networks = networks
        self.role = role
        self._uses_mask = uses_mask
        self._chunked = chunked

    def count_chunks(self, prompt: Prompt) -> int:
        """Count the windows a prompt needs."""
        if not self._chunked:
            return 1
        return max(prompt.num_chunks, self.tokens.count_chunks(prompt.text, prompt.dialect))

    def embed(self, prompt: Prompt) -> Embedding:
        """Encode one prompt; the pooled vector is that of the first window."""
        chunks, notes = self.tokens.split(
            prompt.text,
            prompt.dialect,
            num_chunks=prompt.num_chunks if self._chunked else 1,
            chunked=self._chunked,
        )
        outputs = [self._run(chunk) for chunk in chunks]
        hidden = [
            self._weigh(output[0], chunk, prompt.dialect) if chunk.is_weighted else output[0]
            for output, chunk in zip(outputs, chunks, strict=True)
        ]
        pooled = outputs[0][1] if len(outputs[0]) > 1 else None
        return Embedding(torch.cat(hidden, dim=1), pooled, notes)

    def _run(self, chunk: Chunk, hidden_tokens: slice | None = None) -> tuple[Tensor, ...]:
        """Run the encoder over one window, blind to some of its tokens if asked."""
        inputs = {"input_ids": torch.tensor([chunk.ids])}
        if self._uses_mask or hidden_tokens is not None:
            mask = torch.tensor([chunk.mask]) if self._uses_mask else torch.ones(1, len(chunk.ids))
            if hidden_tokens is not None:
                mask[:, hidden_tokens] = 0
            inputs["attention_mask"] = mask.long()
        return self._networks[self.role](**inputs)

    def _weigh(self, hidden: Tensor, chunk: Chunk, dialect: str) -> Tensor:
        """Apply token weights the way the dialect's own tool does.

        A1111 scales the states and restores their mean. ComfyUI and compel move
        them away from, or towards, the states of an empty text; compel blends
        words that weigh less than 1 with the text that lacks them.
        """
        weights = torch.tensor(chunk.weights, dtype=hidden.dtype, device=hidden.device)
        weights = weights[None, :, None]
        if dialect == "a1111":
            weighted = hidden * weights
            return weighted * (hidden.mean() / weighted.mean())
        empty = self._run(self.tokens.split("")[0][0])[0]
        weighted = torch.where(weights == 1, hidden, (hidden - empty) * weights + empty)
        if dialect != "compel":
            return weighted
        blended, total = weighted, 1.0
        for tokens, weight in _weaker_runs(chunk.weights):
            lacking = self._run(chunk, tokens)[0]
            lacking = torch.where(weights == 1, lacking, (lacking - empty) * weights + empty)
            share = math.tan((1 - max(weight, LEAST_WEIGHT)) * math.pi / 2)
            blended, total = blended + lacking * share, total + share
        return blended / total


def _weaker_runs(weights: Sequence[float]) -> Iterator[tuple[slice, float]]:
    """Yield neighbouring tokens of one weight below 1, and that weight."""
    start = 0
    for weight, run in groupby(weights):
        stop = start + len(list(run))
        if weight < 1:
            yield slice(start, stop), weight
        start = stop


def text_encoder(
    parts: Parts,
    networks: dict[str, Network],
    placement: Placement,
    *,
    suffix: str = "",
    call: Call = call_last,
    chunked: bool = True,
    max_length: int | None = None,
    uses_mask: bool | None = None,
) -> TextEncoder:
    """Wire ``tokenizer{suffix}`` and ``text_encoder{suffix}`` together.

    ``uses_mask`` says whether the encoder is told what is text; None asks its configuration.

    Raises:
        WeightsError: If either part is missing.
    """
    role, tokenizer_role = f"text_encoder{suffix}", f"tokenizer{suffix}"
    for needed, found in ((role, parts.networks), (tokenizer_role, parts.tokenizers)):
        if needed not in found:
            raise WeightsError(f"{parts.name} has no {needed}, which {parts.pipeline} needs")
    part: Part = parts.networks[role]
    tokens: Tokens = parts.tokenizers[tokenizer_role]
    positions = part.config.get("max_position_embeddings")
    longest = min(max_length or tokens.max_length, int(positions or MAX_POSITIONS))
    if longest != tokens.max_length:
        tokens = tokens.with_length(longest)
    networks[role] = TorchNetwork.of(part, call, placement)
    if uses_mask is None:
        uses_mask = bool(part.config.get("use_attention_mask"))
    return TextEncoder(tokens, networks, role, uses_mask=uses_mask, chunked=chunked)
