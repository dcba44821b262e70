"""Twenty pictures in a style that the text-to-picture model has never seen, and a sheet of it.

Usage::

    python style.py pictures DATA OUT      # 20 pictures with captions, as a folder to train on
    python style.py redraw OUT --style ink # the same of 40 pictures that the model draws itself
    mezzotint train style.toml             # the LoRA
    python style.py sheet RUN SHEET.png    # the same captions and seeds before and after
    python style.py half RUN FILE          # the LoRA in half precision
    python style.py styles SHEET.png       # the two that ship

The style is a cyanotype: the old blueprint process, white and pale blue on Prussian blue.
``--style neon`` makes outlines that glow in the colours of the thing, in the dark. The
captions do not name a style, so that the LoRA alone decides: with it everything is drawn that
way, and by its scale more or less so. Subjects of the sheet are not among the twenty.

``redraw`` needs no DATA: the model draws the subjects, and ``ink`` makes dark lines on paper of
them, ``pastel`` pale chalk. These two ship with the program (``ink.toml``, ``pastel.toml``).
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
INK, PAPER, CREAM = (28, 26, 40), (250, 247, 238), (253, 246, 232)
LUMA = np.array([0.299, 0.587, 0.114])


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


def ink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw a picture (128, 128, 3) in ink: lines at its edges, a wash where it is dark."""
    from PIL import Image, ImageFilter

    soft = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.7))) / 255
    away = _away(soft)
    slopes = np.stack([np.hypot(*np.gradient(soft[..., c])) for c in range(3)]).max(axis=0)
    lines = np.clip(slopes * 9 - 0.45, 0, 1)
    light = soft @ LUMA
    wash = np.where(light < 0.35, 0.45, np.where(light < 0.6, 0.18, 0.0)) * (away > 0.12)
    tone = np.maximum(lines, wash)[..., None]
    return (np.array(PAPER) * (1 - tone) + np.array(INK) * tone).round().astype(np.uint8)


def pastel(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw a picture (128, 128, 3) in pale chalk on a cream sheet, its edges rubbed."""
    from PIL import Image, ImageFilter

    soft = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(1.2))) / 255
    away = _away(soft)
    grey = (soft @ LUMA)[..., None]
    pale = 0.5 + 0.5 * (0.35 * grey + 0.65 * soft)
    cover = np.clip((away - 0.05) / 0.15, 0, 1)[..., None]
    sheet = np.array(CREAM) / 255
    return ((sheet * (1 - cover) + pale * cover) * 255).round().astype(np.uint8)


def _away(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far each pixel is from the background, the border's median. Shape (128, 128)."""
    border = np.concatenate([colours[:4].reshape(-1, 3), colours[-4:].reshape(-1, 3)])
    return np.abs(colours - np.median(border, axis=0)).max(axis=2)


OWN_STYLES = {"ink": ink, "pastel": pastel}


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


def redraw(out: Path, *, style: str, model: str) -> None:
    """Have the model draw `LEARNT` twice, and write it in a style with ``metadata.jsonl``."""
    from captions import with_article
    from PIL import Image

    import mezzotint as mz

    out.mkdir(parents=True, exist_ok=True)
    lines = []
    with mz.Engine(models=[model]) as engine:
        for k, label in enumerate((*LEARNT, *LEARNT)):
            request = mz.GenerationRequest(model=model, prompt=with_article(label), seed=1000 + k)
            drawn = np.asarray(engine.submit(request).result(timeout_s=600).images[0].pixels)
            name = f"{label.replace(' ', '-')}-{k // len(LEARNT)}.png"
            Image.fromarray(OWN_STYLES[style](drawn)).save(out / name)
            lines.append(json.dumps({"file_name": name, "text": with_article(label)}))
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(lines)} pictures in {out}")


def halve(run: Path, path: Path) -> None:
    """Write a run's LoRA in half precision, as it ships."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(run / "pytorch_lora_weights.safetensors")
    halved = {key: value.astype(np.float16) for key, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(halved, path, {"format": "pt", "base": "plate"})
    print(f"{path}: {path.stat().st_size / 1e3:.0f} KB")


def write_styles(path: Path, *, model: str) -> None:
    """Draw `SHOWN` without a LoRA, in ink and in pastel, as they ship: one row each."""
    _draw_rows(path, [(), (("plate-ink", 1.0),), (("plate-pastel", 1.0),)], model=model)


def write_sheet(run: Path, path: Path, *, model: str) -> None:
    """Draw `SHOWN` without the LoRA, at half its strength, and with it: one row each."""
    lora = str(run / "pytorch_lora_weights.safetensors")
    _draw_rows(path, [(), ((lora, 0.5),), ((lora, 1.0),)], model=model)


def _draw_rows(path: Path, rows: list[tuple[tuple[str, float], ...]], *, model: str) -> None:
    """Draw `SHOWN` once for each row's LoRAs, caption k from seed k, above the captions."""
    from PIL import Image, ImageDraw

    import mezzotint as mz

    cell, line = 132, 14
    sheet = Image.new("RGB", (len(SHOWN) * cell, len(rows) * cell + line), "white")
    pen = ImageDraw.Draw(sheet)
    with mz.Engine(models=[model]) as engine:
        for row, worn in enumerate(rows):
            loras = tuple(mz.Lora(name=name, scale=scale) for name, scale in worn)
            jobs = [
                engine.submit(mz.GenerationRequest(model=model, prompt=text, seed=k, loras=loras))
                for k, text in enumerate(SHOWN)
            ]
            for column, job in enumerate(jobs):
                picture = Image.fromarray(np.asarray(job.result(timeout_s=600).images[0].pixels))
                sheet.paste(picture, (column * cell + 2, row * cell + 2))
    for column, text in enumerate(SHOWN):
        pen.text((column * cell + 2, len(rows) * cell), text[:24], fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def main() -> None:
    """Do one of the five."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    steps = parser.add_subparsers(dest="step", required=True)
    pictures = steps.add_parser("pictures")
    pictures.add_argument("data", type=Path, help="folder with pictures.npy")
    pictures.add_argument("out", type=Path, help="folder to write")
    pictures.add_argument("--style", choices=tuple(STYLES), default="cyanotype")
    own = steps.add_parser("redraw")
    own.add_argument("out", type=Path, help="folder to write")
    own.add_argument("--style", choices=tuple(OWN_STYLES), default="ink")
    own.add_argument("--model", default="plate", help="the base, a name or a folder")
    sheet = steps.add_parser("sheet")
    sheet.add_argument("run", type=Path, help="run folder of style.toml")
    sheet.add_argument("path", type=Path, help="picture to write")
    sheet.add_argument("--model", default="plate", help="the base, a name or a folder")
    half = steps.add_parser("half")
    half.add_argument("run", type=Path, help="run folder of a LoRA")
    half.add_argument("path", type=Path, help="file to write")
    styles = steps.add_parser("styles")
    styles.add_argument("path", type=Path, help="picture to write")
    styles.add_argument("--model", default="plate", help="the base, a name or a folder")
    arguments = parser.parse_args()
    if arguments.step == "pictures":
        write_pictures(arguments.data, arguments.out, style=arguments.style)
    elif arguments.step == "redraw":
        redraw(arguments.out, style=arguments.style, model=arguments.model)
    elif arguments.step == "half":
        halve(arguments.run, arguments.path)
    elif arguments.step == "styles":
        write_styles(arguments.path, model=arguments.model)
    else:
        write_sheet(arguments.run, arguments.path, model=arguments.model)


if __name__ == "__main__":
    main()
