"""Draw every picture of the technique pages: docs/pictures/techniques/*.png.

Each picture is a table entry: the commands that a reader can type, and how their
pictures are laid out. Run it again after the built-in model has changed:

    python examples/technique_sheets.py [NAME ...]
"""

import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

from mezzotint.images.animation import decode_frames
from mezzotint.images.preprocess import preprocess
from mezzotint.images.sheets import make_sheet

PROGRAM = str(Path(sys.executable).with_name("mezzotint"))
TARGET = Path(__file__).parent.parent / "docs" / "pictures" / "techniques"
BASE = 'generate "a red apple" --seed 7'
PREPARED = ("canny:40:80", "threshold:200", "blur:4", "tile:8", "invert")
CAKE = 'generate "a birthday cake with candles" --seed 5'


@dataclass(frozen=True)
class Sheet:
    """Commands whose pictures stand side by side; ``{name}`` is an earlier picture's file."""

    commands: dict[str, str]
    columns: int | None = None


SHEETS = {
    "guidance": Sheet(
        {
            "constant": f"{CAKE} --guidance-scale 5",
            "linear": f"{CAKE} --guidance-scale linear:8:1",
            "cosine": f"{CAKE} --guidance-scale cosine:8:1",
            "interval": f"{CAKE} --guidance-scale interval:6:0.2:0.8",
        }
    ),
    "walks": Sheet(
        {"walk": f'{BASE} --walk-to "a blue heart" --frames 6 --animate apng -o {{out}}.apng'},
        columns=6,
    ),
    "regions": Sheet(
        {
            "plain": 'generate "two apples" --seed 3',
            "two": 'generate "two apples" --seed 3 --region "two red apples@0,0,0.5,1" '
            '--region "two green apples@0.5,0,1,1"',
        }
    ),
    "ensembles": Sheet(
        {
            "plate": 'generate "a house" --seed 7',
            "plate-quick": 'generate "a house" --seed 7 --model plate-quick',
            "both": 'generate "a house" --seed 7 --guidance-scale 1 '
            "--ensemble plate:1 --ensemble plate-quick:1",
            "halves": 'generate "a house" --seed 7 --guidance-scale 1 '
            '--ensemble plate --ensemble "plate-quick;box=0.5,0,1,1"',
        }
    ),
    "image-to-image": Sheet(
        {
            "start": BASE,
            "weak": 'generate "a green apple" --seed 7 --image {start} --strength 0.4',
            "strong": 'generate "a green apple" --seed 7 --image {start} --strength 0.8',
        }
    ),
    "inpainting": Sheet(
        {
            "start": BASE,
            "painted": 'generate "a yellow sun" --seed 9 --image {start} --mask {mask} '
            "--strength 0.9 --inpaint fill=surroundings,paste",
            "wider": 'generate "a red apple" --seed 9 --image {start} --outpaint 0,0,32,0',
        }
    ),
    "variations": Sheet(
        {
            "0": BASE,
            "0.15": f"{BASE} --variation 99:0.15",
            "0.3": f"{BASE} --variation 99:0.3",
            "1": f"{BASE} --variation 99:1",
        }
    ),
    "hires": Sheet(
        {
            "one": f"{BASE} --upscale 1.5",
            "two": f"{BASE} --hires 1.5:lanczos:0.15",
        }
    ),
    "upscaling": Sheet(
        {
            "lanczos": f"{BASE} --upscale 4",
            "real-esrgan": f"{BASE} --upscale 4:real-esrgan",
        }
    ),
    "tiling": Sheet({"tile": 'generate "strawberries on a green background" --seed 4 --tiling'}),
    "gates": Sheet({"best": f"{BASE} --gate quality --max-attempts 4 --keep best"}),
    "prompt-dialects": Sheet(
        {
            "plain": BASE,
            "heavier": 'generate "a (red:1.5) apple" --seed 7 --prompt-dialect a1111',
            "edited": 'generate "a [red:green:0.5] apple" --seed 7 --prompt-dialect a1111',
        }
    ),
    "controlnet": Sheet({"picture": CAKE}),
    "textual-inversion": Sheet(
        {
            "apple": 'generate "a red apple" --seed 7',
            "both": 'generate "a red <appleheart>" --seed 7 --embedding appleheart',
            "heart": 'generate "a red heart" --seed 7',
        }
    ),
    "laboratory": Sheet({"lab": "lab --samples 64 -o {out}.png"}),
    "grids": Sheet({"grid": f"{BASE} --grid-x guidance_scale=1,4,8 --grid-y seed=1,2"}),
}


def main(names: list[str]) -> None:
    """Draw all sheets, or those that are named."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in names or SHEETS:
        with tempfile.TemporaryDirectory() as folder:
            target = TARGET / f"{name}.png"
            Image.fromarray(draw(SHEETS[name], Path(folder), name)).save(target, optimize=True)
            print(target)


def draw(sheet: Sheet, folder: Path, name: str) -> np.ndarray:
    """Run the commands of a sheet and lay their pictures out."""
    drawn = {"mask": folder / "mask.png"}
    if name == "textual-inversion":
        write_word(folder / "embeddings" / "appleheart.safetensors", "apple", "heart")
    disc = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 20
    Image.fromarray(disc.astype(np.uint8) * 255).save(drawn["mask"])
    pictures: list[np.ndarray] = []
    for key, command in sheet.commands.items():
        out = folder / key
        words = [w.format(out=out, **drawn) for w in shlex.split(command)]
        if not any(w in ("-o", "--output") for w in words):
            words += ["-o", f"{out}.png"]
        home = {"MEZZOTINT_HOME": str(folder)} if name == "textual-inversion" else {}
        subprocess.run([PROGRAM, *words], check=True, env={**os.environ, **home})
        drawn[key] = Path(words[words.index("-o") + 1])
        pictures += decode_frames(drawn[key].read_bytes())
    if name == "tiling":
        pictures = [np.tile(picture, (2, 2, 1)) for picture in pictures]
    if name == "controlnet":
        pictures += [preprocess(pictures[0], text) for text in PREPARED]
    return (
        side_by_side(pictures)
        if sheet.columns is None
        else make_sheet(pictures, columns=sheet.columns)
    )


def write_word(path: Path, *words: str) -> None:
    """Write a word that means what lies between others: a textual inversion without training."""
    folder = Path(str(files("mezzotint"))) / "models" / "builtin" / "plate"
    ids = {w: k for k, w in enumerate((folder / "tokenizer/vocab.txt").read_text().split("\n"))}
    vectors = load_file(folder / "text_encoder/model.safetensors")[
        "embeddings.word_embeddings.weight"
    ].astype(np.float32)
    path.parent.mkdir(parents=True)
    between = np.mean([vectors[ids[word]] for word in words], axis=0, keepdims=True)
    save_file({f"<{path.stem}>": between}, path)


def side_by_side(pictures: list[np.ndarray]) -> np.ndarray:
    """Lay pictures of any heights beside each other on white."""
    height = max(picture.shape[0] for picture in pictures)
    padded = [
        np.pad(p, ((0, height - p.shape[0]), (0, 4), (0, 0)), constant_values=255) for p in pictures
    ]
    return np.concatenate(padded, axis=1)[:, :-4]


if __name__ == "__main__":
    main(sys.argv[1:])
