"""Look at what the text-to-picture model draws, and measure it.

Usage: ``python evaluate.py DATA MODEL OUT [--captions 200]``. Draws the prompts in
`PROMPTS` to ``OUT/sheet.png``, seeds 0, 1, 2 ... as they come, and measures on
drawn captions:

- nearest: whether the closest of all learnt pictures (mean squared difference at
  32 px, plain on white) carries the asked label, first and among ten;
- group: whether it is of the asked group;
- background: whether the border's median colour is nearest to the asked one.

The closest-picture test is strict about looks and blind to meaning: "a cat" drawn
as another cat counts as wrong.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from captions import with_article
from compose import BACKGROUNDS, COLOURS, Composition, compose
from data import is_depictable
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw

PROMPTS = (
    "a red apple with a green leaf",
    "a cat face",
    "a slice of pizza",
    "a yellow sun",
    "a house",
    "a red car",
    "a red rose",
    "a strawberry",
    "a blue fish",
    "a banana on a blue background",
    "two red apples",
    "three green trees",
    "a small red heart in the top left corner",
    "a flat red apple on a yellow background",
    "a smiley with sunglasses",
    "a cup of coffee",
    "a rocket",
    "a mushroom on a pink background",
    "a dog",
    "a birthday cake with candles",
    "a blue heart",
    "a guitar",
    "a penguin on a light blue background",
    "two cherries with a green leaf",
)
COLUMNS = 6


def draw(
    pipe: DiffusionPipeline, prompts: list[str], *, steps: int, scale: float
) -> NDArray[np.uint8]:
    """Draw one picture a prompt, picture i from seed i. Shape (N, 128, 128, 3)."""
    pictures = []
    for start in range(0, len(prompts), 12):
        part = prompts[start : start + 12]
        generators = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        output = pipe(
            part,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=generators,
            output_type="np",
        ).images
        pictures.append((output * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def save_sheet(pictures: NDArray[np.uint8], names: list[str], path: Path) -> None:
    """Save pictures in rows with their prompts underneath."""
    cell, line = pictures.shape[1] + 4, 14
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell, rows * (cell + line)), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        left, top = (i % COLUMNS) * cell, (i // COLUMNS) * (cell + line)
        sheet.paste(Image.fromarray(picture), (left + 2, top + 2))
        pen.text((left + 2, top + cell), name[:24], fill="black")
    sheet.save(path)


def shrink(pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Average over 4 px squares and flatten. Shape (N, 3072)."""
    count, side = len(pictures), pictures.shape[1] // 4
    small = pictures.reshape(count, side, 4, side, 4, 3).astype(np.float32).mean(axis=(2, 4))
    return small.reshape(count, -1) / 255


def measure(data: Path, pipe: DiffusionPipeline, count: int, **options: float) -> dict[str, float]:
    """Measure on ``count`` labels drawn plain and as many on coloured backgrounds."""
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    entries = json.loads((data / "pictures.json").read_text("utf-8"))
    learnt = [i for i, e in enumerate(entries) if e["style"] == "fluent-3d" and is_depictable(e)]
    rng = np.random.default_rng(7)
    reference = shrink(np.stack([compose(np.asarray(pictures[i]), Composition()) for i in learnt]))
    asked = rng.choice(len(learnt), size=count, replace=False)
    labels = [with_article(entries[learnt[k]]["label"]) for k in asked]
    drawn = shrink(draw(pipe, labels, **options))
    distances = ((drawn[:, None] - reference[None]) ** 2).mean(axis=2)
    order = distances.argsort(axis=1)
    groups = np.array([entries[i]["group"] for i in learnt])

    colours = [str(c) for c in rng.choice(COLOURS, size=count)]
    prompts = [
        f"{label} on a {colour} background" for label, colour in zip(labels, colours, strict=True)
    ]
    backed = draw(pipe, prompts, **options).astype(np.float32)
    border = backed[:, [0, 1, 2, -3, -2, -1]].reshape(count, -1, 3)
    palette = np.array(list(BACKGROUNDS.values()), dtype=np.float32)
    nearest = ((np.median(border, axis=1)[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)
    right = [list(BACKGROUNDS)[n] == c for n, c in zip(nearest, colours, strict=True)]
    return {
        "captions": count,
        "nearest_first": float((order[:, 0] == asked).mean()),
        "nearest_among_ten": float((order[:, :10] == asked[:, None]).any(axis=1).mean()),
        "nearest_group": float((groups[order[:, 0]] == groups[asked]).mean()),
        "background": float(np.mean(right)),
        "rms_to_nearest": float(np.sqrt(distances.min(axis=1)).mean()),
    }


def main() -> None:
    """Draw the sheet and, when asked to, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    parser.add_argument("model", type=Path, help="exported folder")
    parser.add_argument("out", type=Path, help="folder for the sheet and the figures")
    parser.add_argument("--captions", type=int, default=0, help="how many labels to measure on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=4.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipe = DiffusionPipeline.from_pretrained(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    options = {"steps": arguments.steps, "scale": arguments.scale}
    save_sheet(draw(pipe, list(PROMPTS), **options), list(PROMPTS), arguments.out / "sheet.png")
    if arguments.captions:
        figures = measure(arguments.data, pipe, arguments.captions, **options)
        print(json.dumps(figures, indent=2))
        (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2), "utf-8")


if __name__ == "__main__":
    main()
