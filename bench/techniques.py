"""Predicted against measured seconds and model calls of each technique, on the built-in model.

    python bench/techniques.py [ROUNDS [STEPS]]

Each request runs twice to be measured; then all take turns ROUNDS times, each planned right
before it runs. The prediction should be within 20 % of what the request then takes, and the
model calls exact.
"""

import statistics
import sys
import tempfile
import time

from bench._report import NO_CACHE, write
from tests.techniques import disc, photo, png

from mezzotint.request import (
    EnsembleMember,
    Gates,
    GateSettings,
    GenerationRequest,
    GuidanceSchedule,
    Hires,
    Inpaint,
    Lora,
    Outpaint,
    Region,
    Upscale,
    Variation,
    Walk,
)
from mezzotint.service.engine import Engine
from mezzotint.types import Finished

TECHNIQUES = {
    "plain": {},
    "guidance curve": {"guidance_scale": GuidanceSchedule(schedule="interval", start=6, from_=0.3)},
    "regions": {"regions": (Region(prompt="a cat", box=(0, 0, 0.5, 1), negative_prompt="red"),)},
    "no guidance": {"guidance_scale": 1.0},
    "two pictures": {"num_images": 2},
    "ensemble": {"ensemble": (EnsembleMember(model="plate"), EnsembleMember(model="plate"))},
    "image to image": {"image": png(photo()), "strength": 0.6},
    "inpainting": {
        "image": png(photo()), "mask": png(disc()), "strength": 0.8,
        "inpaint": Inpaint(fill="surroundings", paste=True),
    },
    "outpainting": {"image": png(photo()), "outpaint": Outpaint(right=32), "strength": 0.8},
    "walk": {"walk": Walk(to="a leaf", frames=4)},
    "variation": {"variation": Variation(strength=0.3)},
    "LoRA": {"loras": (Lora(name="plate-ink"),)},
    "tiling": {"tiling": True},
    "hires": {"hires": Hires(scale=1.5)},
    "upscaling": {"upscale": Upscale(factor=2)},
    "prompt that changes": {"prompt": "a [red:green:0.5] apple", "prompt_dialect": "a1111"},
    "gates": {"gates": Gates(gates=(("quality", GateSettings(threshold=1e6)),))},
}  # fmt: skip


def main() -> None:
    rounds, steps = (int(a) if a else None for a in (*sys.argv[1:3], "", "")[:2])
    rounds = rounds or 3
    found: dict[str, dict[str, float]] = {}
    print(
        f"{'technique':20}{'calls':>7}{'counted':>9}{'predicted s':>13}{'median s':>10}{'off':>7}"
    )
    with (
        tempfile.TemporaryDirectory() as home,
        Engine(["plate"], home=home, engine=NO_CACHE) as engine,
    ):
        requests = {
            name: GenerationRequest(
                **{"prompt": "a red apple", "seed": 1, "num_inference_steps": steps, **f}
            )
            for name, f in TECHNIQUES.items()
        }
        for request in requests.values():
            for _ in range(2):
                run(engine, request)
        seconds: dict[str, list[float]] = {name: [] for name in requests}
        predicted: dict[str, list[float]] = {name: [] for name in requests}
        calls: dict[str, set[int]] = {name: set() for name in requests}
        for _ in range(rounds):  # in turns: a slow minute is slow for all
            for name, request in requests.items():
                predicted[name].append(engine.plan(request)["cost"]["seconds"])
                spent, counted = run(engine, request)
                seconds[name].append(spent)
                calls[name].add(counted)
        for name, request in requests.items():
            planned = engine.plan(request)["cost"]["model_calls"]
            median, told = statistics.median(seconds[name]), statistics.median(predicted[name])
            ratio = statistics.median(
                p / s for p, s in zip(predicted[name], seconds[name], strict=True)
            )
            counted = sorted(calls[name])
            print(
                f"{name:20}{planned:7}{counted!s:>9}{told:13.3f}{median:10.3f}{ratio - 1:+7.0%}",
                flush=True,
            )
            found[name] = {
                "model calls planned": planned,
                "model calls counted": counted[0] if len(counted) == 1 else -1,
                "predicted seconds": round(told, 4),
                "median seconds": round(median, 4),
                "predicted by measured": round(ratio, 3),
            }
    write(
        "techniques",
        {
            "what": "what plan predicts for a request alone, and what it then took",
            "command": f"python bench/techniques.py {' '.join(sys.argv[1:])}".strip(),
            "techniques": found,
        },
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
