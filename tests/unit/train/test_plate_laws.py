"""What `plate` learns from, beside :mod:`mezzotint.train`: which sets answer a caption, how often."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PLATE = Path(__file__).resolve().parents[3] / "training" / "plate"
MODULES = [
    "autoencoder",
    "captions",
    "compose",
    "data",
    "dataset",
    "denoiser",
    "distances",
    "judge",
    "laws",
    "parallel",
    "precision",
    "text",
]


@pytest.fixture
def plate(monkeypatch):
    """Import a module of training/plate, with its folder on the path for as long as needed."""
    monkeypatch.syspath_prepend(str(PLATE))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path):
    """Two things in four sets: a square of one colour each."""
    colours = {"fluent-3d": (200, 40, 40), "fluent-flat": (200, 40, 40), "noto": (40, 160, 60)}
    colours["twemoji"] = (60, 60, 200)
    entries, pictures = [], []
    for label, code_points in (("closed book", "1f4d5"), ("teacup", "1f375")):
        for style, colour in colours.items():
            picture = np.zeros((128, 128, 4), np.uint8)
            picture[20:100, 20:100] = (*colour, 255)
            pictures.append(picture)
            entries.append(
                {
                    "code_points": code_points,
                    "label": label,
                    "tags": [],
                    "group": 6,
                    "subgroup": 71,
                    "order": 1,
                    "style": style,
                }
            )
    np.save(tmp_path / "pictures.npy", np.stack(pictures))
    (tmp_path / "pictures.json").write_text(json.dumps(entries), "utf-8")
    return tmp_path


def by_style(data, items):
    styles = [entry["style"] for entry in json.loads((data / "pictures.json").read_text("utf-8"))]
    found: dict[str, list] = {}
    for item in items:
        found.setdefault(styles[item["picture"]], []).append(item)
    return found


def test_several_sets_show_one_thing_in_the_same_compositions(plate, data):
    items, _ = plate("dataset").build_items(data, law=plate("laws").SEVERAL)
    found = by_style(data, items)
    assert set(found) == {"fluent-3d", "fluent-flat", "noto"}
    shown = {
        style: [(item["label"], item["composition"]) for item in some]
        for style, some in found.items()
    }
    assert len(shown["noto"]) == 2 * 15
    assert shown["fluent-3d"] == shown["fluent-flat"] == shown["noto"]
    assert shown["noto"][:15] != shown["noto"][15:]


def test_a_word_for_a_set_is_said_of_that_set_alone(plate, data):
    items, captions = plate("dataset").build_items(data, law=plate("laws").SEVERAL)
    words = {"fluent-3d": "3d", "fluent-flat": "flat", "noto": "noto"}
    said = {}
    for style, some in by_style(data, items).items():
        texts = [captions[k] for item in some for k in item["captions"]]
        named = [word for text in texts for word in text.split() if word in words.values()]
        assert set(named) <= {words[style]}
        said[style] = len(named) / len(texts)
    assert said["fluent-flat"] > 0.25
    assert 0 < said["noto"] < 0.5


def test_one_set_for_a_caption_names_the_other(plate, data):
    items, captions = plate("dataset").build_items(data)
    found = by_style(data, items)
    assert set(found) == {"fluent-3d", "fluent-flat"}
    assert all(
        "flat" in captions[k].split() for item in found["fluent-flat"] for k in item["captions"]
    )


def test_an_alias_is_said_of_another_set_only_where_its_colour_is(plate, data):
    items, captions = plate("dataset").build_items(data, richness=4, law=plate("laws").SEVERAL)
    found = by_style(data, items)
    texts = {
        style: " ".join(captions[k] for item in some for k in item["captions"])
        for style, some in found.items()
    }
    assert "red book" in texts["fluent-3d"]
    assert "red book" not in texts["noto"]


def test_the_shares_of_captions_that_name_no_set_are_by_hand(plate):
    laws = plate("laws")
    assert laws.ONE.unsaid() == {"fluent-3d": 1, "fluent-flat": 0}
    parts = {"fluent-3d": 0.92, "fluent-flat": 0.375 / 2, "noto": 0.41 * 0.8}
    whole = sum(parts.values())
    assert laws.SEVERAL.unsaid() == pytest.approx({k: v / whole for k, v in parts.items()})


def test_the_word_of_a_set_is_no_word_of_the_label(plate):
    law = plate("laws").SEVERAL
    assert law.named_in("a flat red apple", "red apple") == "flat"
    assert law.named_in("a flat shoe on a red background", "flat shoe") == ""
    assert law.named_in("a flat flat shoe", "flat shoe") == "flat"
    assert law.named_in("two noto pears", "pear") == "noto"


def write_run(folder, weights):
    """A run of one caption and as many latents as there are weights, each filled with its number."""
    items = [
        {"picture": k, "label": label, "captions": [0], "weight": weight}
        for k, (label, weight) in enumerate(weights)
    ]
    (folder / "items.json").write_text(json.dumps(items), "utf-8")
    numbers = np.arange(len(items), dtype=np.float16)
    np.save(folder / "latents.npy", np.tile(numbers[:, None, None, None], (1, 8, 16, 16)))
    np.save(folder / "embeddings.npy", np.zeros((1, 32, 384), np.float16))


@pytest.mark.parametrize(
    ("balance", "shares"),
    [(1.0, [0.4, 0.4, 0.1, 0.1]), (0.5, [1 / 3, 1 / 3, 1 / 6, 1 / 6]), (0.0, [0.25] * 4)],
)
def test_balance_draws_rare_things_more_and_keeps_the_shares_of_one(
    plate, tmp_path, balance, shares
):
    write_run(tmp_path, [("apple", 4), ("apple", 4), ("kazoo", 1), ("kazoo", 1)])
    batches = plate("denoiser").Batches(tmp_path, seed=1, balance=balance)
    latents, states = batches.draw(4000)
    assert latents.dtype == states.dtype == torch.float32
    drawn = np.bincount(latents[:, 0, 0, 0].int().numpy(), minlength=4) / 4000
    assert drawn == pytest.approx(shares, abs=5 * (0.25 / 4000) ** 0.5)


def test_two_independent_draws_are_apart_as_by_hand(plate):
    measure = plate("distances").drawn_distance
    across = np.eye(3, dtype=np.float32)
    assert measure(across, np.array([0.5, 0.5, 0])) == pytest.approx(0.5)
    assert measure(across, np.array([0.6, 0.3, 0.1])) == pytest.approx(1 - 0.36 - 0.09 - 0.01)
    assert measure(across, np.array([1.0, 0, 0])) == pytest.approx(0)


@pytest.mark.parametrize(
    ("tiles", "kind", "expected"),
    [
        (True, "auto", torch.bfloat16),
        (False, "auto", torch.float32),
        (True, "float32", torch.float32),
        (False, "bfloat16", torch.bfloat16),
    ],
)
def test_bfloat16_is_for_processors_that_multiply_it_in_tiles(
    plate, monkeypatch, tiles, kind, expected
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": tiles})
    with plate("precision").fast_floats(kind):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
