"""Prompts: text to token ids, in chunks that an encoder can take.

CLIP reads 77 tokens, start and end included. Longer prompts are split into
chunks of 75 as A1111 does: a chunk that would end in the middle of a phrase ends
at its last comma if that is at most 20 tokens back. Encoders that cannot be
chunked (BERT, T5) read as much as fits, and a note names the text that was cut.

Ids come from the ``tokenizers`` library alone, without transformers. A tokenizer
is never changed after it was loaded, so threads may share it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.exported import refuse_own_code
from mezzotint.models.parts import read_json
from mezzotint.models.prompt_syntax import BREAK, Span, spans, word_pattern
from mezzotint.plain import is_mapping

__all__ = ["Chunk", "Tokens", "clip_tokens", "load_tokens", "tokens_of"]

COMMA_BACKTRACK = 20
MAX_CHUNKS = 8  # 600 CLIP tokens; attention grows with every further chunk
Kind = Literal["clip", "t5", "bert"]
DEFAULT_LENGTH: dict[str, int] = {"clip": 77, "t5": 512, "bert": 512}
LONG_TEXT = 1000  # characters from which a text is encoded beside other threads, and kept
MAX_LENGTH = 4096  # files say 10**30 where they mean "no limit"


@dataclass(frozen=True, slots=True)
class Chunk:
    """One filled window of an encoder: ids, 1 where they are text, and weights."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def is_weighted(self) -> bool:
        """Whether any token weighs other than 1."""
        return any(weight != 1.0 for weight in self.weights)


@dataclass(frozen=True, slots=True)
class _Token:
    """A token of the text: its id, its weight, the character it starts at."""

    id: int
    weight: float
    start: int


