"""Waiting: images without tensors, in lines, so that choosing looks at the first of each line.

A line is what one client has waiting in one class, in its reading order. Pictures of a pipeline
that runs whole stand in a line of their own beside it: they can be passed all together while
the pipeline is taken.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Set

from mezzotint.engine.accounts import Credits
from mezzotint.engine.state import ImageId, ImageState

__all__ = ["Place", "Waiting", "place"]

Place = tuple[float, float, float, ImageId]
"""What decides between images of one client: deadline, when it is due, arrival."""

_Name = tuple[int, str]


def place(state: ImageState) -> Place:
    """Return where an image stands among those of its client and class."""
    claim = state.claim
    return claim.deadline_s, claim.due_s, claim.arrived_s, state.id


def _pipeline(state: ImageState) -> str:
    """Return the model that a picture has to itself, "" for those that share calls."""
    return state.plan.model_digest if state.plan.is_alone else ""


class Waiting:
    """Images that wait, by class and client."""

    def __init__(self) -> None:
        self._states: dict[ImageId, ImageState] = {}
        self._lines: dict[_Name, dict[str, list[Place]]] = {}

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[ImageId]:
        return iter(self._states)

    def add(self, state: ImageState) -> None:
        """Let an image wait."""
        self._states[state.id] = state
        name = (state.claim.priority, state.claim.client)
        insort(self._lines.setdefault(name, {}).setdefault(_pipeline(state), []), place(state))

    def drop(self, image: ImageId) -> None:
        """Take an image out if it waits."""
        state = self._states.pop(image, None)
        if state is None:
            return
        name, pipeline = (state.claim.priority, state.claim.client), _pipeline(state)
        lines = self._lines[name]
        line = lines[pipeline]
        del line[bisect_left(line, place(state))]
        if not line:
            del lines[pipeline]
        if not lines:
            del self._lines[name]

    def in_turn(
        self, running: Mapping[str, int], credits: Credits, taken: Set[str]
    ) -> Iterator[ImageState]:
        """Yield images by class, then client by client, the least served first.

        Args:
            running: Images of each client that have tensors.
            credits: What each client is owed.
            taken: Models whose pipelines draw already; read anew for each image.
        """
        passed: dict[tuple[_Name, str], int] = {}

        def first(name: _Name) -> tuple[Place, str] | None:
            heads: list[tuple[Place, str]] = []
            for pipeline, line in self._lines[name].items():
                at = passed.get((name, pipeline), 0)
                if at < len(line) and pipeline not in taken:
                    heads.append((line[at], pipeline))
            return min(heads, default=None)

        heap = [
            (-name[0], running.get(name[1], 0), -credits.get(name[1], 0.0), name)
            for name in self._lines
        ]
        heapq.heapify(heap)
        while heap:
            priority, count, due, name = heapq.heappop(heap)
            head = first(name)
            if head is None:
                continue
            place, pipeline = head
            passed[name, pipeline] = passed.get((name, pipeline), 0) + 1
            yield self._states[place[3]]
            heapq.heappush(heap, (priority, count + 1, due, name))
