"""Prompt cuts: what a model's tokenizers have no room for, told without its weights."""

import functools
from pathlib import Path

from mezzotint.models.chat_text import CHAT_FORMATS, chat_ids
from mezzotint.models.prompt_editing import edits
from mezzotint.models.prompts import Tokens, load_tokens
from mezzotint.models.spec import ModelSpec
from mezzotint.request import GenerationRequest

__all__ = ["cut_notes", "tokens_of"]

_CHUNKED_FAMILIES = ("sd", "sdxl")  # the others read one window of a CLIP text
_ONE_WINDOW = ("chroma", "pixart")  # of one tokenizer, shorter than that may say
_LOWERED = ("pixart",)  # read in lower case, beside those whose chat format says so


def cut_notes(request: GenerationRequest, spec: ModelSpec) -> tuple[str, ...]:
    """Say which texts of a request would be cut, and how many tokens they have.

    Args:
        request: What was asked. Words of textual inversions count as the tokenizer spells
            them, which may be fewer tokens than they become.
        spec: Of the model; only a diffusers folder, with ``tokenizer``, ``tokenizer_2``, ...,
            or a ``processor``, has notes.

    Returns:
        One sentence for each text and tokenizer.
    """
    folder = Path(spec.path)
    if not spec.takes_prompt or not spec.path or not folder.is_dir():
        return ()
    found: list[str] = []
    steps = request.num_inference_steps or spec.default_steps
    limit = spec.token_limit if spec.family in _ONE_WINDOW else None
    chat = CHAT_FORMATS.get(spec.family)
    is_lowered = spec.family in _LOWERED or (chat is not None and chat.lowers)
    for path in sorted([*folder.glob("tokenizer*"), *folder.glob("processor")]):
        tokens = tokens_of(path, limit=limit, is_lowered=is_lowered)
        for name in ("prompt", "negative_prompt"):
            text = getattr(request, name)
            is_edited = request.prompt_dialect == "a1111" and steps > 0
            for stage in {e.text for e in edits(text, steps)} if is_edited else {text}:
                is_negative = name == "negative_prompt"
                if notes := _notes(tokens, stage, request.prompt_dialect, spec, is_negative):
                    about = f"{name} has {tokens.count(stage)} tokens for {path.name}"
                    found += [f"{about}: {note}" for note in notes]
    return tuple(dict.fromkeys(found))


def tokens_of(folder: Path, *, limit: int | None = None, is_lowered: bool = False) -> Tokens:
    """Return the tokenizer of a folder, read once for each state of its files.

    Args:
        folder: Of the tokenizer.
        limit: Tokens of a window, None for its own.
        is_lowered: Whether texts are read in lower case.
    """
    return _tokens(folder, _written(folder), limit, is_lowered)


@functools.lru_cache(maxsize=8)
def _tokens(
    folder: Path, _written: tuple[object, ...], limit: int | None, is_lowered: bool
) -> Tokens:
    """Read a tokenizer, which takes as long as a small picture, once for each of its states."""
    tokens = load_tokens(folder, limit=limit)
    return tokens.in_lower_case() if is_lowered else tokens


def _written(folder: Path) -> tuple[object, ...]:
    """Return what changes when a file of a folder does."""
    states = ((file.name, file.stat()) for file in sorted(folder.iterdir()))
    return tuple((name, s.st_mtime_ns, s.st_size, s.st_ino) for name, s in states)


def _notes(
    tokens: Tokens, text: str, dialect: str, spec: ModelSpec, is_negative: bool
) -> tuple[str, ...]:
    """Say what a family's reading of a text leaves out."""
    if chat := CHAT_FORMATS.get(spec.family):
        return chat_ids(tokens, chat, text, dialect, negative=is_negative).cuts
    return tokens.split(text, dialect, chunked=spec.family in _CHUNKED_FAMILIES)[1]
