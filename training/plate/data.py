"""Render the picture sets to one array of RGBA pictures with labels.

Usage: ``python data.py DATA``. Reads what ``fetch.py`` fetched and writes
``pictures.npy`` (N, 128, 128, 4) uint8, straight alpha, and ``pictures.json``,
one entry a picture: label, tags, group, subgroup, style, code points. Skin-tone
variants are left out; all nine groups are kept, and who learns from the array
chooses among them (``is_depictable`` is the text-to-picture model's choice).

Code points join the sets: file names and slugs differ between them, code points
with U+FE0F removed do not.
"""

import argparse
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE_PX = 128
STYLES = ("fluent-3d", "fluent-flat", "noto", "twemoji")
GROUPS = (
    "smileys",
    "people",
    "animals",
    "food",
    "travel",
    "activities",
    "objects",
    "symbols",
    "flags",
)
GROUP_NUMBERS = {0: 0, 1: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8}  # emojibase -> GROUPS
CLOCK_FACES, KEPT_SYMBOLS, BODY_PARTS = 58, {93, 96}, {16, 17, 18, 19, 20, 22}

Entry = dict[str, Any]


def join_key(code_points: str) -> str:
    """Return the code points in the form in which all sets agree."""
    return "-".join(p for p in code_points.lower().split("-") if p != "fe0f")


def catalogue(data: Path) -> list[Entry]:
    """List every emoji in a group, one entry each, without skin-tone variants."""
    emojis = json.loads((data / "captions" / "en" / "data.json").read_text("utf-8"))
    return [
        {
            "code_points": join_key(emoji["hexcode"]),
            "label": emoji["label"].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"),
            "tags": [str(tag).lower() for tag in emoji.get("tags", [])],
            "group": GROUP_NUMBERS[emoji["group"]],
            "subgroup": emoji["subgroup"],
            "order": emoji["order"],
        }
        for emoji in emojis
        if emoji.get("group") in GROUP_NUMBERS
    ]


def is_depictable(entry: Entry) -> bool:
    """Whether the text-to-picture model learns this entry: things, not letters or flags."""
    group, subgroup = GROUPS[entry["group"]], entry["subgroup"]
    if group == "people":
        return subgroup in BODY_PARTS
    if group == "symbols":
        return subgroup in KEPT_SYMBOLS
    if subgroup == CLOCK_FACES:
        return not re.search(r"thirty|o'clock", entry["label"])
    return group != "flags"


def fit(picture: Image.Image) -> NDArray[np.uint8]:
    """Scale a picture to fit the square, centred, filtering with premultiplied alpha."""
    picture = picture.convert("RGBa")
    scale = SIZE_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBa", (SIZE_PX, SIZE_PX))
    square.paste(picture, ((SIZE_PX - size[0]) // 2, (SIZE_PX - size[1]) // 2))
    return np.asarray(square.convert("RGBA"))


def webp_pictures(folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (code points, picture) of the WebP set."""
    for path in sorted(folder.glob("assets/*.webp")):
        with Image.open(path) as picture:
            yield join_key(path.stem), fit(picture)


def svg_pictures(folder: Path, wanted: set[str]) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield (code points, picture) of an iconify set, for the wanted code points."""
    import resvg_py  # here, so that who only reads the array does without

    icons = json.loads((folder / "icons.json").read_text("utf-8"))
    slugs = json.loads((folder / "chars.json").read_text("utf-8"))
    for code_points, slug in sorted(slugs.items()):
        key = join_key(code_points)
        if key not in wanted or slug not in icons["icons"]:
            continue
        icon = icons["icons"][slug]
        width = icon.get("width", icons.get("width", 32))
        height = icon.get("height", icons.get("height", 32))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" '
            'xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
            f"{icon['body']}</svg>"
        )
        zoom = SIZE_PX / max(width, height)
        rendered = resvg_py.svg_to_bytes(
            svg_string=svg, width=round(width * zoom), height=round(height * zoom)
        )
        yield key, fit(Image.open(io.BytesIO(bytes(rendered))))


def render(data: Path) -> tuple[NDArray[np.uint8], list[Entry]]:
    """Render all styles of all catalogued emojis."""
    entries = {entry["code_points"]: entry for entry in catalogue(data)}
    pictures, rows = [], []
    for style in STYLES:
        folder = data / style
        found = (
            webp_pictures(folder) if style == "fluent-3d" else svg_pictures(folder, set(entries))
        )
        seen: set[str] = set()
        for key, picture in found:
            if key in entries and key not in seen and picture[..., 3].any():
                seen.add(key)
                pictures.append(picture)
                rows.append({**entries[key], "style": style})
        print(f"{style}: {len(seen)} pictures", flush=True)
    return np.stack(pictures), rows


def main() -> None:
    """Render and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder that fetch.py filled")
    data = parser.parse_args().data
    pictures, rows = render(data)
    np.save(data / "pictures.npy", pictures)
    (data / "pictures.json").write_text(json.dumps(rows), "utf-8")


if __name__ == "__main__":
    main()
