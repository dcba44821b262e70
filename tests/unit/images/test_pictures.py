"""Resizing, previews and sheets.

Tests mezzotint.images.resize, mezzotint.images.previews and mezzotint.images.sheets.
"""

import io

import numpy as np
import pytest
from PIL import Image

from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.images.previews import encode_preview
from mezzotint.images.resize import fit, upscale_lanczos
from mezzotint.images.sheets import make_sheet
from mezzotint.types import Size

RAMP = np.tile(np.linspace(40, 200, 32).astype(np.uint8)[None, :, None], (16, 1, 3))


def test_upscaling_keeps_proportions_and_levels():
    big = upscale_lanczos(RAMP, 2.5)
    assert big.shape == (40, 80, 3)
    back = fit(big, Size(32, 16))
    assert np.abs(back.astype(int) - RAMP).max() <= 4


def test_a_factor_of_one_gives_the_same_pixels():
    assert upscale_lanczos(RAMP, 1.0) is RAMP


def test_upscaling_is_pillows_lanczos():
    expected = Image.fromarray(RAMP).resize((64, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(upscale_lanczos(RAMP, 2), np.asarray(expected))


def test_a_side_beyond_the_limit_is_refused():
    with pytest.raises(InvalidRequest, match=r"upscale\.factor"):
        upscale_lanczos(np.zeros((2, 4000, 3), np.uint8), 8)


def test_cropping_keeps_the_middle():
    cropped = fit(RAMP, Size(16, 16), "crop")
    assert np.abs(cropped.astype(int) - RAMP[:, 8:24]).max() <= 1


def test_masks_are_resized_as_floats():
    mask = np.zeros((4, 4), np.float32)
    mask[:, 2:] = 1
    wide = fit(mask, Size(8, 8))
    assert wide.dtype == np.float32
    assert wide.min() >= 0 and wide.max() <= 1


def test_previews_are_small_jpegs_of_the_state():
    state = np.ones((3, 8, 8), np.float32)
    state[0, 0, 0] = np.nan
    picture = Image.open(io.BytesIO(encode_preview(state)))
    assert (picture.format, picture.size) == ("JPEG", (256, 256))
    assert picture.getpixel((200, 200)) == (255, 255, 255)
    large = Image.open(io.BytesIO(encode_preview(np.zeros((3, 300, 600), np.float32))))
    assert large.size == (256, 128)


def test_a_sheet_has_the_layout_of_save_image():
    tiles = [np.full((64, 64, 3), k, np.uint8) for k in range(64)]
    sheet = make_sheet(tiles)
    assert sheet.shape == (530, 530, 3)  # 8 * 66 + 2
    assert sheet[2, 2 + 66, 0] == 1
    assert sheet[2 + 66, 2, 0] == 8
    assert sheet[0, 0, 0] == 0


def test_a_single_picture_stays_as_it_is():
    assert make_sheet([RAMP]) is RAMP


def test_pictures_of_different_sizes_make_no_sheet():
    with pytest.raises(ShapeError):
        make_sheet([RAMP, RAMP[:4]])
    with pytest.raises(ShapeError):
        make_sheet([])
