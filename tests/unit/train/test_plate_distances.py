"""What `plate` is judged by beside :mod:`mezzotint.train`'s losses: figures with known answers."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

PLATE = Path(__file__).resolve().parents[3] / "training" / "plate"


@pytest.fixture
def measures(monkeypatch):
    """The module ``distances``, with its folder on the path for as long as it is needed."""
    monkeypatch.syspath_prepend(str(PLATE))
    names = ("distances", "judge", "data", "captions", "compose", "laws")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("distances", PLATE / "distances.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in names:
        sys.modules.pop(name, None)


def directions(count, seed, *, towards=0.0):
    rows = np.random.default_rng(seed).normal(size=(count, 8))
    rows[:, 0] += towards
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_kernel_distance_of_two_points_is_by_hand(measures):
    one, other = np.array([[1, 0]] * 3, np.float32), np.array([[0, 1]] * 2, np.float32)
    assert measures.kernel_distance(one, other) == pytest.approx(2**3 + 2**3 - 2 * 1)
    assert measures.kernel_distance(one, -other[:, ::-1]) == pytest.approx(8 + 8 - 0)


def test_the_kernel_distance_of_one_law_is_nothing_in_the_mean(measures):
    same = [measures.kernel_distance(directions(60, k), directions(60, 100 + k)) for k in range(30)]
    assert np.mean(same) == pytest.approx(0, abs=3 * np.std(same) / 30**0.5)
    assert min(same) < 0 < max(same)
    apart = measures.kernel_distance(directions(60, 1), directions(60, 2, towards=2))
    assert apart > 5 * max(same)


def test_real_pictures_are_near_themselves_and_no_picture_is_far(measures):
    reference = measures.Reference()
    own = reference.score(reference._seen[::2])
    assert own["compared with real pictures"] == 1000
    assert own["Frechet distance"] < 0.05
    away = reference.score(directions(200, 3)[:, [0, 1] * 48] / 12**0.5)
    assert away["Frechet distance"] > 10 * own["Frechet distance"]
    assert away["kernel distance"] > 0.1


def test_equal_pictures_have_no_spread_and_opposite_ones_all_of_it(measures):
    reference = measures.Reference()
    assert len(reference.varied) == 32
    assert all(0.05 < distance < 1 for distance in reference.varied.values())
    one = np.eye(96, dtype=np.float32)[:1]
    same = {caption: np.repeat(one, 4, axis=0) for caption in reference.varied}
    assert reference.spread(same)["diversity, of real, median caption"] == 0
    apart = {caption: np.eye(96, dtype=np.float32)[:4] for caption in reference.varied}
    found = reference.spread(apart)
    assert found["distance between seeds"] == 1
    assert found["diversity, of real, median caption"] == pytest.approx(
        np.median([1 / distance for distance in reference.varied.values()]), abs=1e-4
    )
