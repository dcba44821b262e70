"""The sheet of what a run learns from: some pictures, as the network sees them."""

import numpy as np
import pytest
import torch
from PIL import Image

from mezzotint.train.grids import write_data_sheet


class Levels:
    """Pictures of one level each, in two buckets by turns."""

    kind = "pixels"

    def __init__(self, count, side, channels=3):
        self.shape, self.side = (channels, side, side), side
        self.buckets = [k % 2 for k in range(count)]

    def read(self, indices):
        levels = torch.tensor([k / 50 - 1 for k in indices]).view(-1, 1, 1, 1)
        return levels.expand(len(indices), *self.shape).clone()


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_one_size_stand_side_by_side_in_their_order(tmp_path, channels):
    path = write_data_sheet(Levels(10, 8, channels), tmp_path)
    assert path == tmp_path / "samples" / "data.png"
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (12, 5 * 10 + 2, 3)  # five of bucket 0, 2 px around each
    centres = [tuple(pixels[6, 6 + 10 * k]) for k in range(5)]
    assert centres == [(round(k / 50 * 127.5),) * 3 for k in (0, 2, 4, 6, 8)]


def test_large_pictures_are_made_small_and_no_more_than_24_are_shown(tmp_path):
    with Image.open(write_data_sheet(Levels(200, 256), tmp_path)) as sheet:
        assert sheet.size == (6 * 130 + 2, 4 * 130 + 2)


def test_numbers_are_no_pictures(tmp_path):
    data = Levels(4, 8)
    data.kind = "fields"
    assert write_data_sheet(data, tmp_path) is None
    assert not (tmp_path / "samples").exists()
