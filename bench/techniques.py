"""Predicted against measured seconds and model calls of each technique, on the built-in model.

    python bench/techniques.py [ROUNDS [STEPS]]

Each request runs once to be measured, then is planned, then runs again ROUNDS times; the
prediction should be within 20 % of the median.
"""

import statistics
import sys
import tempfile
import time

from tests.roads.test_passes import disc, photo, png

from mezzotint.request import (
    EnsembleMember,
    Gates,
    GateSettings,
    GenerationRequest,
    GuidanceSchedule,
    Hires,
    Inpaint,
    Outpaint,
    Region,
    Variation,
    Walk,
)
from mezzotint.service.engine import Engine
from mezzotint.types import Finished

TECHNIQUES = {
    "plain": {},
    "guidance curve": {"guidance_scale": GuidanceSchedule(schedule="interval", start=6, from_=0.3)},
    "regions": {"regions": (Region(prompt="a cat", box=(0, 0, 0.5, 1), negative_prompt="red"),)},
    "ensemble": {"ensemble": (EnsembleMember(model="plate"), EnsembleMember(model="plate"))},
    "image to image": {"image": png(photo()), "strength": 0.6},
    "inpainting": {
        "image": png(photo()), "mask": png(disc()), "strength": 0.8,
        "inpaint": Inpaint(fill="surroundings", paste=True),
    },
    "outpainting": {"image": png(photo()), "outpaint": Outpaint(right=32), "strength": 0.8},
    "walk": {"walk": Walk(to="a leaf", frames=4)},
    "variation": {"variation": Variation(strength=0.3)},
    "tiling": {"tiling": True},
    "hires": {"hires": Hires(scale=1.5)},
    "gates": {"gates": Gates(gates=(("quality", GateSettings(threshold=1e6)),))},
}  # fmt: skip


def main() -> None:
    rounds, steps = (int(a) if a else None for a in (*sys.argv[1:3], "", "")[:2])
    rounds = rounds or 3
    print(
        f"{'technique':16}{'calls':>7}{'counted':>9}{'predicted s':>13}{'median s':>10}{'off':>7}"
    )
    with tempfile.TemporaryDirectory() as home, Engine(["plate"], home=home) as engine:
        for name, fields in TECHNIQUES.items():
            request = GenerationRequest(
                prompt="a red apple", seed=1, num_inference_steps=steps, **fields
            )
            for _ in range(2):
                run(engine, request)
            cost = engine.plan(request)["cost"]
            seconds, calls = zip(*(run(engine, request) for _ in range(rounds)), strict=True)
            median = statistics.median(seconds)
            off = cost["seconds"] / median - 1
            print(
                f"{name:16}{cost['model_calls']:7}{calls[0]:9}{cost['seconds']:13.3f}"
                f"{median:10.3f}{off:+7.0%}",
                flush=True,
            )


def run(engine: Engine, request: GenerationRequest) -> tuple[float, int]:
    """Run a request past the cache; return seconds and model calls."""
    import asyncio

    async def go() -> tuple[float, int]:
        began = time.perf_counter()
        events = engine.service.stream(request, request_id=f"{began}", use_cache=False)
        async for event in events:
            if isinstance(event, Finished):
                calls = sum(i.timings.model_calls for i in event.result.images)
                return time.perf_counter() - began, calls
        raise RuntimeError("the request did not finish")

    return asyncio.run(go())


if __name__ == "__main__":
    main()
