"""Progress: one JSONL file for machines, one line for people.

Every line of ``metrics.jsonl`` is an object with ``event`` and ``step``. After
a resume the lines of steps that will be run again are taken out first, so the
file reads as if the run had never stopped.
"""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.files import write_atomically
from mezzotint.images.codec import decode_image

__all__ = ["Board", "Progress", "TrainEvent", "describe_event", "format_duration"]

TrainEvent = dict[str, Any]
"""``{"event": "started" | "step" | "held_out" | "samples" | "checkpoint" | "rollback" | "skipped"
| "warning" | "finished", "step": int, ...}``"""


def format_duration(seconds: float) -> str:
    """Return a duration for people, e.g. ``1:02:03`` or ``4:05``."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe_event(event: TrainEvent) -> str:
    """Return an event as one line for a terminal or a log."""
    kind = event["event"]
    if kind == "step":
        return (
            f"step {event['step']}/{event['steps']}  loss {event['loss']:.4f}  "
            f"{event['steps_per_s']:.2f} steps/s  left {format_duration(event['eta_s'])}"
        )
    rest = ", ".join(
        f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
        for k, v in event.items()
        if k not in ("event", "step", "time") and v is not None and v is not False
    )
    return f"step {event['step']}: {kind}{' ' + rest if rest else ''}"


class Progress:
    """Writes events to ``metrics.jsonl`` and tells a listener.

    Args:
        path: The file; None writes nothing (ranks other than the first).
        steps: Steps of the whole run.
        listener: Called with every event.
        board: Where figures go besides, or None.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        steps: int,
        listener: Callable[[TrainEvent], None] | None,
        board: "Board | None" = None,
    ) -> None:
        self._path, self._steps, self._listener, self._board = path, steps, listener, board
        self._mark: tuple[float, int] | None = None
        self._rate = 0.0

    def rewind(self, step: int) -> None:
        """Take out the lines of steps after ``step``, which will be run again."""
        if self._path is None or not self._path.exists():
            return
        kept: list[str] = []
        for line in self._path.read_text("utf-8").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the last line of a killed run may be cut
            if int(event.get("step", 0)) <= step:
                kept.append(line)
        write_atomically(self._path, "".join(line + "\n" for line in kept).encode())

    def last_loss(self) -> float:
        """Return the loss that was written last, so that a run with no step left has one."""
        found = math.nan
        if self._path is None or not self._path.exists():
            return found
        for line in self._path.read_text("utf-8").splitlines():
            loss = json.loads(line).get("loss")
            if isinstance(loss, float) and math.isfinite(loss):
                found = loss
        return found

    def tell(self, event: str, step: int, **values: Any) -> TrainEvent:
        """Record an event; a full disk costs the line, not the run."""
        record: TrainEvent = {"event": event, "step": step, "time": time.time(), **values}
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
            except OSError as error:
                record["unwritten"] = str(error)
        if self._board is not None:
            self._board.add(record)
        if self._listener is not None:
            self._listener(record)
        return record

    def tell_step(self, step: int, **values: Any) -> TrainEvent:
        """Record a training step with its rate and the time that is left."""
        now = time.perf_counter()
        if self._mark is not None and step > self._mark[1]:
            rate = (step - self._mark[1]) / max(now - self._mark[0], 1e-9)
            self._rate = rate if not self._rate else 0.7 * self._rate + 0.3 * rate
        self._mark = (now, step)
        left = (self._steps - step) / self._rate if self._rate else 0.0
        return self.tell(
            "step", step, steps=self._steps, steps_per_s=round(self._rate, 4),
            eta_s=round(left, 1), **values,
        )  # fmt: skip

    def start_clock(self, step: int) -> None:
        """Begin to measure the rate at ``step``."""
        self._mark = (time.perf_counter(), step)


class Board:
    """Figures and grids for TensorBoard.

    Args:
        folder: Where its files go.

    Raises:
        InvalidRequest: If the package tensorboard is not there.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InvalidRequest(
                "samples.tensorboard needs the package tensorboard (pip install mezzotint[train])",
                field="samples.tensorboard",
            ) from None
        self._writer: Any = SummaryWriter(str(folder))

    def add(self, record: TrainEvent) -> None:
        """Write every figure of an event, and its grid if it has one."""
        step = int(record["step"])
        left_out = ("event", "step", "time", "steps")
        for name, value in record.items():
            if isinstance(value, int | float) and name not in left_out:
                self._writer.add_scalar(f"{record['event']}/{name}", value, step)
        if record["event"] == "samples":
            pixels = decode_image(Path(str(record["path"])).read_bytes())
            self._writer.add_image("samples", pixels, step, dataformats="HWC")
        if record["event"] == "finished":
            self._writer.close()
