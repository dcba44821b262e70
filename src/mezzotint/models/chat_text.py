"""Chat text: what a prompt becomes before a language model reads it.

Families whose text encoder is a language model put the prompt into a frame of their own,
a system sentence and marks of whose turn it is. Which frame belongs to the family as its
layers do, so the frames stand here, where both the planner's side and the encoder find
them. No tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mezzotint.models.prompt_syntax import BREAK, spans
from mezzotint.models.prompts import Tokens

__all__ = ["CHAT_FORMATS", "ChatFormat", "ChatIds", "chat_ids"]

_SHOWN = 200  # characters of a cut text that a note quotes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatFormat:
    """The frame that a family's prompts stand in.

    Args:
        before: Text before the prompt.
        after: Text behind it.
        max_tokens: Tokens that are read, those of the frame included; what lies behind is
            cut, be it the frame's end.
        dropped: Tokens at the start whose states the network does not see.
        unread: Marks that are taken out of a prompt: they stand for what is no text.
        fills_front: Whether what fills a text up stands in front of it, where the tokenizer
            does not say.
    """

    before: str
    after: str
    max_tokens: int
    dropped: int = 0
    unread: tuple[str, ...] = ()
    fills_front: bool = False

    @property
    def window(self) -> int:
        """Tokens whose states the network may see."""
        return self.max_tokens - self.dropped


_DESCRIBE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
)
_REASON = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing "
    "on object relationships, object\nattribution and actions without speculation."
)
_USER, _ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"

CHAT_FORMATS: Mapping[str, ChatFormat] = {
    "flux2": ChatFormat(before=_USER, after=f"{_ASSISTANT}<think>\n\n</think>\n\n", max_tokens=512),
    "flux2-dev": ChatFormat(
        before=f"<s>[SYSTEM_PROMPT]{_REASON}[/SYSTEM_PROMPT][INST]",
        after="[/INST]",
        max_tokens=512,
        unread=("[IMG]",),
        fills_front=True,
    ),
    "qwen-image": ChatFormat(
        before=_DESCRIBE + _USER, after=_ASSISTANT, max_tokens=1024 + 34, dropped=34
    ),
    "z-image": ChatFormat(before=_USER, after=_ASSISTANT, max_tokens=512),
}
"""Frames by family (``ModelSpec.family``)."""


class ChatIds(NamedTuple):
    """Tokens of a framed prompt, what was cut off it and what else had no effect."""

    ids: tuple[int, ...]
    cuts: tuple[str, ...] = ()
    unheard: tuple[str, ...] = ()


def chat_ids(tokens: Tokens, chat: ChatFormat, text: str, dialect: str = "plain") -> ChatIds:
    """Put a prompt into its frame and read it as tokens.

    Args:
        tokens: The tokenizer.
        chat: The frame.
        text: The prompt.
        dialect: How weights in it are read. They are taken out and have no effect: the
            network normalises each token's state, so its length says nothing.

    Raises:
        InvalidRequest: If the dialect is unknown.
    """
    pieces = [piece for piece in spans(text, dialect) if piece != BREAK]
    plain = "".join(piece.text for piece in pieces)
    for mark in chat.unread:
        plain = plain.replace(mark, "")
    found = tokens.encode_whole(f"{chat.before}{plain}{chat.after}")
    unheard: tuple[str, ...] = ()
    if any(piece.weight != 1 for piece in pieces):
        unheard = (
            "weights of words have no effect: this model's text encoder is a language model",
        )
    start, end = len(chat.before), len(chat.before) + len(plain)
    cuts: tuple[str, ...] = ()
    behind = [place for _, place in found[chat.max_tokens :] if start <= place < end]
    if behind:
        rest = plain[behind[0] - start :].strip()
        shown = rest if len(rest) <= _SHOWN else f"{rest[: _SHOWN - 3]}..."
        cuts = (f"prompt cut at {chat.max_tokens} tokens; not read: {shown!r}",)
    return ChatIds(tuple(token for token, _ in found[: chat.max_tokens]), cuts, unheard)
