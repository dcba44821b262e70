"""Draw the pictures that `plate-gan` learns from, and write the GAN folder of a run.

Usage::

    python gan.py pictures DATA data/plate-gan    # 12 folders of 64 px pictures, 5 s
    mezzotint train gan.toml                      # the trainer's adversarial task
    python gan.py export runs/plate-gan OUT/plate-gan

The twelve classes are things that look alike, not the groups of the catalogue: a small
network learns "clocks" long before it learns "objects". Two styles of the same drawings
(Fluent 3D and flat) on white; small classes are repeated at other sizes and places and,
where a mirror image is as good, mirrored, so that an epoch meets all classes alike often.
"""

import argparse
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from data import GROUPS, SIZE_PX, Entry
from numpy.typing import NDArray
from PIL import Image

SIDE_PX, SHOWN_PX = 64, 112  # of 128: as `plate` shows one thing
STYLES = ("fluent-3d", "fluent-flat")
EACH = 240  # pictures of a class, about what the largest has
SEED = 18
SIGN_SUBGROUPS = {83, 84, 85, 87, 88, 94, 95}
HAND_SUBGROUPS = {16, 17, 18, 19, 20}
PEOPLE_SUBGROUPS = {23, 25}
HEADS = re.compile(
    r"\b(face|hamster|wolf|bear|panda|koala|lion|fox|raccoon|frog|unicorn|moose|cat)\b"
)
NOT_BUILDINGS = re.compile(r"construction|brick|rock|wood|statue|tower|wedding|kaaba|stadium")
VEHICLES = re.compile(
    r"\b(car|bus|trolleybus|minibus|ambulance|engine|taxi|automobile|vehicle|truck|lorry|tractor"
    r"|rickshaw|tram|train|metro|rail|locomotive)\b"
)


def _in(group: str, *subgroups: int) -> Callable[[Entry], bool]:
    """Return the test whether an entry is of a group and one of its subgroups."""
    number = GROUPS.index(group)
    return lambda entry: entry["group"] == number and entry["subgroup"] in subgroups


def _is_animal_head(entry: Entry) -> bool:
    if _in("smileys", 12)(entry):
        return True
    return _in("animals", 34, 36)(entry) and bool(HEADS.search(entry["label"]))


CLASSES: dict[str, Callable[[Entry], bool]] = {
    "animals": lambda e: _is_animal_head(e) and e["label"] not in ("cat", "black cat"),
    "buildings": lambda e: _in("travel", 51, 52)(e) and not NOT_BUILDINGS.search(e["label"]),
    "clocks": lambda e: _in("travel", 58)(e) and bool(re.search(r"o'clock|thirty", e["label"])),
    "flags": _in("flags", 98),
    "flowers": _in("animals", 40),
    "fruit": _in("food", 42),
    "hands": _in("people", *HAND_SUBGROUPS),
    "hearts": lambda e: _in("smileys", 14)(e) and "heart" in e["label"],
    "people": _in("people", *PEOPLE_SUBGROUPS),
    "signs": _in("symbols", *SIGN_SUBGROUPS),
    "smileys": lambda e: _in("smileys", *range(11))(e) and "face" in e["label"],
    "vehicles": lambda e: (
        _in("travel", 54)(e)
        and bool(VEHICLES.search(e["label"]))
        and e["label"] not in ("bus stop", "police car light")
    ),
}
WITH_A_SIDE = {"clocks", "flags", "signs"}  # mirrored they would be wrong


def class_of(entry: Entry) -> str | None:
    """Return the class of an entry, None if it is of none."""
    return next((name for name, holds in CLASSES.items() if holds(entry)), None)


