"""Waiting: what planning, admitting and choosing take beside 100 to 10,000 waiting requests.

No network is called and nothing waits: only the decisions are timed, as core-microseconds
of the thread that makes them, the fastest of several repetitions. What a queue's length
costs is the slope.
"""

import argparse
import secrets
import time
from collections.abc import Callable
from typing import Any

from bench._report import write

from mezzotint.engine.backlog import Backlog, Held
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import Claim, ImageId
from mezzotint.engine.step_engine import Decoded, Encoded, StepEngine, Submission, Worked
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.costs import CostTable, cost_key, encode_key
from mezzotint.planning.memory import measure
from mezzotint.planning.plan import Plan
from mezzotint.planning.templates import Templates
from mezzotint.request import GenerationRequest
from mezzotint.types import Size

GAN = ModelSpec(
    name="gan", digest="b" * 64, family="gan", latent_channels=100, fixed_size=True,
    default_size=Size(64, 64), takes_prompt=False, takes_negative_prompt=False,
    takes_guidance=False, takes_image=False, has_steps=False,
)  # fmt: skip
CLIENTS = 8
LENGTHS = (100, 1_000, 10_000)


class Nobody:
    """An executor that has nothing to do."""

    def encode(self, image: ImageId, plan: Plan, assets: Any, *, client: str = "") -> Encoded:
        """Make no tensors."""
        return Encoded(key=plan.batch_key)

    def decode(self, batch: Any) -> Worked:
        """Draw nothing."""
        return Worked(decoded={i: Decoded(picture=None) for i in batch.ids}, seconds=0.001)

    step = decode

    def preview(self, image: ImageId) -> None:
        """Show nothing."""

    def release(self, image: ImageId) -> None:
        """Free nothing."""

    def buckets(self, kind: str, key: Any) -> tuple[int, ...]:
        """Allow every size."""
        return (1, 2, 4, 8, 16, 32, 64)


def fastest(work: Callable[[], Any], repeats: int) -> float:
    """Return core-microseconds of the fastest call."""
    best = float("inf")
    for _ in range(repeats):
        began = time.thread_time_ns()
        work()
        best = min(best, (time.thread_time_ns() - began) / 1000)
    return best


def decisions(length: int, repeats: int) -> dict[str, float]:
    """Time what is decided beside ``length`` waiting requests, in core-microseconds."""
    config, costs, templates = EngineConfig(max_waiting=2 * length), CostTable(), Templates()
    here = Abilities(environment="{}")
    first = templates.plan(GenerationRequest(model="gan", seed=0), GAN, here)[0].plans[0]
    footprint = measure(first, GAN)
    costs.record(encode_key(first), "encode", 1, 1e-4)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        costs.record(cost_key(first), "decode", rows, 1e-3 * (1 + rows / 2))
    engine = StepEngine(config, Nobody(), lambda _: None, costs=costs, budget_bytes=1 << 40)
    held = Backlog()

    def submit() -> None:
        image = ImageId(secrets.token_hex(8))
        client, due = f"client {len(held) % CLIENTS}", float(len(held))
        claim = Claim(client=client, arrived_s=due, due_s=due)
        held.put(image, Held(client=client, seconds=1e-3, rank=(0, float("inf"), due)))
        engine.submit(Submission(id=image, plan=first, claim=claim, footprint=footprint))

    for _ in range(length):
        submit()
    engine.tick()  # as many as may run have begun
    for _ in range(length - len(engine.states)):
        submit()
    seeds = iter(range(1, 10 * repeats + 1))
    pictures = 0

    def tick() -> None:
        nonlocal pictures
        before = len(engine.states)
        engine.tick()
        pictures = before - len(engine.states)
        for _ in range(pictures):
            submit()

    found = {
        "planning": fastest(
            lambda: templates.plan(GenerationRequest(model="gan", seed=next(seeds)), GAN, here),
            repeats,
        ),
        "admission": fastest(
            lambda: held.before("client 1", (0, float("inf"), length / 2)), repeats
        ),
        "a call of 64 pictures": fastest(tick, min(repeats, 10)),
    }
    found["choosing, a picture"] = found["a call of 64 pictures"] / max(pictures, 1)
    return {name: round(us, 2) for name, us in found.items()}


def main() -> None:
    """Run and write ``bench/results/waiting.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeats", type=int, default=50)
    given = parser.parse_args()
    rows = {str(n): decisions(n, given.repeats) for n in given.lengths}
    names = rows[str(given.lengths[0])]
    low, high = min(given.lengths), max(given.lengths)
    slopes = {
        name: round((rows[str(high)][name] - rows[str(low)][name]) / max(high - low, 1) * 1000, 3)
        for name in names
    }
    write(
        "waiting",
        {
            "command": "mezzotint bench waiting",
            "core_us_by_waiting_requests": rows,
            "core_us_for_each_thousand_more": slopes,
        },
    )


if __name__ == "__main__":
    main()
