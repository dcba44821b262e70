"""Types: what travels between the rooms, without a tensor in it.

The request has a file of its own (:mod:`mezzotint.request`). Here are its limits,
the pictures that go in and out, the result, and the events of a run. Units and
frames: sizes are pixels, times are seconds, seeds are integers below 2**64.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType

from mezzotint.bounds import SPACE, Length, Range, Unicode
from mezzotint.errors import ImageError
from mezzotint.files import write_atomically
from mezzotint.notebook import picture_html, pictures_html

__all__ = [
    "MAX_ADAPTERS",
    "MAX_GUIDANCE",
    "MAX_IMAGES",
    "MAX_REFERENCES",
    "MAX_SEED",
    "MAX_SIDE_PX",
    "MAX_STEPS",
    "MAX_TEXT",
    "PICTURE_TEXT",
    "Attempt",
    "Cancelled",
    "Event",
    "Failed",
    "FileFormat",
    "Finished",
    "GenerationResult",
    "GuidanceScale",
    "ImageFinished",
    "ImageInput",
    "ImageOutput",
    "JobId",
    "NumImages",
    "OutputFormat",
    "PromptText",
    "Queued",
    "Seed",
    "Share",
    "Side",
    "Size",
    "StageTimings",
    "Started",
    "Stepped",
    "Steps",
    "Verdict",
]

MAX_SEED = 2**64 - 1
MAX_STEPS = 1000
MAX_IMAGES = 1024
MAX_SIDE_PX = 16384
MAX_TEXT = 32_000
"""Characters of a prompt."""
MAX_GUIDANCE = 1000.0
MAX_ADAPTERS = 16
"""Of each kind, in one request."""
MAX_REFERENCES = 16
"""Pictures to edit or to draw from, in one request."""
Seed = Annotated[int, Range(0, MAX_SEED, as_text=True)]
Steps = Annotated[int, Range(1, MAX_STEPS, limit="steps")]
NumImages = Annotated[int, Range(1, MAX_IMAGES, limit="images")]
Side = Annotated[int, Range(1, MAX_SIDE_PX, "px", limit="side")]
GuidanceScale = Annotated[float, Range(0, MAX_GUIDANCE)]
Share = Annotated[float, Range(0, 1)]
"""Of something whole: steps, noise, a picture's shorter side."""
PromptText = Annotated[str, Length(most=MAX_TEXT), Unicode()]
OutputFormat = Literal["png", "jpeg", "webp"]
FileFormat = Literal["png", "jpeg", "webp", "gif", "apng", "mp4"]
"""What a finished file may be; the last three, and ``webp``, also move."""
JobId = NewType("JobId", str)
_CHAR, _END = f"[A-Za-z0-9+/][{SPACE}]*", f"=[{SPACE}]*"
PICTURE_TEXT = (
    f"^(?:[dD][aA][tT][aA]:[^,]*,)?[{SPACE}]*(?:(?:{_CHAR}){{4}})*"
    f"(?:(?:{_CHAR}){{2}}(?:{_END}){{2}}|(?:{_CHAR}){{3}}{_END}|(?:{_CHAR}){{4}})$"
)
"""Regular expression of the texts that :meth:`ImageInput.from_base64` reads."""


_NO_SPACE = dict.fromkeys(map(ord, SPACE))


