"""Families: mixed prompts in one native batch beside diffusers' pipeline one by one.

    python bench/families.py [ROUNDS [REQUESTS [FAMILY ...]]]

Tiny to middling networks with random weights, made in the process, on torch in float32 with
one thread: what is compared is the batch, not a backend. Prompts have four lengths; requests
are exact, so calls are of certified sizes.
"""

import os
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
FAMILIES = ("sd1", "sdxl", "sd3", "flux", *tiny_flows.BUILDERS)
PROMPTS = ("a leaf", "a red apple on the table", "two blue cats beside a big leaf " * 2, "a " * 60)

UNBINNED = {"guidance_scale": 1.0, **tiny_flows.UNBINNED}
UNGUIDED = {
    "PixArtAlphaPipeline": UNBINNED,
    "PixArtSigmaPipeline": UNBINNED,
    "QwenImage21Pipeline": {"true_cfg_scale": 1.0},
    "QwenImagePipeline": {"true_cfg_scale": 1.0},
    "SanaPipeline": UNBINNED,
    "ZImagePipeline": {"guidance_scale": 0.0},
}
"""What pipelines call drawing without guidance, where it is not a scale of 1."""


def serial(pipeline, requests: int):
    """Return a function: seconds for so many pictures of the pipeline, one after the other."""
    unguided = UNGUIDED.get(type(pipeline).__name__, {"guidance_scale": 1.0})

    def run() -> float:
        started = time.perf_counter()
        for k in range(requests):
            generator = torch.Generator().manual_seed(k)
            pipeline(
                prompt=PROMPTS[k % len(PROMPTS)], width=SIDE, height=SIDE,
                num_inference_steps=STEPS, generator=generator, **unguided,
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
    families = sys.argv[3:] or FAMILIES
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {}
    for name in families:
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
    if sys.argv[3:]:  # a part of the table is none
        return
    command = f"mezzotint bench families {rounds} {requests}"
    load = f"load of the machine {os.getloadavg()[0]:.1f}"
    write("families", {"command": command, "load": load, "times serial": found})


if __name__ == "__main__":
    main()
