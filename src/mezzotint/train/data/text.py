"""Text: captions to embeddings, with a ready encoder or one that learns along.

A learned side is a byte-level BPE vocabulary of the captions and a small CLIP
text transformer, saved in the standard layout. A ready encoder is frozen and
each caption is encoded on its own once.

Dimensions: B captions, T tokens.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.exported import exported_class
from mezzotint.models.quiet_loading import quiet_loading
from mezzotint.train.config.model import NetworkConfig

__all__ = ["TextSide", "learn_tokenizer"]

_CACHED_CAPTIONS = 8192
_ENCODERS = {"CLIPTextModel": "CLIPTokenizer", "BertModel": "BertTokenizerFast"}
_START, _END = "<|startoftext|>", "<|endoftext|>"


def learn_tokenizer(captions: Sequence[str], *, size: int, tokens: int) -> Any:
    """Learn a CLIP tokenizer from captions.

    Every byte can be written, so no later prompt is unknown. Equal captions
    give the equal tokenizer; the learner of the ``tokenizers`` library numbers
    by hash order, which a resumed run could not repeat.

    Args:
        captions: What it is learned from.
        size: Entries of the vocabulary, at most.
        tokens: Longest caption, start and end included.
    """
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    shape = CLIPTokenizer().backend_tokenizer
    words: Counter[tuple[str, ...]] = Counter()
    for caption in captions:
        text = shape.normalizer.normalize_str(caption)
        for word, _ in shape.pre_tokenizer.pre_tokenize_str(text):
            words[(*word[:-1], f"{word[-1]}</w>")] += 1
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [_START, _END, *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges = learn_merges(words, count=max(0, size - len(entries)))
    entries += dict.fromkeys(a + b for a, b in merges if a + b not in set(entries))
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    pairs: Any = merges  # annotated as texts there, read as pairs
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=_END, model_max_length=tokens)


def learn_merges(words: Mapping[tuple[str, ...], int], *, count: int) -> list[tuple[str, str]]:
    """Learn byte-pair merges: again and again the most frequent pair, ties by spelling.

    Args:
        words: Words as symbols, with how often each occurs.
        count: Merges, at most.

    Source: arXiv:1508.07909, algorithm 1.
    """
    rows = [list(word) for word in sorted(words)]
    counts = [words[word] for word in sorted(words)]
    totals: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], set[int]] = {}

    def book(index: int, sign: int) -> None:
        for pair in itertools.pairwise(rows[index]):
            totals[pair] += sign * counts[index]
            places.setdefault(pair, set()).add(index)

    for index in range(len(rows)):
        book(index, 1)
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        best = min(totals, key=lambda pair: (-totals[pair], pair), default=None)
        if best is None or totals[best] < 2:
            break
        merges.append(best)
        for index in sorted(places.pop(best)):
            book(index, -1)
            rows[index] = _join(rows[index], best)
            book(index, 1)
        del totals[best]
    return merges


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """Merge every occurrence of a pair, from the left."""
    joined: list[str] = []
    for symbol in symbols:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return joined


class TextSide:
    """The tokenizer and the text encoder of a run.

    Args:
        network: Which text encoder, or how large a learned one.
        captions: Captions of the data, for a learned one.

    Raises:
        InvalidRequest: If ``network.text_encoder`` holds none.
    """

    def __init__(self, network: NetworkConfig, captions: Sequence[str]) -> None:
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
        config: Any = self.encoder.config
        self.width = int(config.hidden_size)

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
            return networks["text_encoder"](self._tokens(texts)["input_ids"].to(device))[0]
        return torch.cat([self._embed_once(text, device) for text in texts]).to(device)

    def _tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return token ids and their mask. Shapes (B, T), int64."""
        found = self.tokenizer(
            list(texts), padding="max_length", max_length=self.tokens, truncation=True
        )
        return {name: torch.tensor(found[name]) for name in ("input_ids", "attention_mask")}

    @torch.no_grad()
    def _embed_once(self, text: str, device: torch.device) -> Tensor:
        """Encode one caption alone, and keep it.

        The mask is used where the encoder's configuration asks for it, as
        Stable Diffusion's pipeline does.
        """
        if text not in self._cache:
            if len(self._cache) >= _CACHED_CAPTIONS:
                self._cache.clear()
            tokens = self._tokens([text])
            masked = bool(getattr(self.encoder.config, "use_attention_mask", False))
            mask = tokens["attention_mask"].to(device) if masked else None
            answer = self.encoder(tokens["input_ids"].to(device), attention_mask=mask)[0]
            self._cache[text] = answer.float().cpu()
        return self._cache[text]


def _open_encoder(folder: Path) -> tuple[Any, nn.Module]:
    """Open the tokenizer and the text encoder of a model folder: CLIP's or BERT's."""
    try:
        config = json.loads((folder / "text_encoder" / "config.json").read_text("utf-8"))
        kind = (config.get("architectures") or [""])[0]
        if kind not in _ENCODERS:
            raise ValueError(f"{kind or 'an unnamed class'} is none of {', '.join(_ENCODERS)}")
        tokens = exported_class("transformers", _ENCODERS[kind], where=folder)
        texts = exported_class("transformers", kind, where=folder)
        with quiet_loading():
            tokenizer = tokens.from_pretrained(str(folder / "tokenizer"), trust_remote_code=False)
            encoder = texts.from_pretrained(
                str(folder / "text_encoder"),
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
            )
    except (OSError, ValueError) as error:
        raise InvalidRequest(
            f"network.text_encoder {folder} must hold tokenizer and text_encoder: "
            f"{str(error).splitlines()[0]}",
            field="network.text_encoder",
            value=str(folder),
        ) from None
    return tokenizer, encoder
