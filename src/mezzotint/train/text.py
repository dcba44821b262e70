"""Text: captions to embeddings, with a ready encoder or one that learns along.

A learned side is a byte-level BPE vocabulary of the captions and a small CLIP
text transformer, saved in the standard layout. A ready encoder is frozen and
each caption is encoded on its own once.

Dimensions: B captions, T tokens.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.train.config import TrainConfig

__all__ = ["TextSide", "learn_tokenizer"]

_CACHED_CAPTIONS = 8192
_START, _END = "<|startoftext|>", "<|endoftext|>"


def learn_tokenizer(captions: Sequence[str], *, size: int, tokens: int) -> Any:
    """Learn a CLIP tokenizer from captions.

    Every byte can be written, so no later prompt is unknown.

    Args:
        captions: What it is learned from.
        size: Entries of the vocabulary, at most.
        tokens: Longest caption, start and end included.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    shape = CLIPTokenizer().backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = shape.normalizer, shape.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(alphabet),
        special_tokens=[_START, _END],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]
    vocabulary: dict[str, int] = dict(learned["vocab"])
    for letter in alphabet:
        for form in (letter, f"{letter}</w>"):
            vocabulary.setdefault(form, len(vocabulary))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=_END, model_max_length=tokens)


class TextSide:
    """The tokenizer and the text encoder of a run.

    Args:
        config: The run.
        captions: Captions of the data.

    Raises:
        InvalidRequest: If ``network.text_encoder`` holds none.
    """

    def __init__(self, config: TrainConfig, captions: Sequence[str]) -> None:
        network = config.network
        self.learns = not network.text_encoder
        self._cache: dict[str, Tensor] = {}
        if self.learns:
            self.tokenizer: Any = learn_tokenizer(
                captions, size=network.vocabulary, tokens=network.text_tokens
            )
            self.encoder: nn.Module = self._build(network.text_hidden, network.text_layers)
        else:
            self.tokenizer, self.encoder = _open_encoder(Path(network.text_encoder))
        self.tokens = min(network.text_tokens, int(self.tokenizer.model_max_length))
        self.width = int(self.encoder.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def _build(self, hidden: int, layers: int) -> nn.Module:
        """Build a small CLIP text transformer at random weights."""
        from transformers import CLIPTextConfig, CLIPTextModel

        vocabulary = self.tokenizer.get_vocab()
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=hidden,
                intermediate_size=4 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=math.gcd(hidden, 4),
                max_position_embeddings=self.tokenizer.model_max_length,
                bos_token_id=vocabulary[_START],
                eos_token_id=vocabulary[_END],
                pad_token_id=vocabulary[_END],
            )
        )

    def embed(
        self, texts: Sequence[str], networks: Mapping[str, Any], device: torch.device
    ) -> Tensor:
        """Return the embeddings of captions. Shape (B, T, width)."""
        if self.learns:
            return networks["text_encoder"](self._ids(texts).to(device))[0]
        return torch.cat([self._embed_once(text, device) for text in texts]).to(device)

    def _ids(self, texts: Sequence[str]) -> Tensor:
        """Return token ids. Shape (B, T), int64."""
        found = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokens, truncation=True
        )
        return torch.tensor(found["input_ids"])

    @torch.no_grad()
    def _embed_once(self, text: str, device: torch.device) -> Tensor:
        """Encode one caption alone, and keep it."""
        if text not in self._cache:
            if len(self._cache) >= _CACHED_CAPTIONS:
                self._cache.clear()
            self._cache[text] = self.encoder(self._ids([text]).to(device))[0].float().cpu()
        return self._cache[text]


def _open_encoder(folder: Path) -> tuple[Any, nn.Module]:
    """Open the tokenizer and the text encoder of a model folder."""
    from transformers import CLIPTextModel, CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder / "tokenizer"))
        encoder = CLIPTextModel.from_pretrained(
            str(folder / "text_encoder"), use_safetensors=True, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"network.text_encoder {folder} must hold tokenizer and text_encoder: "
            f"{str(error).splitlines()[0]}",
            field="network.text_encoder",
            value=str(folder),
        ) from None
    return tokenizer, encoder
