"""Flow families: mixed prompts in one native batch beside diffusers' pipeline one by one.

    python bench/families.py [ROUNDS [REQUESTS]]

Tiny to middling networks with random weights, made in the process, on torch in float32 with
one thread: what is compared is the batch, not a backend. Prompts have four lengths; requests
are exact, so calls are of certified sizes.
"""

import sys
import tempfile
import time

import torch
from bench._report import NO_CACHE, interleave, ratios, write
from tests import tiny, tiny_flows

from mezzotint.models.formats.components import from_pipeline
from mezzotint.request import GenerationRequest
from mezzotint.service.engine import Engine

STEPS, SIDE = 6, 64
PROMPTS = ("a leaf", "a red apple on the table", "two blue cats beside a big leaf " * 2, "a " * 60)


def serial(pipeline, requests: int):
    """Return a function: seconds for so many pictures of the pipeline, one after the other."""

    def run() -> float:
        started = time.perf_counter()
        for k in range(requests):
            generator = torch.Generator().manual_seed(k)
            pipeline(
                PROMPTS[k % len(PROMPTS)], width=SIDE, height=SIDE, num_inference_steps=STEPS,
                generator=generator, **tiny_flows.UNGUIDED[type(pipeline).__name__],
            )  # fmt: skip
        return time.perf_counter() - started

    return run


def native(engine, name: str, requests: int):
    """Return a function: seconds for the same pictures, asked for at once."""
    turn = iter(range(10**6))

    def run() -> float:
        base = 1000 * next(turn)  # fresh seeds: the result cache must not answer
        started = time.perf_counter()
        jobs = [
            engine.submit(
                GenerationRequest(
                    model=name, prompt=PROMPTS[k % len(PROMPTS)], seed=base + k, width=SIDE,
                    height=SIDE, num_inference_steps=STEPS, guidance_scale=1.0,
                )
            )
            for k in range(requests)
        ]  # fmt: skip
        for job in jobs:
            job.result(timeout_s=3600)
        return time.perf_counter() - started

    return run


def main() -> None:
    asked = [int(argument) for argument in sys.argv[1:3]]
    rounds, requests = (*asked, *(3, 8)[len(asked) :])
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for name in tiny_flows.BUILDERS:
        pipeline = tiny.build(name)
        with (
            tempfile.TemporaryDirectory() as home,
            Engine(
                [from_pipeline(pipeline, name=name)], home=home, engine=NO_CACHE, backend="torch"
            ) as engine,
        ):
            seconds = interleave(
                {
                    "serial": serial(pipeline, requests),
                    "native": native(engine, name, requests),
                },
                rounds,
            )
        found[name] = ratios(seconds["native"], seconds["serial"])
        print(f"{name:14} {found[name]}", flush=True)
    write(
        "families",
        {"command": f"python bench/families.py {rounds} {requests}", "times serial": found},
    )


if __name__ == "__main__":
    main()
