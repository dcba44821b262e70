"""Control pictures, edges against what OpenCV 5.0.0 answered for the same pictures."""

import hashlib

import numpy as np
import pytest

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.images.preprocess import canny, preprocess


def drawing(height=96, width=120):
    """Discs, waves and a ramp, in whole numbers."""
    y, x = np.mgrid[:height, :width]
    disc = ((x - 40) ** 2 + (y - 50) ** 2 < 900) * 140
    waves = (x * x + 3 * y * y) // 37 % 256
    ramp = (2 * x + y) % 256
    return np.stack([disc + ramp // 4, waves, ramp], axis=2).astype(np.uint8)


# sha256 of cv2.Canny(drawing(), low, high), and its pixels on edges
OPENCV = {
    (100, 200): ("fe34edf780f2ee5aad00c45906bb11505d8cf8af42ac67f0ce5d217f2e84ddfc", 603),
    (50, 60): ("f8a817b130c688ae4af1d3b09d959722dabb06148ee9112c263cce6a51dd589b", 1864),
    (0, 0): ("ca2cc6be6e91af86fb122b65cc5dd9a4249b29da8191ce21942a3a38f1dc076b", 2255),
    (20, 400): ("8ee7c3feb9fdaf40eddaaec64d19092c396430f901e167b2385376b2a47470fe", 623),
}


@pytest.mark.parametrize(("low", "high"), OPENCV)
def test_edges_are_those_of_opencv(low, high):
    edges = canny(drawing(), low, high)
    digest, count = OPENCV[low, high]
    assert int((edges == 255).sum()) == count
    assert hashlib.sha256(edges.tobytes()).hexdigest() == digest


def test_a_plain_field_has_no_edges():
    assert not canny(np.full((20, 20, 3), 90, np.uint8)).any()


def test_edges_have_three_equal_channels():
    found = preprocess(drawing(), "canny:50:120")
    assert found.shape == drawing().shape
    assert np.array_equal(found[:, :, 0], canny(drawing(), 50, 120))
    assert np.array_equal(found[:, :, 0], found[:, :, 2])


def test_none_changes_nothing_and_invert_twice_neither():
    assert np.array_equal(preprocess(drawing(), None), drawing())
    assert np.array_equal(preprocess(drawing(), "none"), drawing())
    assert np.array_equal(preprocess(preprocess(drawing(), "invert"), "invert"), drawing())


def test_threshold_leaves_black_and_white():
    row = np.array([[[0, 0, 0], [127, 127, 127], [128, 128, 128], [255, 255, 255]]], np.uint8)
    assert preprocess(row, "threshold:127")[0, :, 1].tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("text", ["blur:4", "tile:8"])
def test_blur_and_tile_keep_the_mean_and_lose_detail(text):
    found = preprocess(drawing(), text).astype(float)
    assert found.shape == drawing().shape
    assert abs(found.mean() - drawing().mean()) < 2
    assert np.abs(np.diff(found, axis=1)).mean() < np.abs(np.diff(drawing() * 1.0, axis=1)).mean()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kanny", "unknown preprocessor 'kanny'; did you mean 'canny'"),
        ("canny:300:200", "low threshold must not exceed"),
        ("canny:nan", "canny's low must be 0 to 2040, got 'nan'"),
        ("canny:1:2:3", "must look like canny:LOW:HIGH"),
        ("invert:1", "must look like invert"),
        ("threshold:256", "threshold's level must be 0 to 255"),
        ("blur:-1", "blur's radius_px must be 0 to 256"),
    ],
)
def test_wrong_words_are_refused(text, words):
    with pytest.raises((InvalidRequest, UnknownName), match=words) as caught:
        preprocess(drawing(), text)
    assert caught.value.field == "controls.preprocess"