class Size(NamedTuple):
    """Width and height of a picture, always in pixels, always in this order."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An encoded picture that came with a request (PNG, JPEG, WebP, ...).

    Args:
        data: The encoded bytes, not yet decoded.

    Equality and hash are those of the bytes, so two requests that carry the
    same picture are the same request.
    """

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.data:
            raise ImageError("expected an encoded picture, got no bytes")

    @property
    def digest(self) -> str:
        """The sha256 of the encoded bytes, 64 hex digits."""
        return hashlib.sha256(self.data).hexdigest()

    @classmethod
    def from_base64(cls, text: str, *, field: str = "image") -> "ImageInput":
        """Read base64, with or without a ``data:image/...;base64,`` prefix.

        Raises:
            ImageError: If the text is a URL (pictures are never fetched) or
                not base64.
        """
        if text[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
            raise ImageError(
                f"{field} must be the picture itself as base64, got a URL; "
                "URLs are never fetched, upload the picture",
                field=field,
            )
        body = text.partition(",")[2] if text[:5].lower() == "data:" else text
        try:
            return cls(base64.b64decode(body.translate(_NO_SPACE), validate=True))
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"{field} must be base64 of a picture: {error}", field=field) from None

    @classmethod
    def from_file(cls, path: str | Path, *, field: str = "image") -> "ImageInput":
        """Read an encoded picture from a file.

        Raises:
            ImageError: If the file cannot be read.
        """
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise ImageError(
                f"{field}: cannot read {path}: {error.strerror}", field=field
            ) from None

    def to_base64(self) -> str:
        """Return the encoded bytes as base64 text without a prefix."""
        return base64.b64encode(self.data).decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A gate's answer about one picture.

    Args:
        gate: Name of the gate.
        score: What the gate measured; the gate's own scale.
        threshold: The score at which the answer changes.
        passed: Whether the picture may pass.
        reason: One sentence for people, "" if there is nothing to add.
    """

    gate: str
    score: float
    threshold: float
    passed: bool
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at an image: its seed and what the gates said."""

    number: int
    seed: int
    verdicts: tuple[Verdict, ...] = ()
    accepted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimings:
    """Seconds spent in each stage of one image.

    ``denoise_s`` is the image's own share: time of the steps it took part in,
    divided by the number of images in each. ``model_calls`` counts network
    evaluations of this image's rows (two per guided step).
    """

    queue_s: float = 0.0
    encode_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    gate_s: float = 0.0
    write_s: float = 0.0
    model_calls: int = 0

    def __add__(self, other: "StageTimings") -> "StageTimings":
        """Return the seconds and calls of both together."""
        names = (f.name for f in fields(StageTimings))
        return StageTimings(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutput:
    """One finished picture.

    Args:
        index: Position within the request, from 0.
        seed: The seed that makes this picture alone again.
        data: The encoded file, recipe inside if the request asked for it.
        format: Encoding of ``data``.
        width: Pixels.
        height: Pixels.
        recipe: The recipe (canonical request, digest, environment) as plain data.
        warnings: What was changed or could not be honoured, one sentence each.
        attempts: Every try, the kept one included.
        timings: Where the time went.
        pixels: The model's own picture before encoding, a uint8 array of shape
            (H, W, 3), of an animation the first frame; None where the picture was
            made by another process.
        frames: Pictures in the file: 1, or those of an animation in the order shown.
    """

    index: int
    seed: int
    data: bytes = field(repr=False)
    format: FileFormat
    width: int
    height: int
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    warnings: tuple[str, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    timings: StageTimings = StageTimings()
    pixels: Any = field(default=None, repr=False, compare=False)
    frames: int = 1

    def _repr_png_(self) -> bytes | None:
        """Return the file for a notebook to show, if it is a PNG (an animated one too)."""
        return self.data if self.format in ("png", "apng") else None

    def _repr_jpeg_(self) -> bytes | None:
        """Return the file for a notebook to show, if it is a JPEG."""
        return self.data if self.format == "jpeg" else None

    def _repr_html_(self) -> str | None:
        """Return a page's element for the other formats, which have no hook of their own."""
        return self.to_html() if self.format in ("webp", "gif", "mp4") else None

    def to_html(self) -> str:
        """Return an HTML element that shows the file, its bytes inside."""
        return picture_html(self.data, self.format, title=f"image {self.index}, seed {self.seed}")

    @property
    def bytes(self) -> bytes:
        """The encoded file; the same as ``data``."""
        return self.data

    @property
    def recipe_digest(self) -> str:
        """The sha256 over the canonical recipe, or "" if there is none."""
        return str(self.recipe.get("digest", ""))

    def save(self, path: str | Path) -> Path:
        """Write the file by atomic rename and return its path.

        Raises:
            OSError: If the folder is missing or not writable; nothing
                half-written is left behind.
        """
        return write_atomically(Path(path), self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What a request came to.

    Args:
        id: The request's id.
        images: The finished pictures in order.
        plan: The resolved plan as plain data, for people and logs.
        cache: ``"hit"`` if the pictures came from the result cache.
        warnings: Warnings about the request as a whole.
    """

    id: str
    images: tuple[ImageOutput, ...]
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)
    cache: Literal["hit", "miss"] = "miss"
    warnings: tuple[str, ...] = ()

    def _repr_html_(self) -> str | None:
        """Return the pictures for a notebook to show, several as a grid; None without any."""
        if not self.images:
            return None
        return pictures_html([i.to_html() for i in self.images], max(i.width for i in self.images))


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """The request was accepted and waits."""

    id: str
    position: int = 0
    eta_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The first image of the request is being worked on."""

    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """One image took one solver step.

    Args:
        id: The request's id.
        image: Index of the image within the request.
        step: Steps done, from 1.
        steps: Steps in all.
        preview: A small encoded picture of the state, or None.
    """

    id: str
    image: int
    step: int
    steps: int
    preview: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFinished:
    """One image of the request is done."""

    id: str
    image: ImageOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The request is done; exactly one ending event ends every request."""

    id: str
    result: GenerationResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request failed, with the error that says why."""

    id: str
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """The request was cancelled at somebody's wish."""

    id: str


Event = Queued | Started | Stepped | ImageFinished | Finished | Failed | Cancelled
