"""Progress: what a person sees while a picture is made.

On a terminal a bar with rate and time left, and with ``--preview`` the picture
as it comes out of the noise. In a pipe a plain line now and then. Everything
goes to standard error; standard output belongs to results.
"""

import base64
import contextlib
import io
import sys
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mezzotint.observe import stages
from mezzotint.observe.progress import Counter
from mezzotint.types import Event, Stepped

__all__ = ["Reporter", "ask_terminal", "reporting", "show_picture"]

_LINE_EVERY_S = 2.0
_BLOCK_COLUMNS = 48


class Reporter(Protocol):
    """Takes the events of one request."""

    def __call__(self, event: Event) -> None:
        """Show one event."""
        ...

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Leave the terminal to somebody else while the block runs."""
        ...


class _Nothing:
    """Shows nothing."""

    def __call__(self, event: Event) -> None:
        """Take one event."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Leave the terminal to somebody else while the block runs."""
        return contextlib.nullcontext()


class _Lines:
    """Plain lines for pipes and log files."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        self._counter.take(event)
        now = time.monotonic()
        if isinstance(event, Stepped) and now - self._last >= _LINE_EVERY_S:
            self._last = now
            print(self._counter.describe(), file=sys.stderr, flush=True)

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Leave the terminal to somebody else while the block runs."""
        return contextlib.nullcontext()

    def hear(self, stage: stages.Stage) -> None:
        """Say what goes on before the first step."""
        now = time.monotonic()
        if stage.seconds is None and not self._counter.total and now - self._last >= _LINE_EVERY_S:
            self._last = now
            print(stage.describe(), file=sys.stderr, flush=True)


class _Rate(ProgressColumn):
    """Steps in a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} steps/s" if task.speed else "", style="progress.data.speed")


class _Count(MofNCompleteColumn):
    """Steps done, of all; nothing while what is loaded has no steps."""

    def render(self, task: Task) -> Text:
        """Return the text of a task."""
        return Text() if task.total is None else super().render(task)


class _Bar:
    """A bar on a terminal, with the picture above it if previews come."""

    def __init__(self, counter: Counter, begin: Callable[[], Live], progress: Progress) -> None:
        self._counter, self._begin, self._progress = counter, begin, progress
        self._live = begin()
        self._task = progress.add_task("loading", total=None)
        self._pictures: dict[int, Text] = {}

    def __call__(self, event: Event) -> None:
        counter = self._counter
        counter.take(event)
        if counter.total:
            self._progress.update(
                self._task, description="drawing", completed=counter.done, total=counter.total
            )
        if isinstance(event, Stepped) and event.preview and event.image == 0:
            picture = half_blocks(event.preview)
            self._live.update(Group(picture, self._progress))

    @contextlib.contextmanager
    def running(self) -> Generator[None]:
        """Stand on the terminal while the block runs."""
        self._live.start()
        try:
            yield
        finally:
            self._live.stop()

    @contextlib.contextmanager
    def aside(self) -> Generator[None]:
        """Take the bar away while the block runs: a picture's escapes must not pass through it."""
        self._live.stop()
        try:
            yield
        finally:
            self._live = self._begin()  # the one before would clear as many lines as it had
            self._live.start()

    def hear(self, stage: stages.Stage) -> None:
        """Show what goes on before the first step."""
        if not self._counter.total:
            now = stages.current()
            text = now.describe() if now is not None else "loading"
            self._progress.update(self._task, description=text)


@contextlib.contextmanager
def reporting(images: int, *, quiet: bool = False) -> Generator[Reporter]:
    """Show progress until the block ends.

    Args:
        images: Pictures that the request makes.
        quiet: Show nothing.
    """
    if quiet:
        yield _Nothing()
        return
    counter = Counter(images)
    if not sys.stderr.isatty():
        lines = _Lines(counter)
        with stages.listening(lines.hear):
            yield lines
        return
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _Count(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
    )

    def begin() -> Live:
        return Live(
            progress,
            console=console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=sys.stdout.isatty(),  # a pipe must get the paths themselves
        )

    bar = _Bar(counter, begin, progress)
    with bar.running(), stages.listening(bar.hear):
        yield bar


def half_blocks(data: bytes, columns: int = _BLOCK_COLUMNS) -> Text:
    """Draw an encoded picture with two coloured pixels per character."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as opened:
        picture = opened.convert("RGB")
    rows = max(1, round(picture.height / picture.width * columns / 2))
    picture = picture.resize((columns, rows * 2), Image.Resampling.BOX)
    pixels: Any = picture.load()
    text = Text(no_wrap=True)
    for row in range(rows):
        for column in range(columns):
            upper, lower = pixels[column, 2 * row], pixels[column, 2 * row + 1]
            text.append("▀", style=f"rgb({_rgb(upper)}) on rgb({_rgb(lower)})")
        text.append("\n")
    return text


def ask_terminal(how: str) -> str:
    """Return how pictures are shown, asking the terminal for sixels where only it can tell.

    Args:
        how: What :func:`mezzotint.settings.terminal_pictures` says.

    Returns:
        ``kitty``, ``iterm``, ``sixel`` or ``blocks``.
    """
    if how != "ask":
        return how
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if not all(stream.isatty() for stream in streams):
        return "blocks"  # the question would be read, or answered, by a program
    try:
        from textual_image import renderable  # asks while it is imported
    except (ImportError, OSError):
        return "blocks"
    return "sixel" if renderable.Image is renderable.SixelImage else "blocks"


def show_picture(data: bytes, how: str) -> None:
    """Show a finished picture on the terminal behind standard error.

    Args:
        data: PNG, JPEG or WebP.
        how: ``kitty``, ``iterm``, ``sixel`` or ``blocks``.
    """
    if not sys.stderr.isatty():
        return
    if how == "iterm":
        body = base64.b64encode(data).decode()
        print(f"\033]1337;File=inline=1;size={len(data)}:{body}\a", file=sys.stderr)
    elif how == "kitty":
        body = base64.b64encode(_as_png(data)).decode()
        pieces = [body[k : k + 4096] for k in range(0, len(body), 4096)]
        for number, piece in enumerate(pieces):
            head = "a=T,f=100," if number == 0 else ""
            more = int(number < len(pieces) - 1)
            print(f"\033_G{head}m={more};{piece}\033\\", end="", file=sys.stderr)
        print(file=sys.stderr)
    elif how == "sixel":
        from textual_image.renderable.sixel import Image

        with io.BytesIO(data) as stream:
            Console(stderr=True).print(Image(stream, width=_BLOCK_COLUMNS, height="auto"))
    else:
        Console(stderr=True).print(half_blocks(data), end="")


def _as_png(data: bytes) -> bytes:
    """Return a picture as PNG, which is what kitty's protocol takes."""
    if data.startswith(b"\x89PNG"):
        return data
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(io.BytesIO(data)) as opened:
        opened.convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _rgb(colour: tuple[int, ...]) -> str:
    return ",".join(map(str, colour[:3]))
