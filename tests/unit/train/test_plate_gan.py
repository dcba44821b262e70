"""What `plate-gan` is judged by, once :mod:`mezzotint.train` has made it: figures with known answers."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mezzotint.train.config.config import TrainConfig

PLATE = Path(__file__).resolve().parents[3] / "training" / "plate"


@pytest.fixture
def judging(monkeypatch):
    """The module ``gan_judge``, with its folder on the path for as long as it is needed."""
    monkeypatch.syspath_prepend(str(PLATE))
    names = ("gan_judge", "gan", "distances", "judge", "data", "captions", "compose", "laws")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("gan_judge", PLATE / "gan_judge.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in names:
        sys.modules.pop(name, None)


def entry(label, group, subgroup):
    return {"label": label, "group": group, "subgroup": subgroup, "style": "noto"}


def test_the_distance_of_pairs_is_one_minus_their_mean_cosine(judging):
    around = np.array([[1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    assert judging.pair_distance(around) == pytest.approx(1 - (0 + -1 + 0) / 3)
    assert judging.pair_distance(np.repeat(around[:1], 5, axis=0)) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_gaussians_is_the_closed_form(judging):
    rng = np.random.default_rng(0)
    mean, deviations = np.array([1.0, -2.0]), np.array([2.0, 0.5])
    ours = (rng.normal(size=(200_000, 2)) * deviations + mean).astype(np.float32)
    found = judging.frechet(ours, np.zeros(2), np.eye(2))
    assert found == pytest.approx(5 + (2 - 1) ** 2 + (0.5 - 1) ** 2, rel=0.02)


def test_classes_hold_what_looks_alike(judging):
    names = judging.CLASSES
    found = {
        label: next((name for name, holds in names.items() if holds(entry(label, *place))), None)
        for label, place in {
            "grinning face": (0, 0),
            "skull": (0, 10),
            "fox": (2, 34),
            "cow": (2, 34),
            "three o'clock": (4, 58),
            "hourglass done": (4, 58),
            "red heart": (0, 14),
            "love letter": (0, 14),
            "fire engine": (4, 54),
            "bus stop": (4, 54),
            "church": (4, 52),
        }.items()
    }
    assert found == {
        "grinning face": "smileys",
        "skull": None,
        "fox": "animals",
        "cow": None,
        "three o'clock": "clocks",
        "hourglass done": None,
        "red heart": "hearts",
        "love letter": None,
        "fire engine": "vehicles",
        "bus stop": None,
        "church": "buildings",
    }


def test_one_picture_over_and_over_has_no_diversity(judging):
    judge = judging.GanJudge()
    assert judge.classes == sorted(judging.CLASSES)
    assert judge.about["named right, emoji never seen"] > 0.85
    same = np.full((4, 64, 64, 3), 255, np.uint8)
    same[:, 16:48, 16:48] = (214, 48, 49)
    found = judge.score({name: same for name in judge.classes})
    assert found["named right"] == pytest.approx(1 / 12, abs=1e-3), "it is one thing at most"
    assert found["diversity, of real, median class"] == pytest.approx(0, abs=1e-3)
    assert found["Frechet distance"] > 10 * judge.about["Frechet distance of half of them"]


def test_a_thing_is_drawn_on_white_in_the_middle(judging):
    picture = np.zeros((128, 128, 4), np.uint8)
    picture[..., 0] = picture[..., 3] = 255
    drawn = judging.draw(picture)
    assert drawn.shape == (64, 64, 3)
    assert np.array_equal(drawn[32, 32], [255, 0, 0])
    assert np.array_equal(drawn[2, 2], [255, 255, 255])
    assert (drawn[:, 32] == [255, 0, 0]).all(axis=1).sum() == 56


def test_both_parts_of_the_training_are_configurations_of_the_same_networks():
    first, second = (TrainConfig.from_toml(PLATE / f"{n}.toml") for n in ("gan", "gan_more"))
    assert second.base == first.output_dir
    changed = {k for k, v in first.deciding().items() if second.deciding()[k] != v}
    assert changed == {"base", "adversarial.penalty", "adversarial.spread"}
