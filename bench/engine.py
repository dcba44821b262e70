"""The engine beside plain diffusers on the same weights: throughput and short requests under load.

    mezzotint bench engine [--images 16] [--rounds 5]

Peers: (a) serial: one diffusers pipeline behind one lock; (b) static: the same pipeline
with batches of equal requests. All draw ``plate`` at its own size, in float32. The GAN's
peer is a traced TorchScript module called once per request. Short requests are timed
under a Poisson stream of short and long ones at 0.8 of what (a) can do. A peer that
batches dynamically behind HTTP (LitServe) is in ``mezzotint bench goodput``.
"""

import argparse
import os
import threading
import time

from bench._report import NO_CACHE, interleave, ratios, write

STEPS, SCALE = 20, 5.0
WORDS = ("a red apple", "a yellow sun", "a house", "a fish", "a red car", "a green tree", "a rose")


def prompts(count: int) -> list[str]:
    return [WORDS[k % len(WORDS)] for k in range(count)]


def diffusers_peers(images: int, batch: int):
    """Return (serial, static): seconds for so many pictures; and how they draw."""
    import torch
    from diffusers import DiffusionPipeline

    from mezzotint.models.store.store import ModelStore

    path = ModelStore().entry("plate").path
    pipeline = DiffusionPipeline.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    lock = threading.Lock()

    def draw(texts, seeds, steps=STEPS):
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        with lock:
            pipeline(
                list(texts), num_inference_steps=steps, guidance_scale=SCALE, generator=generators
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

    return serial, static, draw


def our_engine(engine, images: int, *, mixed: bool, tier: str = "exact"):
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
                        reproducibility=tier,
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


def gan_peers(engine, images: int):
    """Return (TorchScript per request, ours): seconds for so many pictures of plate-gan."""
    import io

    import torch
    from PIL import Image

    import mezzotint as mz
    from mezzotint.models.store.store import ModelStore

    model = ModelStore().load("plate-gan")
    module = getattr(model.networks["decoder"], "source", model.networks["decoder"]).module
    size = model.config.latent_size
    labels = torch.zeros(1, dtype=torch.int64) if model.config.num_classes else None
    example = (torch.randn(1, size),) if labels is None else (torch.randn(1, size), labels)
    traced = torch.jit.freeze(torch.jit.trace(module, example))
    turn = iter(range(10**6))

    def scripted() -> float:
        started = time.perf_counter()
        for k in range(images):
            noise = torch.randn(1, size, generator=torch.Generator().manual_seed(k))
            with torch.no_grad():
                picture = traced(noise, *example[1:])[0]
            levels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(levels.squeeze()).save(io.BytesIO(), "PNG")
        return time.perf_counter() - started

    def ours() -> float:
        base = 1000 * next(turn)
        started = time.perf_counter()
        jobs = [
            engine.submit(mz.GenerationRequest(model="plate-gan", seed=base + k))
            for k in range(images)
        ]
        for job in jobs:
            job.result(timeout_s=600)
        return time.perf_counter() - started

    def one_request() -> float:
        base = 1000 * next(turn)
        started = time.perf_counter()
        for k in range(0, images, 64):
            count = min(64, images - k)
            request = mz.GenerationRequest(model="plate-gan", seed=base + k, num_images=count)
            engine.submit(request).result(timeout_s=600)
        return time.perf_counter() - started

    return scripted, ours, one_request


def under_load(draw_short, draw_long, *, rate: float, count: int, seed: int) -> list[float]:
    """Replay a Poisson stream, one thread per request; return the seconds of short ones."""
    import random

    rng = random.Random(seed)
    moments, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        moments.append((now, rng.random() < 0.6))
    seconds: list[float] = []
    began = time.perf_counter()

    def arrive(at: float, is_short: bool, number: int) -> None:
        time.sleep(max(began + at - time.perf_counter(), 0))
        started = time.perf_counter()
        (draw_short if is_short else draw_long)(number)
        if is_short:
            seconds.append(time.perf_counter() - started)

    threads = [
        threading.Thread(target=arrive, args=(at, is_short, k))
        for k, (at, is_short) in enumerate(moments)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def poisson(engine, draw, *, count: int, rounds: int) -> dict[str, object]:
    """Compare the 95th percentile of short requests, theirs behind one lock, ours not."""
    import mezzotint as mz

    def ours(steps: int):
        def run(number: int) -> None:
            request = mz.GenerationRequest(
                prompt=WORDS[number % len(WORDS)],
                seed=next(seeds),
                num_inference_steps=steps,
                guidance_scale=SCALE,
            )
            engine.submit(request, client=str(number)).result(timeout_s=3600)

        return run

    seeds = iter(range(10**6, 10**7))
    short, long = 4, 40
    started = time.perf_counter()
    for steps in (short, short, short, long, long):
        draw(["a fish"], [1], steps)
    capacity = 5 / (time.perf_counter() - started)
    found: dict[str, list[float]] = {"theirs": [], "ours": []}
    for turn in range(rounds):
        for name, (fast, slow) in {
            "theirs": (
                lambda k: draw(["a fish"], [k], short),
                lambda k: draw(["a fish"], [k], long),
            ),
            "ours": (ours(short), ours(long)),
        }.items():
            times = sorted(under_load(fast, slow, rate=0.8 * capacity, count=count, seed=turn))
            found[name].append(times[min(int(0.95 * len(times)), len(times) - 1)])
    return {"p95 of short requests, serial over engine": ratios(found["ours"], found["theirs"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--gan-images", type=int, default=256)
    parser.add_argument("--arrivals", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    import mezzotint as mz

    serial, static, draw = diffusers_peers(options.images, options.batch)
    with mz.Engine(models=["plate", "plate-gan"], engine=NO_CACHE) as engine:
        contenders = {
            "serial diffusers": serial,
            "static batches of diffusers": static,
            "engine, equal requests": our_engine(engine, options.images, mixed=False),
            "engine, mixed requests": our_engine(engine, options.images, mixed=True),
            "engine, turbo": our_engine(engine, options.images, mixed=False, tier="turbo"),
        }
        seconds = interleave(contenders, options.rounds)
        fairness = short_beside_long(engine)
        scripted, separate, together = gan_peers(engine, options.gan_images)
        gan = interleave(
            {"TorchScript": scripted, "requests": separate, "one request": together},
            options.rounds,
        )
        load = poisson(engine, draw, count=options.arrivals, rounds=max(options.rounds // 2, 1))
    ours = seconds["engine, equal requests"]
    result = {
        "what": f"{options.images} pictures of plate, {STEPS} steps, guidance {SCALE}, exact",
        "command": f"mezzotint bench engine --images {options.images} --rounds {options.rounds}",
        "rounds": options.rounds,
        "engine equal over serial": ratios(ours, seconds["serial diffusers"]),
        "engine equal over static": ratios(ours, seconds["static batches of diffusers"]),
        "engine mixed over serial": ratios(
            seconds["engine, mixed requests"], seconds["serial diffusers"]
        ),
        "engine turbo over serial": ratios(seconds["engine, turbo"], seconds["serial diffusers"]),
        "GAN requests over TorchScript": ratios(gan["requests"], gan["TorchScript"]),
        "GAN pictures of one request over TorchScript": ratios(
            gan["one request"], gan["TorchScript"]
        ),
        **load,
        **fairness,
        "load of the machine": os.getloadavg()[1],
    }
    write("engine", result)


if __name__ == "__main__":
    main()
