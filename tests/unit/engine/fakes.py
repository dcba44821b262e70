"""A fake executor, a fake clock and small plans: the step engine without tensors."""

from dataclasses import replace

from mezzotint.engine.admission import due_s
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import (
    Claim,
    ImageCancelled,
    ImageDone,
    ImageFailed,
    ImageId,
)
from mezzotint.engine.step_engine import Decoded, Encoded, StepEngine, Submission, Worked
from mezzotint.errors import OutOfMemory
from mezzotint.planning.costs import CostTable
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import Plan, Techniques
from mezzotint.request import Output
from mezzotint.types import Size

ENDINGS = (ImageDone, ImageFailed, ImageCancelled)


def make_plan(
    *, steps: int = 4, guidance: float = 5.0, side: int = 64, seed: int = 0, model: str = "tiny"
) -> Plan:
    rows = 1 if guidance == 1 else 2
    return Plan(
        model=model,
        model_digest=model * 8,
        environment="test",
        prompt="a pear",
        negative_prompt="",
        prompt_dialect="plain",
        size=Size(side, side),
        seed=seed,
        num_inference_steps=steps,
        scheduler="euler" if steps else "",
        sigma_schedule=None,
        steps=tuple(range(1, steps + 1)),
        rows=(rows,) * steps,
        guidance=(guidance,) * steps,
        techniques=Techniques(),
        output=Output(),
        reproducibility="exact",
    )


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeExecutor:
    """Executor that spend fake seconds: a fixed part per call and a part per row.

    Args:
        clock: Moved on by every call.
        row_s: Seconds per row of 64 px; other sizes in proportion to pixels.
        call_s: Seconds per call.
        crash: ``(what, image) -> Exception | None``, asked for every image of every call.
        memory_bytes: Activations above this raise OutOfMemory.
    """

    def __init__(self, clock, *, row_s=0.1, call_s=0.0, crash=None, budget_bytes=None):
        self.clock, self.row_s, self.call_s = clock, row_s, call_s
        self.crash = crash or (lambda what, image: None)
        self.held: dict[ImageId, Plan] = {}
        self.evaluations: dict[ImageId, int] = {}
        self.calls: list = []
        self.budget_bytes = budget_bytes
        self.most_bytes = 0

    def _raise(self, what, ids):
        for image in ids:
            if error := self.crash(what, image):
                raise error

    def encode(self, image, plan, assets, *, client=""):
        self._raise("encode", [image])
        assert image not in self.held
        self.held[image] = plan
        self.evaluations[image] = 0
        return Encoded(key=plan.batch_key)

    def _seconds(self, batch):
        pixels = self.held[batch.ids[0]].size.width ** 2 / 64**2
        return self.call_s + self.row_s * pixels * batch.bucket

    def step(self, batch):
        self._raise("step", batch.ids)
        faults = {i: e for i in batch.ids if (e := self.crash("fault", i))}
        rows = 0
        for image in batch.ids:
            plan = self.held[image]
            assert plan.batch_key == batch.key
            rows += plan.rows[self.evaluations[image]]
        assert rows <= batch.bucket
        for image in batch.ids:
            if image not in faults:
                self.evaluations[image] += 1
        seconds = self._seconds(batch)
        self.clock.now += seconds
        self.calls.append(batch)
        return Worked(faults=faults, seconds=seconds)

    def decode(self, batch):
        self._raise("decode", batch.ids)
        for image in batch.ids:
            assert self.evaluations[image] == len(self.held[image].rows)
        seconds = self._seconds(batch)
        self.clock.now += seconds
        self.calls.append(batch)
        pictures = {i: Decoded(picture=self.held[i].seed) for i in batch.ids}
        return Worked(decoded=pictures, seconds=seconds)

    def preview(self, image):
        self._raise("preview", [image])
        return f"preview {image.index}"

    def release(self, image):
        self.held.pop(image, None)
        self._raise("release", [image])

    def buckets(self, kind, key):
        if kind == "decode" and any(p.rows for p in self.held.values() if p.batch_key == key):
            return (1,)
        return (1, 2, 4, 8, 16) if kind == "decode" else (2, 4, 6, 8, 12, 16)


class Bench:
    """An engine over fake executor, with its events."""

    def __init__(
        self, *, budget_bytes=1 << 40, models_bytes=0, listener=None, config=None, **executor
    ) -> None:
        self.clock = FakeClock()
        self.executor = FakeExecutor(self.clock, **executor)
        self.events: list = []
        self.ended_at: dict[ImageId, float] = {}
        self.costs = CostTable()
        self.listener = listener
        self.engine = StepEngine(
            config or EngineConfig(),
            self.executor,
            self._hear,
            costs=self.costs,
            budget_bytes=budget_bytes,
            models_bytes=models_bytes,
            clock=self.clock,
        )

    def _hear(self, event) -> None:
        self.events.append(event)
        if isinstance(event, ENDINGS):
            self.ended_at[event.id] = self.clock.now
        if self.listener:
            self.listener(event)

    def alone_s(self, plan: Plan) -> float:
        """What a plan takes alone on these executor."""
        row_s = self.executor.row_s * plan.size.width**2 / 64**2
        calls = (*plan.rows, 1)
        return sum(self.executor.call_s + row_s * rows for rows in calls)

    def submit(self, request, plan=None, *, images=1, footprint=None, **claim):
        plan = plan or make_plan()
        claim = {
            "arrived_s": self.clock.now,
            "due_s": due_s(self.clock.now, images * self.alone_s(plan)),
            **claim,
        }
        for index in range(images):
            self.engine.submit(
                Submission(
                    id=ImageId(request, index),
                    plan=replace(plan, seed=plan.seed + index),
                    claim=Claim(**claim),
                    footprint=footprint
                    or Footprint(slot_bytes=1000, row_bytes=1000, decode_bytes=1000),
                )
            )

    def run(self, ticks=100_000) -> None:
        for _ in range(ticks):
            if not self.engine.tick():
                return
        raise AssertionError("the engine did not come to rest")

    def endings(self) -> dict:
        found: dict = {}
        for event in self.events:
            if isinstance(event, ENDINGS):
                found.setdefault(event.id, []).append(event)
        return found


OOM = OutOfMemory("too much")
