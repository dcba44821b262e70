"""Backlog: what the engine has before it, in sums, so that a newcomer need not look at each.

Ten thousand images may wait; whoever asks how long another will take gets the answer from
totals of classes and clients, and from one walk along its own client's line at most.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass

from mezzotint.engine.state import ImageId

__all__ = ["Backlog", "Held", "Load", "Rank"]

Rank = tuple[int, float, float]
"""A place in the reading order of a client, smallest first: class (higher priorities are
smaller), deadline, when it is due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the engine has before it, as whoever asks meets it.

    Args:
        images: Images accepted and not ended.
        seconds: Predicted device seconds that they still need.
        before_s: The part of ``seconds`` that stands above: classes of higher priority.
        ahead_s: The part that the same client is to get first.
        rivals: Other clients of the same class.
        rival_s: The part that belongs to them.
        own_images: Images of the same client, if it has a name.
    """

    images: int = 0
    seconds: float = 0.0
    before_s: float = 0.0
    ahead_s: float = 0.0
    rivals: int = 0
    rival_s: float = 0.0
    own_images: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One image that is held.

    Args:
        client: Whose it is.
        seconds: Predicted device seconds that it still needs.
        rank: Its place in the reading order of its client.
    """

    client: str
    seconds: float
    rank: Rank


class _Line:
    """The images of one client in one class, in reading order.

    Attributes:
        order: Their ranks and ids.
        total: Seconds of all of them.
    """

    def __init__(self) -> None:
        self.order: list[tuple[Rank, ImageId]] = []
        self.total = 0.0
        self._seconds: list[float] = []

    def put(self, image: ImageId, held: Held) -> None:
        """Take an image in at its place."""
        at = bisect_left(self.order, (held.rank, image))
        self.order.insert(at, (held.rank, image))
        self._seconds.insert(at, held.seconds)
        self.total += held.seconds

    def change(self, image: ImageId, held: Held) -> None:
        """Note other seconds of an image that is there."""
        at = bisect_left(self.order, (held.rank, image))
        self.total += held.seconds - self._seconds[at]
        self._seconds[at] = held.seconds

    def drop(self, image: ImageId, held: Held) -> None:
        """Let an image go that is there."""
        at = bisect_left(self.order, (held.rank, image))
        self.total -= self._seconds[at]
        del self.order[at], self._seconds[at]

    def until(self, rank: Rank) -> float:
        """Return the seconds of those that do not come after a rank."""
        at = bisect_right(self.order, rank, key=lambda one: one[0])
        return self.total if at == len(self.order) else sum(self._seconds[:at])


class _Class:
    """The lines of one class.

    Attributes:
        lines: By client, none of them empty.
        seconds: Of all images in them.
    """

    def __init__(self) -> None:
        self.lines: dict[str, _Line] = {}
        self.seconds = 0.0


class Backlog:
    """The images held, by id."""

    def __init__(self) -> None:
        self._held: dict[ImageId, Held] = {}
        self._classes: dict[int, _Class] = {}
        self._by_client: Counter[str] = Counter()
        self._by_request: dict[str, set[ImageId]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, image: ImageId) -> bool:
        return image in self._held

    @property
    def seconds(self) -> float:
        """Predicted device seconds that all of them still need; read from any thread."""
        return sum(one.seconds for one in list(self._classes.values()))

    def of(self, request: str) -> frozenset[ImageId]:
        """Return the images of a request."""
        return frozenset(self._by_request.get(request, ()))

    def put(self, image: ImageId, held: Held) -> None:
        """Hold an image, or hold it as something else from here on."""
        self.drop(image)
        self._held[image] = held
        here = self._classes.setdefault(held.rank[0], _Class())
        here.lines.setdefault(held.client, _Line()).put(image, held)
        here.seconds += held.seconds
        self._by_client[held.client] += 1
        self._by_request.setdefault(image.request, set()).add(image)

    def expect(self, image: ImageId, seconds: float) -> None:
        """Note how many seconds an image that is held still needs."""
        was = self._held[image]
        held = self._held[image] = Held(client=was.client, seconds=seconds, rank=was.rank)
        here = self._classes[held.rank[0]]
        here.lines[held.client].change(image, held)
        here.seconds += seconds - was.seconds

    def drop(self, image: ImageId) -> None:
        """Let an image go if it is held."""
        held = self._held.pop(image, None)
        if held is None:
            return
        here = self._classes[held.rank[0]]
        line = here.lines[held.client]
        line.drop(image, held)
        here.seconds -= held.seconds
        if not line.order:
            del here.lines[held.client]
        if not here.lines:  # what rounding left goes with it
            del self._classes[held.rank[0]]
        self._by_client[held.client] -= 1
        if not self._by_client[held.client]:
            del self._by_client[held.client]
        images = self._by_request[image.request]
        images.remove(image)
        if not images:
            del self._by_request[image.request]

    def before(self, client: str, rank: Rank) -> Load:
        """Return what is held as an image of this client and rank meets it."""
        here = self._classes.get(rank[0], _Class())
        own = here.lines.get(client, _Line())
        rivals = len(here.lines) - bool(own.order)
        return Load(
            images=len(self._held),
            seconds=self.seconds,
            before_s=sum(one.seconds for rank0, one in self._classes.items() if rank0 < rank[0]),
            ahead_s=own.until(rank),
            rivals=rivals,
            rival_s=max(here.seconds - own.total, 0.0) if rivals else 0.0,
            own_images=self._by_client[client] if client else 0,
        )
