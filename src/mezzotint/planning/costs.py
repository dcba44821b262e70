"""Costs: what a network call of so many rows really takes here.

One table for everybody: the batcher chooses batch sizes with it and pays in its
currency, admission promises times with it, and ``--plan`` prints it. Times are
measured at warm-up and refreshed while running; before anything is measured a
rough guess from the model's shape stands in.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mezzotint.files import write_atomically
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import Plan

__all__ = ["CostTable", "Prediction", "cost_key", "encode_key", "finish_key", "load_key"]

Kind = Literal["encode", "step", "reuse", "decode", "finish", "load"]

_KEEP = 0.7  # weight of the past in the running mean
_OUTLIER = 1.5  # a time more than this many times the known one is somebody else's noise
_STALE = 256  # calls after which a size that was not among them is worth another trial
_GUESS_S = {"encode": 0.05, "step": 0.2, "reuse": 0.1, "decode": 0.2, "finish": 0.0, "load": 0.0}
_GUESS_LOAD_S = 12e-9  # a byte of weights: read, converted and compiled on two cores


def cost_key(plan: Plan) -> str:
    """Return the name under which a plan's times are kept: model, adapters, size."""
    return plan.cost_name


def encode_key(plan: Plan) -> str:
    """Return the name for encoding: a start picture goes through the model's encoder too."""
    is_read = plan.techniques.image is not None and plan.techniques.upscaler[0] != "latent"
    return f"{cost_key(plan)} picture" if is_read else cost_key(plan)


def finish_key(plan: Plan) -> str | None:
    """Return the name for what is done to a drawn picture; None where it is only written."""
    if plan.techniques.upscale is None:
        return None
    upscale = plan.techniques.upscale.part
    factor, name = upscale.factor, upscale.model or "lanczos"
    return f"upscale {name} {factor:g} {plan.size}"


