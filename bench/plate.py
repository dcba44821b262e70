"""What the built-in text-to-picture model draws, beside what was asked, by an independent judge.

    mezzotint bench plate [--model plate] [--steps 20] [--scale 4] [--data DATA] [--run RUN]
    mezzotint bench plate --sweep              the best steps and guidance, 100 captions each
    mezzotint bench plate --quick plate-quick  four steps beside twenty: time and figures

500 captions (`training/plate/bench_captions.json`, drawn as the training draws, with another
seed) become 500 pictures, caption k from seed k, none picked. The judge is
`training/plate/judge.py`, trained apart. With DATA (pictures) and RUN (the training set)
the distance of each picture to the nearest training picture is reported too.

Beside what was asked it reports how far the pictures as a whole are from real ones (Frechet
and kernel distance, in the judge's embedding), and how far eight seeds of one caption are
from one another beside real pictures of the same thing (`training/plate/distances.py`).
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench._report import RESULTS, interleave, ratios, write

TRAINING = Path(__file__).resolve().parents[1] / "training" / "plate"
sys.path.insert(0, str(TRAINING))

NEAR_RMS = 0.02  # root mean square of [0, 1] colours at 32 px; a re-encoded copy is this near


def draw(engine, model: str, captions: list[str], **options: Any) -> np.ndarray:
    """Draw one picture a caption, caption k from seed k. Shape (N, 128, 128, 3), uint8."""
    import mezzotint as mz

    jobs = [
        engine.submit(mz.GenerationRequest(model=model, prompt=caption, seed=k, **options))
        for k, caption in enumerate(captions)
    ]
    return np.stack([np.asarray(job.result(timeout_s=7200).images[0].pixels) for job in jobs])


def draw_seeds(engine, model: str, captions: list[str], each: int, **options: Any):
    """Draw several pictures of each caption. Shape (N, each, 128, 128, 3), uint8."""
    import mezzotint as mz

    jobs = [
        engine.submit(
            mz.GenerationRequest(
                model=model, prompt=caption, seed=10_000 + each * k, num_images=each, **options
            )
        )
        for k, caption in enumerate(captions)
    ]
    return [
        np.stack([np.asarray(image.pixels) for image in job.result(timeout_s=7200).images])
        for job in jobs
    ]


def distances(engine, judge, model: str, pictures: np.ndarray, **options: Any) -> dict[str, Any]:
    """Measure pictures as a whole beside real ones, and how seeds of one caption differ."""
    from distances import SEEDS_EACH, Reference

    reference = Reference()
    captions = list(reference.varied)
    varied = draw_seeds(engine, model, captions, SEEDS_EACH, **options)
    seen = [judge.see(some)[0] for some in varied]
    return {
        "distance to real pictures": reference.score(judge.see(pictures)[0]),
        "between seeds": reference.spread(dict(zip(captions, seen, strict=True))),
    }


def table(values: np.ndarray, at: tuple[int, ...]) -> dict[str, float]:
    """Return how values are spread."""
    found = np.percentile(values, at)
    return {f"{q} %": round(float(v), 4) for q, v in zip(at, found, strict=True)}


def nearest(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the nearest of theirs and which it is, row by row.

    Args:
        ours: Shape (N, D).
        theirs: Shape (M, D).
    """
    squares = (theirs**2).sum(axis=1)
    found, which = [], []
    for row in ours:
        distances = squares - 2 * theirs @ row + (row**2).sum()
        which.append(int(distances.argmin()))
        found.append(max(float(distances.min()), 0.0))
    return np.sqrt(np.array(found)), np.array(which)


def flat(pictures: np.ndarray) -> np.ndarray:
    """Average over squares to 32 px and flatten. Shape (N, 3072), values in [0, 1]."""
    count, times = len(pictures), pictures.shape[1] // 32
    blocks = pictures.reshape(count, 32, times, 32, times, 3).astype(np.float32)
    return blocks.mean(axis=(2, 4)).reshape(count, -1) / 255


def unlearnt(data: Path, items: list[dict[str, Any]], count: int) -> np.ndarray:
    """Compose real pictures of learnt emojis in ways that the training set has not."""
    from compose import Composition, compose
    from evaluator import all_compositions, read_data

    sources, _ = read_data(data)
    known = {(item["picture"], Composition(**item["composition"])) for item in items}
    weights = np.array([item["weight"] for item in items])
    rng = np.random.default_rng(78)
    every, drawn = all_compositions(), []
    while len(drawn) < count:
        picture = items[int(rng.choice(len(items), p=weights / weights.sum()))]["picture"]
        composition = every[int(rng.integers(len(every)))]
        if (picture, composition) not in known:
            drawn.append(compose(np.asarray(sources[picture]), composition))
    return np.stack(drawn)


