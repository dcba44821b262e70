"""The engine beside plain diffusers on the same weights: throughput and short requests under load.

    mezzotint bench engine [--images 16] [--rounds 5]

Peers: (a) serial: one diffusers pipeline behind one lock; (b) static: the same pipeline
with batches of equal requests. All draw ``plate`` at its own size, in float32.
"""

import argparse
import threading
import time

from bench._report import interleave, ratios, write

STEPS, SCALE = 20, 5.0
WORDS = ("a red apple", "a yellow sun", "a house", "a fish", "a red car", "a green tree", "a rose")


def prompts(count: int) -> list[str]:
    return [WORDS[k % len(WORDS)] for k in range(count)]


def diffusers_peers(images: int, batch: int):
    """Return (serial, static): seconds for so many pictures."""
    import torch
    from diffusers import DiffusionPipeline

    from mezzotint.models.store import ModelStore

    path = ModelStore().entry("plate").path
    pipeline = DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    lock = threading.Lock()

    def draw(texts, seeds):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        with lock:
            pipeline(
                list(texts), num_inference_steps=STEPS, guidance_scale=SCALE, generator=generators
            )

    def serial() -> float:
        started = time.perf_counter()
        for k, text in enumerate(prompts(images)):
            draw([text], [k])
        return time.perf_counter() - started

    def static() -> float:
        started = time.perf_counter()
        texts = prompts(images)
        for k in range(0, images, batch):
            draw(texts[k : k + batch], range(k, min(k + batch, images)))
        return time.perf_counter() - started

    return serial, static


def our_engine(engine, images: int, *, mixed: bool):
    """Return a function: seconds for so many pictures, equal or mixed requests."""
    import mezzotint as mz

    turn = iter(range(10**6))

    def run() -> float:
        base = 1000 * next(turn)  # fresh seeds: the result cache must not answer
        started = time.perf_counter()
        jobs = []
        for k, text in enumerate(prompts(images)):
            steps = (STEPS - 8, STEPS, STEPS + 8)[k % 3] if mixed else STEPS
            scheduler = ("euler", "dpmpp_2m", "heun", "ddim")[k % 4] if mixed else None
            if scheduler == "heun":
                steps = steps // 2
            jobs.append(
                engine.submit(
                    mz.GenerationRequest(
                        prompt=text,
                        seed=base + k,
                        num_inference_steps=steps,
                        guidance_scale=SCALE,
                        scheduler=scheduler,
                    )
                )
            )
        for job in jobs:
            job.result(timeout_s=3600)
        return time.perf_counter() - started

    return run


def short_beside_long(engine) -> dict[str, float]:
    """Time a 4-step request alone and while a 50-step one runs."""
    import mezzotint as mz

    def short(seed: int) -> float:
        started = time.perf_counter()
        request = mz.GenerationRequest(prompt="a fish", seed=seed, num_inference_steps=4)
        engine.submit(request).result(timeout_s=600)
        return time.perf_counter() - started

    alone = sorted(short(50_000 + k) for k in range(5))[2]
    beside = []
    for k in range(5):
        long = engine.submit(
            mz.GenerationRequest(prompt="a house", seed=60_000 + k, num_inference_steps=200)
        )
        time.sleep(0.3)
        beside.append(short(70_000 + k))
        long.cancel()
    return {"short beside long / short alone": round(sorted(beside)[2] / alone, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    import mezzotint as mz

    serial, static = diffusers_peers(options.images, options.batch)
    with mz.Engine(models=["plate"]) as engine:
        contenders = {
            "serial diffusers": serial,
            "static batches of diffusers": static,
            "engine, equal requests": our_engine(engine, options.images, mixed=False),
            "engine, mixed requests": our_engine(engine, options.images, mixed=True),
        }
        seconds = interleave(contenders, options.rounds)
        fairness = short_beside_long(engine)
    ours = seconds["engine, equal requests"]
    result = {
        "what": f"{options.images} pictures of plate, {STEPS} steps, guidance {SCALE}, exact",
        "rounds": options.rounds,
        "engine equal over serial": ratios(ours, seconds["serial diffusers"]),
        "engine equal over static": ratios(ours, seconds["static batches of diffusers"]),
        "engine mixed over serial": ratios(
            seconds["engine, mixed requests"], seconds["serial diffusers"]
        ),
        **fairness,
    }
    write("engine", result)


if __name__ == "__main__":
    main()
