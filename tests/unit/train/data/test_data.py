"""Tests mezzotint.train.data.batches, mezzotint.train.data.sources and mezzotint.train.data.array_data."""

import json

import numpy as np
import pytest
import torch
from tests.unit.train.making import picture_config, points_config, save_pictures

from mezzotint.errors import InvalidRequest
from mezzotint.train.config.model import DataConfig
from mezzotint.train.data.batches import BatchPlan, augment, derive
from mezzotint.train.data.sources import load_data


def test_a_named_stream_depends_on_its_words_alone():
    first = torch.randn(3, generator=derive(7, "noise", 12))
    torch.randn(5, generator=derive(7, "order", 1))
    assert torch.equal(first, torch.randn(3, generator=derive(7, "noise", 12)))
    assert not torch.equal(first, torch.randn(3, generator=derive(7, "noise", 13)))
    assert not torch.equal(first, torch.randn(3, generator=derive(8, "noise", 12)))


def test_an_epoch_holds_every_sample_once_and_the_next_another_order():
    plan = BatchPlan([0] * 12, batch_size=4, held_out=0.0, seed=1)
    epoch = [plan.batch(n) for n in range(3)]
    assert sorted(k for batch in epoch for k in batch) == list(range(12))
    assert [plan.batch(n) for n in range(3, 6)] != epoch
    again = BatchPlan([0] * 12, batch_size=4, held_out=0.0, seed=1)
    assert again.batch(5) == plan.batch(5)  # any batch can be asked for first


def test_held_out_samples_are_never_trained_on():
    plan = BatchPlan([0] * 20, batch_size=4, held_out=0.25, seed=3)
    assert len(plan.held_out) == 5
    seen = {k for n in range(4 * plan.per_epoch) for k in plan.batch(n)}
    assert seen.isdisjoint(plan.held_out)


def test_a_batch_comes_from_one_bucket():
    buckets = [0] * 8 + [1] * 8
    plan = BatchPlan(buckets, batch_size=4, held_out=0.0, seed=0)
    for n in range(8):
        assert len({buckets[k] for k in plan.batch(n)}) == 1


def test_augmentation_is_drawn_from_its_generator_alone():
    samples = torch.rand(4, 3, 8, 8, generator=derive(0, "x")) - 0.5
    config = DataConfig(path="p", flip=True, shift=0.25, brightness=0.2, contrast=0.2)
    first = augment(samples, config, derive(1, "a"))
    assert torch.equal(first, augment(samples, config, derive(1, "a")))
    assert not torch.equal(first, augment(samples, config, derive(1, "b")))
    assert first.abs().max() <= 1
    assert torch.equal(augment(samples, DataConfig(path="p"), derive(1, "a")), samples)


def test_flips_mirror_and_shifts_repeat_the_border():
    samples = torch.arange(8.0).reshape(1, 1, 1, 8)
    flipped = {
        tuple(augment(samples, DataConfig(path="p", flip=True), derive(k, "f")).flatten().tolist())
        for k in range(8)
    }
    forth = tuple(range(8))
    assert flipped == {forth, forth[::-1]}
    moved = augment(samples, DataConfig(path="p", shift=0.5), derive(3, "s")).flatten()
    steps = moved.diff()
    assert set(steps.tolist()) <= {0.0, 1.0}
    assert moved.min() >= 0
    assert moved.max() <= 7


def bad_points(tmp_path, array):
    np.save(tmp_path / "points.npy", array)
    return points_config(tmp_path)


def test_arrays_that_cannot_be_learned_are_named_before_any_compute(tmp_path):
    points = np.zeros((64, 2), np.float32)
    points[7, 1], points[9, 0] = np.nan, np.inf
    cases = [
        (points, "not finite: sample 7 is the first of 2"),
        (np.zeros((0, 2), np.float32), "is empty"),
        (np.zeros((4, 2, 2), np.float32), r"must have the axes \(N, D\) for points"),
        (np.array(["a", "b"]), "must hold numbers"),
        (np.zeros((5, 2), np.float32), "batch_size must be at most the 5 samples"),
    ]
    for array, says in cases:
        with pytest.raises(InvalidRequest, match=says):
            load_data(bad_points(tmp_path, array))


def test_a_held_out_share_that_keeps_no_sample_is_refused(tmp_path):
    np.save(tmp_path / "points.npy", np.zeros((64, 2), np.float32))
    path = str(tmp_path / "points.npy")
    with pytest.raises(InvalidRequest, match=r"at least one of 64 samples, got 0\.01") as told:
        load_data(points_config(tmp_path, data={"path": path, "held_out": 0.01}))
    assert told.value.allowed == "0.0157 to 0.5"
    load_data(points_config(tmp_path, data={"path": path, "held_out": 0.0157}))


def test_an_archive_of_several_arrays_asks_which(tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, x=np.zeros((8, 2), np.float32), y=np.zeros(8, np.int64))
    config = points_config(tmp_path, data={"path": str(path)})
    with pytest.raises(InvalidRequest, match=r"name one with data\.array: x, y"):
        load_data(config)
    config = points_config(tmp_path, data={"path": str(path), "array": "z"})
    with pytest.raises(InvalidRequest, match=r"'z' is not in data\.npz, which holds x, y"):
        load_data(config)


def test_missing_labels_captions_and_paths_are_named(tmp_path):
    with pytest.raises(InvalidRequest, match="does not exist"):
        load_data(points_config(tmp_path, data={"path": str(tmp_path / "absent.npy")}))
    with pytest.raises(InvalidRequest, match='"class" needs labels'):
        load_data(points_config(tmp_path, conditioning={"kind": "class"}))
    folder = save_pictures(tmp_path / "plain", captions=False)
    config = picture_config(tmp_path, data={"path": str(folder)}, conditioning={"kind": "text"})
    with pytest.raises(InvalidRequest, match=r"12 of 12 have none, first 000\.png"):
        load_data(config)
    other = tmp_path / "notes.doc"
    other.write_text("x")
    with pytest.raises(InvalidRequest, match="nothing that is known"):
        load_data(picture_config(tmp_path, data={"path": str(other)}))


def test_metadata_that_is_broken_or_names_absent_pictures_is_named(tmp_path):
    folder = save_pictures(tmp_path / "described", captions=False)
    (folder / "metadata.jsonl").write_text('{"file_name": "000.png", "text": "x"}\nnot json\n')
    with pytest.raises(InvalidRequest, match=r"metadata\.jsonl line 2"):
        load_data(picture_config(tmp_path, data={"path": str(folder)}))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "zzz.png"}))
    with pytest.raises(InvalidRequest, match=r"not there, first zzz\.png"):
        load_data(picture_config(tmp_path, data={"path": str(folder)}))