def load_key(plan: Plan) -> str:
    """Return the name for making a plan's model ready: its digest, and whether it is to be fast."""
    name = plan.model_digest or plan.model
    return f"{name} turbo" if plan.is_turbo else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a plan will cost alone.

    Args:
        seconds: From start to decoded picture, waiting not included.
        model_calls: Rows that networks compute.
        peak_bytes: Memory at its worst moment, weights not included.
        measured: Whether the seconds rest on measurements.
    """

    seconds: float
    model_calls: int
    peak_bytes: int
    measured: bool


class CostTable:
    """Seconds per (key, kind, rows), learnt while running.

    Args:
        environment: Device and versions; a file of another environment is not read.
        path: JSON file to remember in, or None.
    """

    def __init__(self, environment: str = "", path: Path | None = None) -> None:
        self._environment = environment
        self._path = path
        self._seconds: dict[tuple[str, str], dict[int, float]] = {}
        self._counts: dict[tuple[str, str, int], int] = {}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._latest: dict[tuple[str, str, int], int] = {}  # which of the calls it was
        self._load()

    def record(self, key: str, kind: Kind, rows: int, seconds: float) -> None:
        """Learn from one measurement.

        The first call of a shape pays for warm-up (allocation, kernel choice), so the
        second replaces it; later ones move a running mean, outliers damped. A time that is
        too old to be believed is replaced by a shorter one.
        """
        times = self._seconds.get((key, kind), {})
        count = self._counts.get((key, kind, rows), 0)
        is_trial = count == 1 or self._is_stale(key, kind, rows)
        self._counts[key, kind, rows] = count + 1
        self._calls[key, kind] += 1
        self._latest[key, kind, rows] = self._calls[key, kind]
        known = times.get(rows)
        if known is not None and count == 0 and seconds > known:
            return  # a warm-up beside the time that an earlier process measured
        if known is None or (is_trial and seconds < known):
            learnt = seconds
        elif count == 1:
            learnt = known
        else:
            learnt = _KEEP * known + (1 - _KEEP) * min(seconds, _OUTLIER * known)
        # Replaced, never edited: another thread may be reading.
        self._seconds = {**self._seconds, (key, kind): {**times, rows: learnt}}

    def is_measured(self, key: str, kind: Kind) -> bool:
        """Tell whether there is a measurement for any number of rows."""
        return (key, kind) in self._seconds

    def is_settled(self, key: str, kind: Kind, rows: int) -> bool:
        """Tell whether the time of such a call can be believed without another trial.

        It cannot if it was timed once and took as long as smaller calls one after the other,
        as a warm-up does, nor if many calls were made since: it may have been timed beside
        other work of the machine, and who takes it for dear would never learn better.
        """
        times = self._seconds.get((key, kind), {})
        if rows not in times:
            return False
        if self._is_stale(key, kind, rows):
            return False
        below = max((r for r in times if r < rows), default=None)
        is_dear = below is not None and times[rows] >= times[below] * rows / below
        return self._counts.get((key, kind, rows)) != 1 or not is_dear

    def _is_stale(self, key: str, kind: Kind, rows: int) -> bool:
        """Tell whether many calls of other sizes were made since the latest of this one."""
        return self._calls[key, kind] - self._latest.get((key, kind, rows), 0) > _STALE

    def measured_rows(self, key: str, kind: Kind) -> tuple[int, ...]:
        """Return the numbers of rows that were measured, rising."""
        return tuple(sorted(self._seconds.get((key, kind), ())))

    def seconds(self, key: str, kind: Kind, rows: int) -> float:
        """Predict the seconds of one call.

        Between measured numbers of rows the time is interpolated; beyond them it
        grows in proportion, below them it is that of the smallest.
        """
        times = self._seconds.get((key, kind))
        if not times:
            known = [t for (_, k), ts in self._seconds.items() if k == kind for t in ts.values()]
            return (statistics.median(known) if known else _GUESS_S[kind]) * max(rows, 1) / 2
        if rows in times:
            return times[rows]
        below = max((r for r in times if r < rows), default=None)
        above = min((r for r in times if r > rows), default=None)
        if below is None:
            return times[above or rows] * max(rows / (above or rows), 0.5)
        if above is None:
            return times[below] * rows / below
        share = (rows - below) / (above - below)
        return times[below] + share * (times[above] - times[below])

    def load_s(self, plan: Plan, num_bytes: int) -> float:
        """Predict the seconds of making a plan's model ready, from its bytes until it was timed."""
        key = load_key(plan)
        if self.is_measured(key, "load"):
            return self.seconds(key, "load", 1)
        return num_bytes * _GUESS_LOAD_S

    def predict(
        self, plan: Plan, footprint: Footprint, *, min_rows: int = 2, evaluation: int = 0
    ) -> Prediction:
        """Predict what a plan costs alone, from ``evaluation`` on.

        Args:
            plan: What to make.
            footprint: Its bytes.
            min_rows: Rows of the smallest network call.
            evaluation: Network evaluations that are done.
        """
        key = cost_key(plan)
        least = min_rows if plan.reproducibility == "exact" else 1
        kinds: tuple[Kind, ...] = tuple("reuse" if r else "step" for r in plan.reused)
        kinds = kinds or ("step",) * len(plan.rows)
        if plan.techniques.ensemble or plan.techniques.controls:
            steps = sum(
                self._evaluation(plan, key, k, kinds[k], least)
                for k in range(evaluation, len(plan.rows))
            )
        else:  # evaluations of a kind cost the same, and there are few kinds
            alike = Counter(zip(kinds[evaluation:], plan.rows[evaluation:], strict=True))
            steps = sum(
                count * self._price(key, kind, rows, least) for (kind, rows), count in alike.items()
            )
        decode = 0.0 if plan.ends_in_latents else self.seconds(key, "decode", 1)
        encode = self._encoding(plan) if evaluation == 0 else 0.0
        if plan.second is not None:
            decode += self.predict(plan.second, footprint, min_rows=min_rows).seconds
        finished = finish_key(plan)
        finish = self.seconds(finished, "finish", 1) if finished else 0.0
        return Prediction(
            seconds=encode + steps + decode + finish,
            model_calls=plan.model_calls,
            peak_bytes=footprint.peak_bytes(max((*plan.rows, min_rows))),
            measured=self.is_measured(key, "step" if plan.rows else "decode"),
        )

    def share(self, plans: Sequence[Plan], *, min_rows: int = 2) -> float:
        """Predict the seconds that plans save when they are made side by side.

        Args:
            plans: The images of one request; those that may share calls do.
            min_rows: Rows of the smallest network call.

        Returns:
            Seconds, >= 0, to be taken off the sum of what each costs alone.
        """
        groups = Counter((plan.batch_key, plan.rows, plan.reused) for plan in plans)
        first = {(plan.batch_key, plan.rows, plan.reused): plan for plan in plans}
        return sum(
            self._saved(first[group], count, min_rows)
            for group, count in groups.items()
            if count > 1 and not first[group].techniques.ensemble
        )

    def _saved(self, plan: Plan, count: int, min_rows: int) -> float:
        """Return what so many images of a kind save: the cheapest calls that hold all rows."""
        key = cost_key(plan)
        least = min_rows if plan.reproducibility == "exact" else 1
        saved = 0.0
        calls: list[tuple[Kind, int]] = [
            ("reuse" if plan.reused and plan.reused[k] else "step", rows)
            for k, rows in enumerate(plan.rows)
        ]
        for kind, rows in calls or [("decode", 1)]:
            alone = self._price(key, kind, rows, least if plan.rows else 1)
            known = self._seconds.get((key, kind), {})
            together = [math.ceil(count * rows / size) * s for size, s in known.items()]
            saved += max(count * alone - min(together, default=math.inf), 0.0)
        return saved

    def _encoding(self, plan: Plan) -> float:
        """Return the seconds of encoding; of the prompts alone where no more is known."""
        key = encode_key(plan)
        is_known = self.is_measured(key, "encode")
        return self.seconds(key if is_known else cost_key(plan), "encode", 1)

    def _evaluation(self, plan: Plan, key: str, place: int, kind: Kind, least: int) -> float:
        """Return the seconds of one evaluation of a lone image: a call to each denoiser asked."""
        members = plan.techniques.ensemble
        rows = plan.rows[place]
        if not members:
            return self._price(self._key_at(plan, key, place), kind, rows, least)
        asked = [m for m in members if m.part.weights[plan.steps[place] - 1]]
        keys = [plan.cost_name_of(member.digest) for member in asked]
        known = [k if self.is_measured(k, kind) else key for k in keys]
        return sum(self._price(k, kind, rows // len(asked), least) for k in known)

    def _price(self, key: str, kind: Kind, rows: int, least: int) -> float:
        """Return the seconds of the call a lone image's rows go into: padded, or as they are."""
        is_known = rows in self._seconds.get((key, kind), ())
        return self.seconds(key, kind, rows if is_known else max(rows, least))

    def _key_at(self, plan: Plan, key: str, evaluation: int) -> str:
        """Return the key of an evaluation: the bare model's while no ControlNet acts."""
        if not plan.techniques.controls or plan.control_rows(evaluation):
            return key
        bare = cost_key(replace(plan, techniques=replace(plan.techniques, controls=())))
        return bare if self.is_measured(bare, "step") else key

    def table(self) -> list[dict[str, float | int | str]]:
        """Return every measured time as plain data, for people and ``/v1/capabilities``."""
        return [
            {"shape": key, "kind": kind, "rows": rows, "seconds": seconds}
            for (key, kind), times in sorted(self._seconds.items())
            for rows, seconds in sorted(times.items())
        ]

    def save(self) -> None:
        """Write the table to its file; a folder that cannot be written is no error."""
        if self._path is None:
            return
        data = {"environment": self._environment, "times": self.table()}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(data).encode())
        except OSError:
            return

    def _load(self) -> None:
        """Read the file if it is there and was written in this environment."""
        if self._path is None:
            return
        try:
            data: Mapping[str, object] = json.loads(self._path.read_bytes())
            if data["environment"] != self._environment:
                return
            for entry in data["times"]:  # pyright: ignore
                times = self._seconds.setdefault((entry["shape"], entry["kind"]), {})  # pyright: ignore
                times[int(entry["rows"])] = float(entry["seconds"])  # pyright: ignore
        except (OSError, ValueError, KeyError, TypeError):
            self._seconds.clear()
