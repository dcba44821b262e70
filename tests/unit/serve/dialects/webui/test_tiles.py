"""Tiles of SD upscale, against the same composition made with Pillow and NumPy."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from tests.serving import open_door

from mezzotint.serve.dialects.webui.tiles import combine, cut, lay_out, write_png


@pytest.mark.parametrize(
    ("width", "tile", "overlap", "xs"),
    [
        (1024, 512, 64, (0, 256, 512)),
        (1024, 512, 0, (0, 512)),
        (512, 512, 64, (0,)),
        (300, 512, 64, (0,)),
        (1000, 512, 64, (0, 244, 488)),
        (600, 512, 256, (0, 88)),
    ],
)
def test_tiles_are_spread_evenly(width, tile, overlap, xs):
    layout = lay_out(width, 512, tile, 512, overlap)
    assert layout.xs == xs
    assert layout.num_tiles == len(xs)


def blended(tiles, layout):
    """A1111's composition: each tile is pasted through a ramp, then each row is."""
    ramp = (np.arange(layout.overlap, dtype=np.float32) * 255 / max(1, layout.overlap)).astype("u1")
    whole = Image.new("RGB", (layout.width, layout.height))
    for r, y in enumerate(layout.ys):
        row = Image.new("RGB", (layout.width, layout.tile_height))
        for c, x in enumerate(layout.xs):
            tile = tiles[r * len(layout.xs) + c]
            row.paste(tile, (x, 0)) if x == 0 else paste(row, tile, (x, 0), ramp, axis=1)
        whole.paste(row, (0, y)) if y == 0 else paste(whole, row, (0, y), ramp, axis=0)
    return np.asarray(whole)


def paste(onto, tile, at, ramp, axis):
    mask = np.full((tile.height, tile.width), 255, np.uint8)
    if axis == 1:
        mask[:, : len(ramp)] = ramp
    else:
        mask[: len(ramp)] = ramp[:, None]
    onto.paste(tile, at, Image.fromarray(mask))


@pytest.mark.parametrize("overlap", [0, 8])
def test_tiles_are_blended_as_a1111_does(overlap):
    layout = lay_out(70, 50, 32, 24, overlap)
    draw = np.random.default_rng(2)
    arrays = [draw.integers(0, 256, (24, 32, 3), dtype=np.uint8) for _ in range(layout.num_tiles)]
    found = np.frombuffer(combine([a.tobytes() for a in arrays], layout), np.uint8)
    expected = blended([Image.fromarray(a) for a in arrays], layout)
    assert np.abs(found.reshape(50, 70, 3).astype(int) - expected.astype(int)).max() <= 1


def test_what_is_cut_and_put_together_is_the_picture_again():
    pixels = np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    layout = lay_out(70, 50, 32, 24, 8)
    tiles = cut(pixels.tobytes(), layout)
    assert combine(tiles, layout) == pixels.tobytes()
    file = write_png(tiles[0], 32, 24)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels[:24, :32])


def test_sd_upscale_draws_every_tile_and_answers_one_picture():
    start = io.BytesIO()
    Image.new("RGB", (64, 64), (10, 120, 200)).save(start, "PNG")
    body = {
        "init_images": [base64.b64encode(start.getvalue()).decode()], "prompt": "a pear",
        "script_name": "SD upscale", "script_args": ["", 16, "None", 2], "seed": 7, "steps": 5,
        "width": 64, "height": 64, "denoising_strength": 0.4,
    }  # fmt: skip
    with open_door() as door:
        answer = door.http.post("/sdapi/v1/img2img", json=body).json()
        drawn = list(door.service.requests)
        many = door.http.post(
            "/sdapi/v1/img2img",
            json={**body, "width": 8, "height": 8, "script_args": ["", 0, 0, 4]},
        )
    assert [(r.seed, r.width, r.height) for r in drawn] == [(7 + k, 64, 64) for k in range(9)]
    picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
    assert (picture.size, len(answer["images"])) == ((128, 128), 1)
    assert json.loads(answer["info"])["warnings"] == []
    assert many.status_code == 413
