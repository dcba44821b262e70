"""The ETA at 1.2 times what the engine can do, on the step engine with a made-up clock.

Tests mezzotint.service.dispatch.eta.
"""

import random
from math import inf

from tests.unit.engine.fakes import Bench, make_plan

from mezzotint.engine.admission import due_s, finish_s
from mezzotint.engine.backlog import Backlog, Held
from mezzotint.engine.config import EngineConfig
from mezzotint.engine.state import ImageId
from mezzotint.service.dispatch.eta import EtaCorrection

STEPS = (2, 3, 4, 6)
ROW_S, MOST = 0.05, 60


def cost(steps: int) -> float:
    return ROW_S * (2 * steps + 1)


def test_p95_of_what_was_admitted_holds_and_newcomers_starve_nobody():
    bench = Bench(row_s=ROW_S, config=EngineConfig(max_running=128))
    etas, chance = EtaCorrection(bench.clock), random.Random(2)
    rate = 1.2 / (sum(map(cost, STEPS)) / len(STEPS))
    began = due = bench.clock.now
    held = Backlog()
    told: dict[str, tuple[float, float]] = {}
    ratios: list[float] = []
    number = refused = 0
    while bench.clock.now < began + 240 or len(held):
        while due <= bench.clock.now < began + 240:
            number, due = number + 1, due + chance.expovariate(rate)
            steps, name = STEPS[number % 4], f"r{number}"
            if len(held) >= MOST:
                refused += 1
                continue
            rank = (0, inf, due_s(bench.clock.now, cost(steps)))
            load = held.before("c", rank)
            predicted = finish_s(load, cost(steps))
            told[name] = (bench.clock.now, predicted * etas.factor(len(held)))
            etas.begin(name, predicted, len(held))
            held.put(ImageId(name), Held(client="c", seconds=cost(steps), rank=rank))
            bench.submit(name, make_plan(steps=steps, seed=number), client="c")
        if not bench.engine.tick():
            bench.clock.now = max(bench.clock.now, min(due, began + 240))
        for image, when in bench.ended_at.items():
            if image in held:
                held.drop(image)
                etas.learn(image.request)
                since, eta = told[image.request]
                ratios.append((when - since) / eta)
    ratios.sort()
    assert len(ratios) > 300
    assert refused > 5
    assert ratios[int(len(ratios) * 0.95)] <= 1.2
    assert ratios[len(ratios) // 2] >= 0.5  # no excuses either