def memorisation(
    judge, pictures: np.ndarray, asked: list[dict[str, Any]], data: Path, run: Path
) -> dict[str, Any]:
    """Measure how near pictures come to what was learnt, in pixels and in the judge's eyes.

    Real compositions that are not in the training set give the scale: a model that drew
    its emojis perfectly, but in new ways, would lie where they lie. Captions whose very
    composition was learnt are told apart from those that ask for something new.
    """
    from compose import Composition, compose
    from evaluator import read_data, real_pictures
    from judge import shrink

    sources, entries = read_data(data)
    items = json.loads((run / "items.json").read_text("utf-8"))
    captions = set(json.loads((run / "captions.json").read_text("utf-8")))
    small = np.empty((len(items), 64, 64, 3), dtype=np.uint8)
    for k, item in enumerate(items):
        drawn = compose(np.asarray(sources[item["picture"]]), Composition(**item["composition"]))
        small[k] = shrink(drawn[None])[0]
    learnt, seen = flat(small), judge.see(small)[0]
    labels = np.array([entries[item["picture"]]["label"] for item in items])
    exact = nearest(flat(shrink(real_pictures(data, asked))), learnt)[0] < 1e-3
    new = ~exact
    result: dict[str, Any] = {
        "training pictures": len(items),
        "captions that are in the training set": round(
            float(np.mean([a["caption"] in captions for a in asked])), 4
        ),
        "captions whose composition is in the training set": round(float(exact.mean()), 4),
    }
    asked_labels = np.array([a["label"] for a in asked])
    rows = {
        "drawn, composition in the training set": (pictures[exact], asked_labels[exact]),
        "drawn, composition new": (pictures[new], asked_labels[new]),
        "real compositions, new": (unlearnt(data, items, 500), None),
    }
    for name, (some, wanted) in rows.items():
        rms, which = nearest(flat(some), learnt)
        rms = rms / np.sqrt(learnt.shape[1])
        cosine = 1 - nearest(judge.see(some)[0], seen)[0] ** 2 / 2
        result[name] = {
            "pixels, rms to the nearest": table(rms, (1, 5, 50, 95)),
            "judge, cosine to the nearest": table(cosine, (5, 50, 95, 99)),
            f"nearer than {NEAR_RMS} rms": round(float((rms < NEAR_RMS).mean()), 4),
        }
        if wanted is not None:
            right = labels[which] == wanted
            result[name]["the nearest is of the asked emoji"] = round(float(right.mean()), 4)
    return result


def save_sheet(pictures: np.ndarray, asked: list[dict[str, Any]], path: Path) -> None:
    """Save the first 64 pictures with their captions, none picked."""
    from evaluate import save_sheet as save

    save(pictures[:64], [a["caption"] for a in asked[:64]], path)


def sweep(judge, model: str, asked: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Measure steps and guidance on the first captions, in bfloat16 batches: quick, not exact.

    Each is still to be told from all the others.
    """
    import torch
    from diffusers import DiffusionPipeline
    from evaluate import draw as draw_batches

    from mezzotint.models.store.store import ModelStore

    pipeline = DiffusionPipeline.from_pretrained(ModelStore().entry(model).path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    captions, rows = [a["caption"] for a in asked], []
    some = asked[:count]
    cells = [(20, g) for g in (2.0, 3.0, 4.0, 5.0, 6.0, 7.5)] + [(s, 4.0) for s in (8, 12, 30)]
    for steps, scale in cells:
        started = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            pictures = draw_batches(pipeline, captions[:count], steps=steps, scale=scale)
        found = judge.score(pictures, some, among=captions)
        keys = ("top_1", "top_10", "group", "background_asked_by_colour", "counts_balanced")
        rows.append({"steps": steps, "guidance": scale, **{k: found[k] for k in keys}})
        print(rows[-1], f"{time.perf_counter() - started:.0f} s", flush=True)
    return rows


def quick(engine, judge, model: str, fast: str, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Time four steps beside twenty, and measure what four steps draw."""
    import mezzotint as mz

    seeds = iter(range(10**6, 10**7))

    def one(name: str, **options: Any):
        def run() -> float:
            started = time.perf_counter()
            for caption in [a["caption"] for a in asked[:8]]:
                request = mz.GenerationRequest(
                    model=name, prompt=caption, seed=next(seeds), **options
                )
                engine.submit(request).result(timeout_s=600)
            return time.perf_counter() - started

        return run

    contenders = {"four": one(fast), "twenty": one(model)}
    seconds = interleave(contenders, 5)
    captions = [a["caption"] for a in asked]
    undistilled = draw(engine, model, captions, num_inference_steps=4)
    return {
        "twenty steps over four, one picture at a time": ratios(seconds["four"], seconds["twenty"]),
        f"{fast}, 4 steps": judge.score(draw(engine, fast, captions), asked),
        f"{model}, 4 steps, not distilled": judge.score(undistilled, asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="plate", help="name or folder")
    parser.add_argument("--captions", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--data", type=Path, help="folder with pictures.npy")
    parser.add_argument("--run", type=Path, help="folder with items.json")
    parser.add_argument("--sheet", type=Path, help="where to save the first 64 pictures")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--quick", help="name or folder of the distilled model")
    parser.add_argument("--result", default="plate", help="name of the result file")
    options = parser.parse_args()

    from evaluator import CAPTIONS, check
    from judge import Judge

    import mezzotint as mz

    judge = Judge()
    asked = json.loads(CAPTIONS.read_text("utf-8"))[: options.captions]
    path = RESULTS / f"{options.result}.json"
    result = json.loads(path.read_text("utf-8")) if path.exists() else {}
    result.pop("machine", None)
    if options.sweep:
        result["sweep"] = sweep(judge, options.model, asked, 100)
        write(options.result, result)
        return
    with mz.Engine(models=[options.model]) as engine:
        if options.quick:
            result["four steps"] = quick(engine, judge, options.model, options.quick, asked)
        else:
            how = {"num_inference_steps": options.steps, "guidance_scale": options.scale}
            pictures = draw(engine, options.model, [a["caption"] for a in asked], **how)
            result["what"] = (
                f"{len(asked)} captions, {options.steps} steps, guidance {options.scale}, "
                "seed k for caption k"
            )
            result["drawn"] = judge.score(pictures, asked)
            result |= distances(engine, judge, options.model, pictures, **how)
            if options.sheet:
                save_sheet(pictures, asked, options.sheet)
            if options.data:
                result |= check(options.data)
            if options.data and options.run:
                result["distance to training pictures"] = memorisation(
                    judge, pictures, asked, options.data, options.run
                )
    write(options.result, result)


if __name__ == "__main__":
    main()
