"""Errors: one tree, drawn here, that every door translates in one table.

::

    MezzotintError
    ├── InvalidRequest (ValueError)   the caller's fault
    │   ├── InvalidField              one field is wrong by itself: its type or its range
    │   ├── UnknownName               a name nobody knows; lists the known ones
    │   ├── ImageError                a picture that cannot be read or is not allowed
    │   └── ShapeError                tensors or sizes that do not fit together
    ├── Refused                       policy said no
    │   ├── GateRejected
    │   └── ModelNotAllowed
    ├── Overloaded                    try later; carries ``retry_after_s``
    │   ├── QueueFull
    │   └── OutOfMemory
    ├── NotReady                      the model or the worker is not up yet
    ├── InUse                         it cannot be taken away while it is used
    ├── Cancelled                     somebody asked to stop
    ├── DeadlineExceeded              the request's own deadline passed
    ├── WorkFailed                    accepted work that could not be finished
    └── ModelError                    our data's fault
        ├── ArchiveError
        ├── WeightsError
        └── CardError

A message says what was expected, what came and what to do. It names the field
in the vocabulary of :class:`mezzotint.GenerationRequest`; a dialect renames it.
Domain errors know no HTTP status and no exit code.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "ArchiveError",
    "Cancelled",
    "CardError",
    "DeadlineExceeded",
    "GateRejected",
    "ImageError",
    "InUse",
    "InvalidField",
    "InvalidRequest",
    "MezzotintError",
    "ModelError",
    "ModelNotAllowed",
    "NotReady",
    "OutOfMemory",
    "Overloaded",
    "QueueFull",
    "Refused",
    "ShapeError",
    "UnknownName",
    "WeightsError",
    "WorkFailed",
]


_SHOWN = 200  # characters of a name that are repeated; more are nobody's name


_NEAR = 0.75  # one letter in four or five is wrong; below, the guess is somebody else's word
_NEAR_SHORT, _SHORT = 0.66, 4  # one letter in three or four
_BEGINNING = 4  # letters that a shortened name has at least


_ELSEWHERE = {
    "batch_size": "num_images",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "denoise": "strength",
    "denoising_strength": "strength",
    "init_image": "image",
    "init_images": "image",
    "n": "num_images",
    "num_images_per_prompt": "num_images",
    "num_outputs": "num_images",
    "sampler": "scheduler",
    "sampler_name": "scheduler",
    "step": "num_inference_steps",
    "steps": "num_inference_steps",
}
"""What diffusers, A1111, ComfyUI and OpenAI call fields of ours that are spelt otherwise."""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that ``name`` is likely a slip of, or the beginning of; else None.

    Where the known names have no dots, the last part of a dotted one is looked for. What other
    programs call a field means ours.
    """
    if not 0 < len(name) <= _SHOWN:
        return None
    wanted, names = name.lower(), list(known)
    if not any("." in k for k in names):
        wanted = wanted.rpartition(".")[2]
    lower = [k.lower() for k in names]
    cutoff = _NEAR_SHORT if len(wanted) <= _SHORT else _NEAR
    near = difflib.get_close_matches(wanted, lower, n=1, cutoff=cutoff)
    if not near and len(wanted) >= _BEGINNING:
        begins = [k for k in lower if k.startswith(wanted)]
        near = begins if len(begins) == 1 else []
    if not near and _ELSEWHERE.get(wanted) in lower:
        near = [_ELSEWHERE[wanted]]
    return names[lower.index(near[0])] if near else None


class MezzotintError(Exception):
    """Base of every error that Mezzotint raises on purpose."""


class InvalidRequest(MezzotintError, ValueError):
    """The request cannot be honoured as it was written.

    Args:
        message: What was expected, what came, what to do.
        field: The request field at fault, dotted for nested ones
            (``"regions[1].weight"``), or None if the request as a whole is.
        value: What came, as a short printable text, if it is worth repeating.
        allowed: What is allowed, as a short printable text.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        allowed: str | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.allowed = allowed


class InvalidField(InvalidRequest):
    """One field is wrong by itself: its type, its range, its length, or no choice of it.

    What a field may hold is published, so a body that keeps to the schema never meets
    this error. Fields that do not fit together, names that do not exist and what only a
    model can tell are refused with the other errors.
    """


class UnknownName(InvalidRequest):
    """A name that is in no list: a model, a scheduler, a gate, a field.

    Args:
        kind: What was looked for, e.g. ``"scheduler"``.
        name: The name that came.
        known: The names that exist.
        field: The request field that held the name, if any.
    """

    def __init__(
        self, kind: str, name: str, known: Iterable[str], *, field: str | None = None
    ) -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(sorted(known))
        self.nearest = nearest_name(name, self.known)
        hint = f"; did you mean {self.nearest!r}?" if self.nearest else ""
        listed = ", ".join(self.known) or "none"
        shown = repr(name[:_SHOWN]) + (f" ({len(name)} characters)" if len(name) > _SHOWN else "")
        super().__init__(
            f"unknown {kind} {shown}{hint} Known: {listed}"
            if hint
            else f"unknown {kind} {shown}. Known: {listed}",
            field=field,
            value=name,
            allowed=listed,
        )


class ImageError(InvalidRequest):
    """A picture that cannot be decoded, is too large, or has the wrong kind."""


class PictureTooLarge(ImageError):
    """A picture with more pixels than are read, worked on or answered."""


class ShapeError(InvalidRequest):
    """Tensors, sizes or counts that do not fit together."""


class Refused(MezzotintError):
    """A policy said no; asking again the same way will not help."""


class GateRejected(Refused):
    """No attempt passed the quality gates of the request."""


class ModelNotAllowed(Refused):
    """The model exists but its use is not allowed here."""


class Overloaded(MezzotintError):
    """There is no room now; try again later.

    Args:
        message: What is full.
        retry_after_s: Seconds after which trying again is sensible, > 0.
    """

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(Overloaded):
    """The queue holds as much as it is allowed to hold."""


class OutOfMemory(Overloaded):
    """The plan does not fit into the memory that is free."""


class NotReady(MezzotintError):
    """The model or the worker is still loading, or is draining."""


class InUse(MezzotintError):
    """What is to be taken away is used: a model that pictures are being made with."""


class Cancelled(MezzotintError):
    """The work was cancelled before it was finished."""


class DeadlineExceeded(MezzotintError):
    """The request's own deadline passed, or cannot be met."""


class WorkFailed(MezzotintError):
    """Accepted work could not be finished, e.g. a model answered NaN twice."""


class ModelError(MezzotintError):
    """Something is wrong with a model's files.

    Args:
        message: What was expected, what came, what to do.
        field: The request field that named the files, or None if no request did.
    """

    def __init__(self, message: str = "", *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class ArchiveError(ModelError):
    """An archive that is unsafe, broken or incomplete."""


class WeightsError(ModelError):
    """Weights that are missing, corrupt, of an unsafe kind, or do not fit."""


class CardError(ModelError):
    """A model card or configuration that cannot be understood."""
