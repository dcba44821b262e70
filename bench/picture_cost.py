"""Picture cost: where the core-microseconds of a picture of ``plate-gan`` go, stage by stage.

Each stage is called on its own in one thread; what counts is the processor's time, the
fastest of several repetitions, so that other work on the machine shows as little as it can.
What is not listed (waking threads, event loops, HTTP's own parsing) is what ``bench serve``
counts beyond the sum.
"""

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bench._report import write
from PIL import Image

from mezzotint.engine.state import ImageId
from mezzotint.images.codec import encode, to_pixels
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.plain import read
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.torchserve_requests import to_request
from mezzotint.service.composition import ServiceConfig
from mezzotint.service.finishing.pictures import Finisher
from mezzotint.service.local import LocalService
from mezzotint.types import StageTimings

MODEL = "plate-gan"
ROWS = (1, 2, 4, 8, 16)


def fastest(work: Callable[[], Any], count: int, clock: Callable[[], float]) -> float:
    """Return microseconds of one call: the fastest of several repetitions of many."""
    work()
    best = float("inf")
    for _ in range(9):
        began = clock()
        for _ in range(count):
            work()
        best = min(best, (clock() - began) / count)
    return round(best * 1e6, 1)


def stages(service: LocalService, count: int) -> dict[str, float]:
    """Time what is done for each picture beside its network."""
    seeds = iter(range(1, 1 << 30))

    def asked() -> GenerationRequest:
        return GenerationRequest.from_dict(
            {"model": MODEL, "seed": next(seeds), "output": {"format": "jpeg", "quality": 95}}
        )

    def hear(_event: Any) -> None:
        return None

    request = asked()
    prepare = service._preparer.prepare
    one = prepare(request, hear, request_id="cost").planned.plans[0]
    finisher = Finisher(environment=service.environment, program="mezzotint")
    picture = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64)).astype(np.float32)
    pixels = to_pixels(picture)
    image = ImageId("cost")

    def fill() -> None:
        service._runner.encode(image, one, {})
        service._runner.release(image)

    def finish() -> None:
        finisher.finish(
            pixels, request=request, plan=one.with_seed(next(seeds)), index=0,
            timings=StageTimings(), warnings=(),
        )  # fmt: skip

    spec, abilities = service.provider.spec(MODEL), service._preparer.abilities()
    work: dict[str, Callable[[], Any]] = {
        "read TorchServe's body": lambda: to_request(
            MODEL, {"number_of_images": 1, "seed": next(seeds)}
        ),
        "read the request": asked,
        "write the request for the worker": request.canonical,
        "plan, as a first of its kind": lambda: plan(asked(), spec, abilities).plans[0].digest,
        "prepare, another seed": lambda: prepare(asked(), hear, request_id="cost"),
        "digest": lambda: one.with_seed(next(seeds)).digest,
        "noise, conditioning, slot": fill,
        "round to 8 bits": lambda: to_pixels(picture),
        "recipe": lambda: finisher.recipes.write(request, one.with_seed(next(seeds))),
        "JPEG": lambda: encode(pixels, "jpeg", quality=95),
        "PNG": lambda: encode(pixels, "png"),
        "Pillow's JPEG alone": lambda: Image.fromarray(pixels).save(
            io.BytesIO(), "JPEG", quality=95, subsampling=0
        ),
        "recipe, JPEG, result": finish,
    }
    return {name: fastest(call, count, time.thread_time) for name, call in work.items()}


def network(service: LocalService, count: int) -> dict[str, float]:
    """Time the network by rows of a call, in core-microseconds of all threads for each row."""
    found: dict[str, float] = {}
    with contextlib.ExitStack() as pin, torch.no_grad():
        model = pin.enter_context(service.provider.use(MODEL))
        size = model.spec.latent_channels
        for rows in ROWS:
            latents = torch.randn(rows, size, generator=torch.Generator().manual_seed(rows))
            conditioning = Conditioning.stack(model.encode([Prompt()]) * rows)
            calls = max(count // 10 // rows, 2)
            spent = fastest(
                lambda x=latents, c=conditioning: model.decode(x, c), calls, time.process_time
            )
            found[str(rows)] = round(spent / rows, 1)
    return found


def main() -> None:
    """Run and write ``bench/results/picture-cost.json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    service = LocalService(read(ServiceConfig, {"ready": [MODEL]}), interruptible=False)
    while service._warm_up.waiting:
        time.sleep(0.1)
    report = {
        "command": "mezzotint bench picture-cost",
        "core_us_by_stage": stages(service, given.count),
        "core_us_of_the_network_for_each_row_by_rows_of_a_call": network(service, given.count),
    }
    service.shut()
    write("picture-cost", report)


if __name__ == "__main__":
    main()
