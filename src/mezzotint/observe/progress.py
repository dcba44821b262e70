"""Progress: steps counted over the images of a request, and the bar of a notebook."""

import contextlib
import time
from collections.abc import Callable, Generator

from mezzotint.types import Event, ImageFinished, Stepped

__all__ = ["Counter", "notebook_bar"]


class Counter:
    """Adds up steps over the images of a request, whatever the order of events."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._done: dict[int, int] = {}
        self.total = 0
        self.finished = 0
        self._started = time.monotonic()

    def take(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Stepped):
            if not self._done:
                self._started = time.monotonic()
            self._done[event.image] = max(event.step, self._done.get(event.image, 0))
            self.total = max(self.total, event.steps * self._images)
        elif isinstance(event, ImageFinished):
            self.finished += 1

    @property
    def done(self) -> int:
        """Steps taken by all images together."""
        return sum(self._done.values())

    def describe(self) -> str:
        """Return the state as one line with rate and time left."""
        elapsed = time.monotonic() - self._started
        rate = (self.done - 1) / elapsed if elapsed > 0 and self.done > 1 else 0.0
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate else ""
        speed = f", {rate:.1f} steps/s" if rate else ""
        return f"step {self.done}/{self.total}{speed}{left}"


@contextlib.contextmanager
def notebook_bar(images: int) -> Generator[Callable[[Event], None]]:
    """Show a bar in a notebook until the block ends: a widget where there are widgets.

    Args:
        images: Pictures that the request makes.

    Yields:
        What takes the events of the request.
    """
    from tqdm.auto import tqdm

    counter = Counter(images)
    with tqdm(desc="drawing", unit="step", leave=False) as bar:

        def take(event: Event) -> None:
            counter.take(event)
            if isinstance(event, Stepped):
                bar.total = counter.total
                bar.update(counter.done - bar.n)

        yield take
