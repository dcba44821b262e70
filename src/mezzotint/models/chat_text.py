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

__all__ = ["CHAT_FORMATS", "PICTURE", "ChatFormat", "ChatIds", "chat_ids"]

PICTURE = "<|image_pad|>"
"""What stands for a picture in a text that a Qwen-VL reads."""

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
        starts: Whether the tokenizer's own first token stands in front of all.
        lowers: Whether a prompt is read in lower case, without white space around it.
        hides_before: Whether the network sees of ``before`` nothing but its first token and
            what its last one became; ``max_tokens`` then counts what it sees, since how many
            tokens ``before`` has is the tokenizer's affair.
        negative: The frame of negative prompts, where it is another.
        unseen: What ``before`` begins with and the network does not see; ``max_tokens`` then
            counts what it sees, since how many tokens that has is the tokenizer's affair.
        blank: What is read in place of an empty prompt.
        picture: What stands behind ``before`` for each picture that is read with the prompt,
            a space between two; ``{}`` is its number, from 1.
    """

    before: str
    after: str
    max_tokens: int
    dropped: int = 0
    unread: tuple[str, ...] = ()
    fills_front: bool = False
    starts: bool = False
    lowers: bool = False
    hides_before: bool = False
    negative: "ChatFormat | None" = None
    unseen: str = ""
    blank: str = ""
    picture: str = ""

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
_ALIGNED = (
    "You are an assistant designed to generate superior images with the superior degree of "
    "image-text alignment based on textual prompts or user prompts."
)
_ENHANCE = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual "
        "descriptions suitable for image generation. Evaluate the level of detail in the user "
        "prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, "
        "textures, and spatial relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly "
        "without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a "
        "round shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of "
        "blooming red flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
        "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
        "double-decker bus passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including "
        "any additional commentary or evaluations:",
        "User Prompt: ",
    )
)
_ANALYZE = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
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
    "lumina2": ChatFormat(
        before=f"{_ALIGNED} <Prompt Start> ",
        after="",
        max_tokens=256,
        starts=True,
        negative=ChatFormat(before="", after="", max_tokens=256, starts=True),
    ),
    "qwen-image": ChatFormat(
        before=_DESCRIBE + _USER, after=_ASSISTANT, max_tokens=1024 + 34, dropped=34
    ),
    "qwen-image-2": ChatFormat(
        before=_ANALYZE + _USER,
        after=_ASSISTANT,
        max_tokens=2048,
        unread=("<|image_pad|>", "<|video_pad|>"),
        unseen=_ANALYZE,
        blank=" ",
        picture=f"<image{{}}><|vision_start|>{PICTURE}<|vision_end|>",
    ),
    "sana": ChatFormat(
        before=_ENHANCE,
        after="",
        max_tokens=300,
        starts=True,
        lowers=True,
        hides_before=True,
        negative=ChatFormat(before="", after="", max_tokens=300, starts=True, lowers=True),
    ),
    "z-image": ChatFormat(before=_USER, after=_ASSISTANT, max_tokens=512),
}
"""Frames by family (``ModelSpec.family``)."""


class ChatIds(NamedTuple):
    """Tokens of a framed prompt, what was cut off it and what else had no effect.

    ``hidden`` are the tokens, from one to before another, whose states the network does not
    see; ``limit`` is how many tokens there may be.
    """

    ids: tuple[int, ...]
    cuts: tuple[str, ...]
    unheard: tuple[str, ...]
    hidden: tuple[int, int]
    limit: int

    @property
    def num_seen(self) -> int:
        """Tokens whose states the network sees."""
        start, end = self.hidden
        return len(self.ids) - (min(end, len(self.ids)) - start)


def chat_ids(
    tokens: Tokens,
    chat: ChatFormat,
    text: str,
    dialect: str = "plain",
    *,
    negative: bool = False,
    pictures: int = 0,
) -> ChatIds:
    """Put a prompt into its frame and read it as tokens.

    Args:
        tokens: The tokenizer.
        chat: The frame.
        text: The prompt.
        dialect: How weights in it are read. They are taken out and have no effect: the
            network normalises each token's state, so its length says nothing.
        negative: Whether it is a negative prompt.
        pictures: Pictures that are read with it, one mark of the frame for each.

    Raises:
        InvalidRequest: If the dialect is unknown.
    """
    if negative and chat.negative is not None:
        chat = chat.negative
    pieces = [piece for piece in spans(text, dialect) if piece != BREAK]
    plain = "".join(piece.text for piece in pieces)
    for mark in chat.unread:
        plain = plain.replace(mark, "")
    if chat.lowers:
        plain = plain.lower().strip()
    plain = plain or chat.blank
    before = chat.before + " ".join(chat.picture.format(k + 1) for k in range(pictures))
    first = [(token, -1) for token in tokens.start] if chat.starts else []
    found = [*first, *tokens.encode_whole(f"{before}{plain}{chat.after}")]
    hidden, limit = (0, chat.dropped), chat.max_tokens
    if chat.hides_before:
        count = len(first) + len(tokens.encode_whole(chat.before))
        hidden, limit = (1, count - 1), chat.max_tokens + count - 2
    if chat.unseen:
        count = len(tokens.encode_whole(chat.unseen))
        hidden, limit = (0, count), chat.max_tokens + count
    unheard: tuple[str, ...] = ()
    if any(piece.weight != 1 for piece in pieces):
        unheard = (
            "weights of words have no effect: this model's text encoder is a language model",
        )
    start, end = len(before), len(before) + len(plain)
    cuts: tuple[str, ...] = ()
    behind = [place for _, place in found[limit:] if start <= place < end]
    if behind:
        rest = plain[behind[0] - start :].strip()
        shown = rest if len(rest) <= _SHOWN else f"{rest[: _SHOWN - 3]}..."
        cuts = (f"prompt cut at {chat.max_tokens} tokens; not read: {shown!r}",)
    return ChatIds(tuple(token for token, _ in found[:limit]), cuts, unheard, hidden, limit)