def draw(
    picture: NDArray[np.uint8], *, side: int = SHOWN_PX, left: int = 8, top: int = 8
) -> NDArray[np.uint8]:
    """Draw an RGBA picture of 128 px on white and average to 64 px.

    Args:
        picture: Shape (128, 128, 4), straight alpha.
        side: Side of the thing on the canvas of 128 px.
        left: Where it begins, pixels from the left.
        top: Where it begins, pixels from the top.

    Returns:
        Shape (64, 64, 3).
    """
    shrunk = Image.fromarray(picture).convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBa", (SIZE_PX, SIZE_PX))
    canvas.paste(shrunk, (left, top))
    over = np.asarray(canvas).astype(np.float32)
    flat = over[..., :3] + 255 - over[..., 3:]
    half = flat.reshape(SIDE_PX, 2, SIDE_PX, 2, 3).mean(axis=(1, 3))
    return half.round().clip(0, 255).astype(np.uint8)


def variation(
    picture: NDArray[np.uint8], name: str, again: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw a picture of a class again: at another size and place, every other time mirrored."""
    if again % 2 and name not in WITH_A_SIDE:
        picture = np.ascontiguousarray(picture[:, ::-1])
    side = int(rng.integers(100, 121))
    left, top = (int(n) for n in rng.integers(-2, 3, size=2))
    free = (SIZE_PX - side) // 2
    return draw(picture, side=side, left=free + left, top=free + top)


def chosen(entries: list[Entry]) -> dict[str, list[int]]:
    """Return the numbers of the pictures of each class, in the order of the catalogue."""
    found: dict[str, list[int]] = {name: [] for name in sorted(CLASSES)}
    for number, entry in enumerate(entries):
        name = class_of(entry) if entry["style"] in STYLES else None
        if name is not None:
            found[name].append(number)
    return found


def write_pictures(data: Path, out: Path) -> dict[str, int]:
    """Write a folder of pictures for each class.

    Returns:
        How many different drawings each class has.
    """
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    entries: list[Entry] = json.loads((data / "pictures.json").read_text("utf-8"))
    rng = np.random.default_rng(SEED)
    for name, numbers in chosen(entries).items():
        folder = out / name
        folder.mkdir(parents=True)
        for k in range(max(EACH, len(numbers))):
            picture = np.asarray(pictures[numbers[k % len(numbers)]])
            again = k // len(numbers)
            drawn = variation(picture, name, again, rng) if again else draw(picture)
            Image.fromarray(drawn).save(folder / f"{k:03d}.png")
    return {name: len(numbers) for name, numbers in chosen(entries).items()}


INT8 = ("main.start.weight",)
"""The largest weight, in 8 bits: all built-in files together stay below 80 MB."""


def export(run: Path, out: Path) -> None:
    """Write the GAN folder of a run: half precision, description, licence and card."""
    from safetensors.torch import load_file

    from mezzotint.models.families.gan import WEIGHTS_FILE, GanConfig, write_gan

    config = replace(
        GanConfig.load(run),
        licence="Apache-2.0; learnt from Fluent emoji (MIT)",
        description="Emoji-like pictures of twelve kinds",
    )
    state = {name: value.half() for name, value in load_file(run / WEIGHTS_FILE).items()}
    write_gan(out, config, state, int8=INT8)
    shutil.copy(Path(__file__).with_name("plate_gan_card.md"), out / "model_card.md")
    print(f"{sum(v.numel() for v in state.values())} parameters")


def main() -> None:
    """Draw the pictures, or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    pictures = verbs.add_parser("pictures", help="draw what is learnt")
    pictures.add_argument("data", type=Path, help="folder with pictures.npy")
    pictures.add_argument("out", type=Path, help="folder to make")
    exported = verbs.add_parser("export", help="write the GAN folder of a run")
    exported.add_argument("run", type=Path, help="the run folder")
    exported.add_argument("out", type=Path, help="folder to make")
    arguments = parser.parse_args()
    if arguments.verb == "pictures":
        print(write_pictures(arguments.data, arguments.out))
    else:
        export(arguments.run, arguments.out)


if __name__ == "__main__":
    main()