class Tokens:
    """A tokenizer and the window its encoder reads.

    Args:
        tokenizer: The tokenizer; its padding and truncation are ignored.
        kind: ``"clip"`` is chunked; ``"t5"`` and ``"bert"`` are not.
        max_length: Tokens of one window, start and end included.
        pad: Id that fills up a window.
        fills_front: Whether it fills up at the front; None if its files do not say.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        kind: Kind,
        max_length: int,
        pad: int | None = None,
        fills_front: bool | None = None,
    ) -> None:
        self.fills_front = fills_front
        self._lowers = False
        own = Tokenizer.from_str(tokenizer.to_str())
        own.no_padding()
        own.no_truncation()
        self._tokenizer = own
        bare = own.encode("a", add_special_tokens=False).ids
        full = own.encode("a", add_special_tokens=True).ids
        before = next(k for k in range(len(full) + 1) if full[k : k + len(bare)] == bare)
        self.start: tuple[int, ...] = tuple(full[:before])
        self.end: tuple[int, ...] = tuple(full[before + len(bare) :])
        self.kind: Kind = kind
        self.max_length = max_length
        self.pad = pad if pad is not None else (self.end[-1] if self.end else 0)
        self._comma = own.token_to_id(",</w>") if kind == "clip" else None
        self._words: dict[str, tuple[int, ...]] = {}
        self._word_pattern: re.Pattern[str] | None = None
        self._latest: tuple[str, Any] = "", None  # the long text that was encoded last

    @cached_property
    def first_word(self) -> int:
        """The first id behind the vocabulary; see :meth:`with_words`."""
        return max(self._tokenizer.get_vocab().values()) + 1

    @property
    def vocabulary(self) -> int:
        """Number of ids, added tokens included."""
        return self._tokenizer.get_vocab_size()

    @property
    def window(self) -> int:
        """Tokens of text in one window, start and end left out."""
        return self.max_length - len(self.start) - len(self.end)

    def with_length(self, max_length: int) -> "Tokens":
        """Return the same tokenizer for a window of another length."""
        other = Tokens(
            self._tokenizer,
            kind=self.kind,
            max_length=max_length,
            pad=self.pad,
            fills_front=self.fills_front,
        )
        other._lowers = self._lowers
        return other

    def in_lower_case(self) -> "Tokens":
        """Return the same tokenizer for texts that are read in lower case."""
        other = self.with_length(self.max_length)
        other._lowers = True
        return other

    def with_words(self, counts: Mapping[str, int]) -> "Tokens":
        """Return the same tokenizer knowing further words.

        A word is found whatever its case, but not inside a longer word; the longest
        wins. Its ids lie behind the vocabulary, from :attr:`first_word` on.

        Args:
            counts: Tokens that each word becomes, in the order of their ids.
        """
        other = self.with_length(self.max_length)
        position = other.first_word
        for word, count in counts.items():
            other._words[word.lower()] = tuple(range(position, position + count))
            position += count
        other._word_pattern = word_pattern(counts)
        return other

    def spell(self, token: int) -> str:
        """Return a token as its vocabulary writes it, e.g. ``apple</w>``."""
        for word, ids in self._words.items():
            if token in ids:
                return f"{word}#{ids.index(token) + 1}" if len(ids) > 1 else word
        return self._tokenizer.id_to_token(token) or f"<{token}>"

    def count(self, text: str) -> int:
        """Count the tokens of a text, start and end left out."""
        if not self._word_pattern:
            return len(self._encoded(text).ids)
        return sum(len(ids) for ids, _ in self._encode(text))

    def _encode(self, text: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Yield runs of ids and where each starts; a further word is a run of its own."""
        done = 0
        for match in self._word_pattern.finditer(text) if self._word_pattern else ():
            yield from self._encode_plain(text[done : match.start()], done)
            ids = self._words[match[0].lower()]
            yield ids, (match.start(),) * len(ids)
            done = match.end()
        yield from self._encode_plain(text[done:], done)

    def _encode_plain(
        self, text: str, start: int
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        encoding = self._encoded(text)
        for token, (place, _) in zip(encoding.ids, encoding.offsets, strict=True):
            yield (token,), (start + place,)

    def _encoded(self, text: str) -> Any:
        plain = text.lower() if self._lowers else text
        if len(plain) < LONG_TEXT:
            return self._tokenizer.encode(plain, add_special_tokens=False)
        known, encoding = self._latest
        if known != plain:
            # `encode` holds the interpreter, tens of milliseconds for a long text; this does not
            encoding = self._tokenizer.encode_batch([plain], add_special_tokens=False)[0]
            self._latest = plain, encoding
        return encoding

    def encode_whole(self, text: str) -> list[tuple[int, int]]:
        """Return a text's tokens as (id, character it starts at), special ones as they stand."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        places = [start for start, _ in encoding.offsets]
        return list(zip(encoding.ids, places, strict=True))

    def count_chunks(self, text: str, dialect: str = "plain") -> int:
        """Count the chunks a text needs, 1 to :data:`MAX_CHUNKS`."""
        return len(self.split(text, dialect)[0])

    def split(
        self, text: str, dialect: str = "plain", *, num_chunks: int = 1, chunked: bool = True
    ) -> tuple[list[Chunk], tuple[str, ...]]:
        """Split a text into filled windows.

        Args:
            text: The prompt.
            dialect: How weights in it are read.
            num_chunks: At least this many; empty windows fill up.
            chunked: False takes one window even of a CLIP text.

        Returns:
            The windows, and a note naming the text that was cut, if any.

        Raises:
            InvalidRequest: If the dialect is unknown.
        """
        pieces = spans(text, dialect)
        groups, rest = self._group(pieces, MAX_CHUNKS if chunked and self.kind == "clip" else 1)
        groups += [[] for _ in range(num_chunks - len(groups))]
        return [self._fill(group) for group in groups], self._notes(text, pieces, rest)

    def _group(
        self, pieces: Sequence[Span], limit: int
    ) -> tuple[list[list[_Token]], _Token | None]:
        """Deal tokens into windows; the first that does not fit is returned last."""
        groups: list[list[_Token]] = [[]]
        rest: _Token | None = None
        last_comma = -1
        position = 0
        for piece in pieces:
            if piece == BREAK:
                if len(groups) < limit:
                    groups.append([])
                    last_comma = -1
                continue
            for ids, starts in self._encode(piece.text):
                full = len(groups[-1]) + len(ids) > self.window
                if full and len(groups) < limit and len(ids) <= self.window:
                    near = last_comma != -1 and self.window - last_comma <= COMMA_BACKTRACK
                    at = last_comma + 1 if near and len(ids) == 1 else self.window
                    moved, groups[-1] = groups[-1][at:], groups[-1][:at]
                    groups.append(moved)
                    last_comma = -1
                for token_id, start in zip(ids, starts, strict=True):
                    token = _Token(token_id, piece.weight, position + start)
                    if len(groups[-1]) == self.window:
                        rest = rest or token
                        if len(groups) == limit:
                            return groups, rest
                        continue
                    if token_id == self._comma:
                        last_comma = len(groups[-1])
                    groups[-1].append(token)
            position += len(piece.text)
        return groups, rest

    def _fill(self, group: Sequence[_Token]) -> Chunk:
        """Put start, end and padding around the tokens of one window."""
        ids = (*self.start, *(token.id for token in group), *self.end)
        weights = (
            *(1.0 for _ in self.start),
            *(token.weight for token in group),
            *(1.0 for _ in self.end),
        )
        padding = self.max_length - len(ids)
        return Chunk(
            (*ids, *[self.pad] * padding),
            (*[1] * len(ids), *[0] * padding),
            (*weights, *[1.0] * padding),
        )

    def _notes(self, text: str, pieces: Sequence[Span], rest: _Token | None) -> tuple[str, ...]:
        """Name the text that no window had room for."""
        if rest is None:
            return ()
        plain = "".join(piece.text for piece in pieces if piece != BREAK)
        cut = plain[rest.start :].strip()
        shown = cut if len(cut) <= 200 else f"{cut[:197]}..."
        return (f"prompt cut at {self.max_length} tokens; not read: {shown!r}",)


def load_tokens(folder: Path, *, limit: int | None = None) -> Tokens:
    """Load the tokenizer of a diffusers folder.

    Args:
        folder: Holds ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``
            (CLIP, Qwen), or ``vocab.txt`` (BERT), or ``spiece.model`` (T5).
        limit: Longest window the encoder has positions for.

    Raises:
        WeightsError: If none of these files is there.
        CardError: If a file cannot be understood.
    """
    configured = folder / "tokenizer_config.json"
    config = read_json(configured) if configured.is_file() else {}
    special = folder / "special_tokens_map.json"
    named = {**(read_json(special) if special.is_file() else {}), **config}
    tokenizer = _read_tokenizer(folder, config)
    return _tokens(tokenizer, named, limit=limit)


def tokens_of(tokenizer: Any, *, limit: int | None = None) -> Tokens:
    """Return the tokens of a transformers tokenizer, or of a Tokens or Tokenizer itself.

    Raises:
        CardError: If it is none of these.
    """
    if isinstance(tokenizer, Tokens):
        return tokenizer
    if isinstance(tokenizer, Tokenizer):
        return _tokens(tokenizer, {}, limit=limit)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise CardError(
            "tokenizer must be a transformers tokenizer with a tokenizers backend, "
            f"got {type(tokenizer).__name__}"
        )
    named = {
        "model_max_length": getattr(tokenizer, "model_max_length", None),
        "pad_token": getattr(tokenizer, "pad_token", None),
        "padding_side": getattr(tokenizer, "padding_side", None),
    }
    return _tokens(backend, named, limit=limit)


def _tokens(tokenizer: Tokenizer, named: Mapping[str, Any], *, limit: int | None) -> Tokens:
    """Find kind, window and padding of a tokenizer."""
    kind: Kind = "t5"
    if tokenizer.token_to_id("<|startoftext|>") is not None:
        kind = "clip"
    elif tokenizer.token_to_id("[CLS]") is not None:
        kind = "bert"
    length = named.get("model_max_length")
    known = isinstance(length, int | float) and 0 < length <= MAX_LENGTH
    max_length = int(length) if known and length else DEFAULT_LENGTH[kind]
    pad_token = named.get("pad_token")
    if is_mapping(pad_token):
        pad_token = pad_token.get("content")
    pad = tokenizer.token_to_id(str(pad_token)) if pad_token is not None else None
    if pad is None:
        default = {"clip": "<|endoftext|>", "t5": "<pad>", "bert": "[PAD]"}[kind]
        pad = tokenizer.token_to_id(default)
    side = named.get("padding_side")
    return Tokens(
        tokenizer,
        kind=kind,
        max_length=min(max_length, limit or max_length),
        pad=pad,
        fills_front=None if side is None else side == "left",
    )


def _read_tokenizer(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Read whichever of the tokenizer layouts the folder has."""
    whole = folder / "tokenizer.json"
    if whole.is_file():
        if not {"model", "pre_tokenizer"} <= read_json(whole).keys():
            raise CardError(f"{whole} is not a tokenizer: it has no model or no pre_tokenizer")
        return Tokenizer.from_file(str(whole))
    is_clip = "CLIP" in str(config.get("tokenizer_class", "CLIP"))
    if is_clip and (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
        pairs = [(left, right) for left, _, right in (line.partition(" ") for line in merges)]
        return clip_tokens(read_json(folder / "vocab.json"), pairs)
    if (folder / "vocab.txt").is_file():
        return _bert_tokens(folder / "vocab.txt", config)
    if any((folder / name).is_file() for name in ("spiece.model", "vocab.json")):
        refuse_own_code(folder)
        import transformers

        library: Any = transformers  # its own annotations leave open what is read
        return library.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ).backend_tokenizer
    raise WeightsError(
        f"tokenizer missing: {folder} holds none of tokenizer.json, vocab.json with merges.txt, "
        "vocab.txt, spiece.model"
    )


def clip_tokens(vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Tokenizer:
    """Build CLIP's byte-level BPE tokenizer.

    Args:
        vocab: Ids by token, ``<|startoftext|>`` and ``<|endoftext|>`` included.
        merges: Pairs in order of priority.

    Source: Radford et al. 2021 (CLIP), the tokenizer of its release.
    """
    start, end = "<|startoftext|>", "<|endoftext|>"
    model = models.BPE(
        vocab=dict(vocab),
        merges=list(merges),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
        unk_token=end,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
        r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocab[end]), (start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    _add_special(tokenizer, [start, end])
    return tokenizer


def _add_special(tokenizer: Tokenizer, tokens: list[str]) -> None:
    """Say which tokens no text is split into."""
    library: Any = tokenizer  # its own annotations leave the tokens open
    library.add_special_tokens(tokens)


def _bert_tokens(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """Build BERT's WordPiece tokenizer from its list of tokens."""
    lines = path.read_text(encoding="utf-8").splitlines()
    vocab = {token.rstrip("\n"): index for index, token in enumerate(lines)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))  # noqa: S106 - a token of text
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
        strip_accents=config.get("strip_accents"),
        lowercase=bool(config.get("do_lower_case", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    _add_special(tokenizer, ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])
    return tokenizer
