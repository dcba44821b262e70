"""The port between the doors and the service.

A door (HTTP dialect, command line, Ray ingress) knows this protocol and nothing
behind it. ``local`` runs the engine in this process, ``worker`` in a supervised
process of its own, ``fake`` answers without tensors so that doors are tested in
milliseconds.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mezzotint.request import GenerationRequest, Output
from mezzotint.types import Event, GenerationResult, ImageOutput

__all__ = [
    "AdapterKeeper",
    "BeginsAtOnce",
    "GenerationService",
    "HandlerAnswer",
    "HandlerRunner",
    "ModelManager",
    "PictureTools",
    "Service",
]


class GenerationService(Protocol):
    """Turns requests into pictures; safe to call from any task of one event loop.

    ``request_id`` is chosen by the door (any unique text); events and results
    carry it. ``client`` names who asks, for fairness; "" is one shared client.
    ``use_cache`` False makes the pictures again even if the result cache has them.
    ``preview_every`` asks for a small encoded picture with every k-th step of an
    image; 0 asks for none, so that nobody pays for what nobody sees. ``quiet`` leaves
    out all events but ``Queued``, ``Started`` and the ending, for whoever only waits for
    that.
    """

    async def generate(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
    ) -> GenerationResult:
        """Run one request to its end.

        Raises:
            MezzotintError: The one way in which the request ended, if not well.
        """
        ...

    def stream(
        self,
        request: GenerationRequest,
        *,
        request_id: str,
        client: str = "",
        use_cache: bool = True,
        preview_every: int = 0,
        quiet: bool = False,
    ) -> AsyncIterator[Event]:
        """Run one request and yield its events; the last one is its ending.

        Closing the iterator early cancels the request at the next step.
        """
        ...

    async def cancel(self, request_id: str) -> bool:
        """Cancel at the next step; False if there is no such running request."""
        ...

    async def plan(self, request: GenerationRequest, *, client: str = "") -> Mapping[str, Any]:
        """Resolve a request without running it: plan, warnings, predicted cost.

        What it says of the result cache is about the pictures of ``client`` alone.
        """
        ...

    async def models(self) -> tuple[Mapping[str, Any], ...]:
        """List the models as plain data: name, digest, family, defaults, limits, ready.

        Each has at least ``name``, ``version`` (text), ``default`` (whether the
        bare name means this version), ``digest``, ``family``, ``ready``,
        ``path``, ``licence``, ``takes_prompt``, ``size_multiple``,
        ``min_size_px``, ``max_size_px``, ``defaults`` (``width``, ``height``,
        ``num_inference_steps``, ``guidance_scale``, ``scheduler``,
        ``sigma_schedule``) and ``limits`` (sentences for people).
        """
        ...

    async def capabilities(self) -> Mapping[str, Any]:
        """List every name a request may use, as plain data.

        Keys: ``schedulers``, ``sigma_schedules``, ``guidance_schedules``,
        ``gates``, one for each field that names adapters
        (:data:`~mezzotint.techniques.table.ADAPTERS`), ``preprocessors``, ``upscalers``,
        ``prompt_dialects``, ``output_formats``; each a list of names.
        """
        ...

    async def health(self) -> Mapping[str, Any]:
        """Tell ``{"ready": bool, "live": bool, "queue": int, ...}`` without waiting.

        ``metrics`` may hold numbers by Prometheus name (labels inside the
        name, as in ``batch_rows{model="plate"}``) for the metrics listener. ``call``
        may tell of the device call under way: ``kind``, ``seconds``, ``expected_s``
        (None if unknown) and ``is_first`` (of its shape); who watches judges by it.
        """
        ...

    async def close(self) -> None:
        """Finish what is being stepped, refuse the rest, free everything."""
        ...


@runtime_checkable
class BeginsAtOnce(Protocol):
    """A service that takes a request in the turn of the loop in which it comes."""

    def begin(
        self,
        request: GenerationRequest,
        hear: Callable[[Event | BaseException], None],
        *,
        request_id: str,
        client: str,
        use_cache: bool,
        began: Callable[[], None],
    ) -> Callable[[], None] | None:
        """Take a request whose caller waits for its ending alone; called in a running loop.

        Args:
            request: What is asked.
            hear: Told the ending, or why the request was refused, once, in the loop.
            request_id: As in :meth:`GenerationService.stream`, as are the next two.
            client: Who asks.
            use_cache: Whether a finished picture may answer.
            began: Called in whichever thread draws, before an image of the request begins;
                in place of the event ``Started``. Must not block.

        Returns:
            What cancels the request at its next step if it has not ended; None, and then
            nothing was done, if planning it takes a thread.

        Raises:
            MezzotintError: If it is refused while it is planned.
        """
        ...


class ModelManager(Protocol):
    """Adds and removes models while the service runs."""

    async def register(
        self, source: str, *, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model from a folder, file or archive; the model as :meth:`models` lists it.

        Args:
            source: A path, or the name of a file or folder in the model store.
            name: Name to use; the archive's own, or the file's stem, if None.
            version: Version to use; the archive's own, or ``"1.0"``, if None.

        Raises:
            UnknownName: If there is nothing at ``source``.
            ModelError: If it is not a model, is unsafe, or is broken.
            InvalidRequest: If the name and version are taken, or not allowed.
        """
        ...

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Remove one version of a model (the default one if None) from the service.

        Files stay where they are.

        Raises:
            UnknownName: If there is no such model or version.
        """
        ...

    async def set_default(self, name: str, version: str) -> None:
        """Make the bare ``name`` mean this version.

        Raises:
            UnknownName: If there is no such model or version.
        """
        ...

    async def load(self, name: str) -> Mapping[str, Any]:
        """Bring a model into memory, ready to draw; the model as :meth:`models` lists it then.

        Args:
            name: Name, or ``name@version``.

        Raises:
            UnknownName: If there is no such model or version.
            ModelNotAllowed: If it is handler code, whose process its first request starts.
            ModelError: If it cannot be loaded.
        """
        ...

    async def unload(self, name: str) -> Mapping[str, Any]:
        """Let a model's weights go from memory; the model as :meth:`models` lists it then.

        It stays in the list, and is loaded again when it is next asked for. One that is not
        in memory is no error.

        Args:
            name: Name, or ``name@version``.

        Raises:
            UnknownName: If there is no such model or version.
            ModelNotAllowed: If it is handler code.
            InUse: If pictures wait for it or are made with it.
        """
        ...


class PictureTools(Protocol):
    """What doors need done to encoded pictures; doors themselves decode nothing.

    ``client`` names who asks, so that nobody's pictures keep all threads busy.
    """

    async def inspect(self, data: bytes, *, client: str = "") -> Mapping[str, Any]:
        """Read the recipe inside a picture.

        Returns:
            ``parameters`` (the A1111 text, "" if there is none), ``items``
            (every text chunk by name), ``recipe`` (ours, or None), ``request``
            (the nearest runnable request as plain data, or None) and
            ``not_honoured`` (sentences).

        Raises:
            ImageError: If the bytes are not a picture.
        """
        ...

    async def preprocess(self, data: bytes, how: str, *, client: str = "") -> bytes:
        """Prepare a control picture as a request with this preprocessor would.

        Args:
            data: An encoded picture.
            how: Preprocessor and numbers, e.g. ``canny:100:200``.
            client: Who asks.

        Returns:
            A PNG.

        Raises:
            ImageError: If the bytes are not a picture.
            UnknownName: If there is no such preprocessor.
            InvalidRequest: If its numbers are wrong.
        """
        ...

    async def upscale(
        self,
        data: bytes,
        *,
        factor: float,
        model: str | None = None,
        output: Output,
        client: str = "",
        cover: tuple[int, int] | None = None,
        crop: bool = False,
    ) -> ImageOutput:
        """Enlarge a picture.

        Args:
            data: An encoded picture.
            factor: Of both sides, where ``cover`` is None.
            model: Name of an upscaler; None is Lanczos.
            output: Encoding of the answer.
            client: Who asks.
            cover: Width and height in pixels that the picture is brought to cover, its
                proportions kept; a larger picture becomes smaller.
            crop: Cut what overhangs ``cover``, around the middle.

        Raises:
            ImageError: If the bytes are not a picture or the result is too large.
            UnknownName: If there is no such upscaler.
        """
        ...

    async def grid(
        self, images: Sequence[bytes], *, columns: int, padding_px: int = 2, output: Output,
        raw: bool = False,
    ) -> bytes:  # fmt: skip
        """Lay encoded pictures of one size out in a grid, as torchvision's ``save_image`` does.

        Args:
            images: Encoded pictures, at least one.
            columns: Pictures in a row, >= 1.
            padding_px: Black border around each picture, in pixels; a single
                picture has none.
            output: Encoding of the grid.
            raw: Answer its pixels in place of a file: rows of three bytes each.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerAnswer:
    """What handler code made of one request.

    Args:
        data: The body of the answer.
        content_type: Its media type.
        status: HTTP status that the code asked for.
        error: "" if there is an answer; else ``failed`` (the code raised),
            ``mismatch`` (another number of answers than requests), ``memory`` or
            ``died`` (its process ended).
        message: What went wrong, for the client.
    """

    data: bytes = b""
    content_type: str = "application/octet-stream"
    status: int = 200
    error: str = ""
    message: str = ""


