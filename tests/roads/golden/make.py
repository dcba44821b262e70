"""Draw the golden pictures and keep them: ``python -m tests.roads.golden.make``.

After new weights of one model ``--models plate-gan mapped`` draws the cases of these alone, in
place of the kept ones; the others stay as they are, byte for byte. ``--cases turbo`` draws cases
anew whose arithmetic changed, on whatever machine: their digests are of this one from then on.

``--also`` keeps the digests of this machine beside those of the others: its pictures are near
those that are kept, and byte for byte the same from then on.

Run only where pictures change on purpose: what is kept is the proof that nothing else does.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tests.roads.golden import drawing
from tests.roads.golden.requests import CASES, inputs

SHEET_WIDTH = 2048


def main():
    """Draw every case and write the pictures and their digests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=drawing.HERE)
    parser.add_argument("--only", default="")
    parser.add_argument("--models", nargs="+", help="draw the cases of these models in place")
    parser.add_argument("--cases", nargs="+", help="draw these cases in place, on this machine")
    parser.add_argument("--also", action="store_true", help="keep this machine's digests too")
    arguments = parser.parse_args()
    if arguments.models or arguments.cases:
        redraw(arguments.models or (), arguments.cases or (), arguments.into)
    if arguments.also:
        add_machine(arguments.into)
    if arguments.models or arguments.cases or arguments.also:
        return
    given, cases, arrays = inputs(), [], []
    with tempfile.TemporaryDirectory() as folder, drawing.Engines(Path(folder)) as engines:
        fingerprint = drawing.fingerprint(engines["own"])
        version = drawing.mz.__version__
        for case in CASES:
            if arguments.only not in case["name"]:
                continue
            began = time.monotonic()
            drawn = drawing.draw(engines[case["engine"]], case["request"], given)
            took = time.monotonic() - began
            notes = {w for _, image in drawn for w in image.warnings}
            if any("runs in torch" in note for note in notes):
                raise SystemExit(f"{case['name']} was not drawn by its own backend: {notes}")
            print(
                f"{took:6.2f} s  {case['engine']:5}  {case['name']}  {len(drawn)}",
                *notes,
                flush=True,
            )
            cases.append({**case, "pictures": [kept for kept, _ in drawn]})
            arrays += [image.pixels for _, image in drawn]
    places, size = lay_out([array.shape[:2] for array in arrays])
    sheet = np.zeros((*size, 3), np.uint8)
    pictures = [picture for case in cases for picture in case["pictures"]]
    for picture, array, (x, y) in zip(pictures, arrays, places, strict=True):
        picture["at"] = [x, y]
        sheet[y : y + array.shape[0], x : x + array.shape[1]] = array
    into = arguments.into
    into.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(
        into / drawing.SHEET.name, lossless=True, quality=75, method=3, exact=True
    )
    kept = {"version": version, "fingerprint": fingerprint, "inputs": given, "cases": cases}
    (into / drawing.PICTURES.name).write_text(lines(kept), "utf-8")
    print(f"{len(cases)} cases, {len(arrays)} pictures")


def redraw(models, names, into):
    """Draw the cases of some models, or of some names, and put them in place of the kept ones.

    Raises:
        SystemExit: If this machine draws other bits than the one that the rest of a model's
            cases was kept on, or a picture has another size.
    """
    kept = json.loads(drawing.PICTURES.read_text("utf-8"))
    sheet = np.asarray(Image.open(drawing.SHEET).convert("RGB")).copy()
    count = 0
    with tempfile.TemporaryDirectory() as folder, drawing.Engines(Path(folder)) as engines:
        machine = drawing.fingerprint(engines["own"])
        if models and machine != kept["fingerprint"]:
            raise SystemExit("processor or libraries are others: draw all cases anew")
        for case in kept["cases"]:
            is_named = case["name"] in names
            if not is_named and case["request"].get("model", "plate") not in models:
                continue
            if is_named:
                case["fingerprint"] = machine
            for other in kept.get("others", []):  # drawn before the change
                other["drawn"].pop(case["name"], None)
            drawn = drawing.draw(engines[case["engine"]], case["request"], kept["inputs"])
            for picture, (facts, image) in zip(case["pictures"], drawn, strict=True):
                height, width = image.pixels.shape[:2]
                if (picture["width"], picture["height"]) != (width, height):
                    raise SystemExit(f"{case['name']} has another size: draw all cases anew")
                x, y = picture["at"]
                sheet[y : y + height, x : x + width] = image.pixels
                picture |= facts
            count += 1
            print(case["name"], flush=True)
    into.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(
        into / drawing.SHEET.name, lossless=True, quality=75, method=3, exact=True
    )
    (into / drawing.PICTURES.name).write_text(lines(kept), "utf-8")
    print(f"{count} cases redrawn")


def add_machine(into):
    """Keep the digests of this machine's pictures beside those of the others.

    Raises:
        SystemExit: If a picture is not near the kept one.
    """
    kept = json.loads((into / drawing.PICTURES.name).read_text("utf-8"))
    arrays = {case["name"]: case["pictures"] for case in drawing.read()["cases"]}
    drawn = {}
    with tempfile.TemporaryDirectory() as folder, drawing.Engines(Path(folder)) as engines:
        machine = drawing.fingerprint(engines["own"])
        if machine == kept["fingerprint"]:
            raise SystemExit("this is the machine that the pictures were kept on")
        for case in kept["cases"]:
            found = drawing.draw(engines[case["engine"]], case["request"], kept["inputs"])
            for picture, (_, image) in zip(arrays[case["name"]], found, strict=True):
                near = drawing.psnr(picture["array"], image.pixels)
                if near < case["least_db"]:
                    raise SystemExit(f"{case['name']} is only within {near:.1f} dB")
            drawn[case["name"]] = [[facts["pixels"], facts["bytes"]] for facts, _ in found]
    others = [other for other in kept.get("others", []) if other["fingerprint"] != machine]
    kept["others"] = [*others, {"fingerprint": machine, "drawn": drawn}]
    (into / drawing.PICTURES.name).write_text(lines(kept), "utf-8")
    print(f"{len(drawn)} cases of another machine")


def lines(kept):
    """Return what is kept as JSON, one case a line."""
    head = {key: value for key, value in kept.items() if key not in ("cases", "others")}
    cases = ",\n  ".join(json.dumps(case, ensure_ascii=False) for case in kept["cases"])
    others = ",\n  ".join(json.dumps(other) for other in kept.get("others", []))
    told = f',\n "others": [\n  {others}\n ]' if others else ""
    return json.dumps(head, indent=1)[:-2] + told + f',\n "cases": [\n  {cases}\n ]\n}}\n'


def lay_out(sizes):
    """Place rectangles (height, width) in rows, tall ones first; return (x, y) of each, (H, W)."""
    places = [(0, 0)] * len(sizes)
    x = y = row = 0
    for k in sorted(range(len(sizes)), key=lambda k: (-sizes[k][0], k)):
        height, width = sizes[k]
        if x + width > SHEET_WIDTH:
            x, y, row = 0, y + row, 0
        places[k] = (x, y)
        x, row = x + width, max(row, height)
    return places, (y + row, SHEET_WIDTH)


if __name__ == "__main__":
    main()
