"""Twenty pictures in a style that the text-to-picture model has never seen, and a sheet of it.

Usage::

    python style.py pictures DATA OUT      # 20 pictures with captions, as a folder to train on
    mezzotint train style.toml             # the LoRA
    python style.py sheet RUN SHEET.png    # the same captions and seeds before and after

The style is a cyanotype: the old blueprint process, white and pale blue on Prussian blue.
``--style neon`` makes outlines that glow in the colours of the thing, in the dark. The
captions do not name a style, so that the LoRA alone decides: with it everything is drawn that
way, and by its scale more or less so. Subjects of the sheet are not among the twenty.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEARNT = (
    "red apple", "cat face", "house", "sailboat", "umbrella", "tulip", "fish", "key",
    "mushroom", "rocket", "birthday cake", "guitar", "penguin", "palm tree", "airplane",
    "grapes", "crown", "snail", "teapot", "bicycle",
)  # fmt: skip
SHOWN = (
    "a strawberry", "a red heart", "a dog face", "a cactus", "a slice of pizza", "a butterfly",
    "a yellow sun", "two tomatoes",
)  # fmt: skip
DARK, PALE = (16, 42, 92), (226, 238, 250)  # Prussian blue, paper
TONES = 5
NIGHT = (12, 10, 28)


def cyanotype(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Print a straight-alpha picture (128, 128, 4) as a cyanotype (128, 128, 3).

    Dark is paper, as in a contact print of a drawing; tones are few, outlines are drawn.
    """
    alpha = picture[..., 3] / 255
    grey = picture[..., :3] @ np.array([0.299, 0.587, 0.114]) / 255
    grey = np.where(alpha > 0.02, grey, 1.0)
    low, high = np.percentile(grey[alpha > 0.5], [2, 98])
    light = 0.3 + 0.6 * (grey - low) / max(high - low, 0.05)
    tone = np.round(np.clip(light, 0.3, 0.9) * TONES) / TONES * alpha
    rows, columns = np.gradient(np.where(alpha > 0.5, grey, -0.4))
    edges = np.clip(np.hypot(rows, columns) * 6 - 0.35, 0, 1)
    tone = np.maximum(tone, edges)[..., None]
    return (np.array(DARK) * (1 - tone) + np.array(PALE) * tone).round().astype(np.uint8)


def neon(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw the outlines of a straight-alpha picture (128, 128, 4) as tubes of light in the dark."""
    from PIL import Image, ImageFilter

    alpha = picture[..., 3:] / 255
    colours = picture[..., :3] / 255 * alpha + (1 - alpha) * 0.05
    grey = colours @ np.array([0.299, 0.587, 0.114])
    rows, columns = np.gradient(grey)
    inside, outside = np.gradient(alpha[..., 0])
    edges = np.clip(np.hypot(rows, columns) * 5 + np.hypot(inside, outside) * 2 - 0.25, 0, 1)
    pure = colours - colours.min(axis=2, keepdims=True)
    pure = 0.25 + 0.75 * pure / np.maximum(pure.max(axis=2, keepdims=True), 0.15)
    light = Image.fromarray((edges[..., None] * pure * 255).astype(np.uint8))
    tube = np.asarray(light.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.GaussianBlur(0.8)))
    glow = np.asarray(light.filter(ImageFilter.GaussianBlur(5))) * 1.6
    drawn = np.array(NIGHT) + tube * 1.1 + glow + colours * alpha * 30
    return drawn.round().clip(0, 255).astype(np.uint8)


STYLES = {"cyanotype": cyanotype, "neon": neon}


def write_pictures(data: Path, out: Path, *, style: str = "cyanotype") -> None:
    """Write the twenty pictures and ``metadata.jsonl``."""
    from captions import with_article
    from PIL import Image

    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    entries = json.loads((data / "pictures.json").read_text("utf-8"))
    numbers = {e["label"]: k for k, e in enumerate(entries) if e["style"] == "fluent-3d"}
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for label in LEARNT:
        square = Image.new("RGBa", (128, 128))
        small = Image.fromarray(np.asarray(pictures[numbers[label]])).convert("RGBa")
        square.paste(small.resize((112, 112), Image.Resampling.LANCZOS), (8, 8))
        name = f"{label.replace(' ', '-')}.png"
        Image.fromarray(STYLES[style](np.asarray(square.convert("RGBA")))).save(out / name)
        lines.append(json.dumps({"file_name": name, "text": with_article(label)}))
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(lines)} pictures in {out}")


def write_sheet(run: Path, path: Path, *, model: str) -> None:
    """Draw `SHOWN` without the LoRA, at half its strength, and with it: one row each."""
    from PIL import Image, ImageDraw

    import mezzotint as mz

    lora = str(run / "pytorch_lora_weights.safetensors")
    cell, line = 132, 14
    sheet = Image.new("RGB", (len(SHOWN) * cell, 3 * cell + line), "white")
    pen = ImageDraw.Draw(sheet)
    with mz.Engine(models=[model]) as engine:
        for row, scale in enumerate((0.0, 0.5, 1.0)):
            loras = (mz.Lora(name=lora, scale=scale),) if scale else ()
            jobs = [
                engine.submit(mz.GenerationRequest(model=model, prompt=text, seed=k, loras=loras))
                for k, text in enumerate(SHOWN)
            ]
            for column, job in enumerate(jobs):
                picture = Image.fromarray(np.asarray(job.result(timeout_s=600).images[0].pixels))
                sheet.paste(picture, (column * cell + 2, row * cell + 2))
    for column, text in enumerate(SHOWN):
        pen.text((column * cell + 2, 3 * cell), text[:24], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main() -> None:
    """Do one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    pictures = steps.add_parser("pictures")
    pictures.add_argument("data", type=Path, help="folder with pictures.npy")
    pictures.add_argument("out", type=Path, help="folder to write")
    pictures.add_argument("--style", choices=tuple(STYLES), default="cyanotype")
    sheet = steps.add_parser("sheet")
    sheet.add_argument("run", type=Path, help="run folder of style.toml")
    sheet.add_argument("path", type=Path, help="picture to write")
    sheet.add_argument("--model", default="plate", help="the base, a name or a folder")
    arguments = parser.parse_args()
    if arguments.step == "pictures":
        write_pictures(arguments.data, arguments.out, style=arguments.style)
    else:
        write_sheet(arguments.run, arguments.path, model=arguments.model)


if __name__ == "__main__":
    main()