class HandlerRunner(Protocol):
    """Runs the Python code of TorchServe archives, where that is allowed."""

    async def handle(
        self, model: str, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[HandlerAnswer, ...]:
        """Give requests to the handler of an archive; cancelling kills its process.

        Args:
            model: Name, or ``name@version``, of a model of the family ``handler``.
            rows: Named parameters of each request: bytes, or plain JSON data.

        Raises:
            UnknownName: If there is no such model.
            ModelNotAllowed: If it is no handler, or its digest is not allowed.
            ModelError: If its code cannot be loaded.
            DeadlineExceeded: If it takes too long.
            QueueFull: If too many requests wait for it.
        """
        ...


class AdapterKeeper(Protocol):
    """Keeps the LoRAs that clients of a server bring along; safe to use from any thread.

    ``client`` names who asks; with ``sees_all`` it manages the server, and what others
    brought along is there for it too.
    """

    def hidden_from(self, client: str, *, sees_all: bool) -> frozenset[str]:
        """Return the names that are not there for a client: those of others."""
        ...

    def check(self, request: GenerationRequest, client: str, *, sees_all: bool) -> None:
        """Refuse a request that wears a LoRA of another client, as one that is not there.

        A path that leads to its file is as good as its name.

        Raises:
            UnknownName: If it does.
        """
        ...

    def listed(self, client: str, *, sees_all: bool) -> Sequence[Mapping[str, Any]]:
        """Describe every LoRA that a client may wear, by name.

        Each has ``kind``, ``name``, ``path`` (of the file, without its folder), ``bytes``,
        ``about``, ``error`` and ``owner``; ``ranks``, ``layers``, ``networks`` and
        ``metadata`` where it can be read.
        """
        ...

    def show(self, name: str, client: str, *, sees_all: bool) -> Mapping[str, Any]:
        """Describe one LoRA.

        Raises:
            UnknownName: If there is none of that name for this client.
        """
        ...

    def sweep(self) -> None:
        """Remove unfinished uploads of a server that was killed; none may be under way."""
        ...

    def check_name(self, name: str) -> None:
        """Refuse what cannot be a name.

        Raises:
            InvalidRequest: Names the field ``name``.
        """
        ...

    def check_free(self, name: str, owner: str, *, most: int) -> None:
        """Refuse an upload that :meth:`take` could not take, before any of it comes.

        Raises:
            InvalidRequest: With the field ``name`` if there is one of that name, whoever's.
            Refused: If the owner has as many as it may.
        """
        ...

    def incoming(self) -> AbstractContextManager[Path]:
        """Give the path of a file to write an upload to; what is left there is removed."""
        ...

    def take(self, name: str, upload: Path, owner: str, *, most: int) -> Mapping[str, Any]:
        """Make an upload a LoRA, whole or not at all; what :meth:`show` says of it.

        Args:
            name: One that :meth:`check_name` lets pass.
            upload: A file of :meth:`incoming`, complete.
            owner: Whose it is; "" for everybody's.
            most: LoRAs that the owner may have, 0 for any number.

        Raises:
            InvalidRequest: With the field ``name`` if there is one of that name, whoever's;
                with ``body`` if the file is no LoRA.
            Refused: If the owner has as many as it may.
        """
        ...

    def bring(self, name: str, source: str, *, replace: bool = False) -> Mapping[str, Any]:
        """Copy a LoRA from this machine or the Hub, for everybody; what :meth:`show` says of it.

        Args:
            name: One that :meth:`check_name` lets pass.
            source: A path (of a file, or the folder of the run that learnt it), ``OWNER/NAME``
                or ``OWNER/NAME/FILE.safetensors`` of the Hub.
            replace: Whether it may take the place of one that is everybody's.

        Raises:
            InvalidRequest: With the field ``name`` if there is one of that name, with
                ``source`` if what is there is no LoRA.
            WeightsError: If there is nothing at the source.
            ModelNotAllowed: If it would have to be fetched, and that is not allowed.
        """
        ...

    def is_same(self, name: str, source: str) -> bool:
        """Tell whether a name is that of a LoRA for everybody with the bytes at a path."""
        ...

    def drop(self, name: str, client: str, *, sees_all: bool) -> None:
        """Remove a LoRA: one's own, or any for who manages.

        Raises:
            UnknownName: If there is none of that name for this client.
            Refused: If it is everybody's and the client does not manage.
        """
        ...


class Service(GenerationService, ModelManager, PictureTools, HandlerRunner, Protocol):
    """Everything the server needs from the service, in one object."""
