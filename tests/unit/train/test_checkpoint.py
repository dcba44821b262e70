import errno
import json
from dataclasses import replace

import pytest
import torch

from mezzotint.errors import InvalidRequest, WeightsError
from mezzotint.train import checkpoint
from mezzotint.train.checkpoint import CheckpointStore, Restored, check_same_run, pack, unpack
from mezzotint.train.config.config import TrainConfig

CONFIG = TrainConfig.from_dict({"output_dir": "x", "data": {"path": "p"}})


def state(value):
    return {
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "groups": [{"betas": [0.9, 0.99]}],
        },
        "weights": torch.full((3,), float(value)),
        "shared": torch.arange(6.0).reshape(2, 3)[:, 1],
        "step": value,
    }


def test_a_tree_of_tensors_comes_back_with_its_keys():
    plain, tensors = pack(state(5))
    found = unpack(json.loads(json.dumps(plain)), tensors)
    assert found["optimizer"]["state"][0]["step"].item() == 3.0
    assert found["optimizer"]["groups"] == [{"betas": [0.9, 0.99]}]
    assert found["shared"].tolist() == [1.0, 4.0]
    assert found["step"] == 5


def test_the_newest_comes_back_and_the_oldest_go(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(step, state(step), CONFIG)
    assert store.steps() == [2, 3]
    restored, damaged = store.load_newest()
    assert (restored.step, damaged) == (3, [])
    assert torch.equal(restored.state["weights"], torch.full((3,), 3.0))


def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    for step in (1, 2):
        store.save(step, state(step), CONFIG)
    weights = tmp_path / "step-00000002" / "state.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    restored, damaged = store.load_newest()
    assert restored.step == 1
    assert "step-00000002 is damaged" in damaged[0]
    weights = tmp_path / "step-00000001" / "state.safetensors"
    weights.write_bytes(weights.read_bytes()[:50])
    with pytest.raises(WeightsError, match="step-00000001 is damaged"):
        store.load_newest()


def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_half_written(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=3)
    store.save(1, state(1), CONFIG)

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(OSError, match="No space"):
        store.save(2, state(2), CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert store.load_newest()[0].step == 1


def test_what_a_killed_run_left_half_written_is_swept(tmp_path):
    (tmp_path / ".step-00000009.abcd.partial").mkdir(parents=True)
    store = CheckpointStore(tmp_path, keep=3)
    assert store.load_newest() == (None, [])
    store.save(1, state(1), CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_the_last_checkpoint_is_never_dropped(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    store.save(1, state(1), CONFIG)
    assert not store.drop_oldest()
    store.save(2, state(2), CONFIG)
    assert store.drop_oldest()
    assert store.steps() == [2]


def test_another_configuration_is_refused_by_name():
    other = TrainConfig.from_dict(
        {"output_dir": "x", "data": {"path": "p"}, "optimizer": {"learning_rate": 0.5}}
    )
    with pytest.raises(InvalidRequest, match=r"learning_rate was 0\.0001 and is 0\.5") as caught:
        check_same_run(Restored(1, {}, CONFIG.deciding()), other)
    assert caught.value.field == "optimizer.learning_rate"
    check_same_run(Restored(1, {}, json.loads(json.dumps(CONFIG.deciding()))), CONFIG)


def test_a_field_that_is_younger_than_the_checkpoint_had_its_default():
    was = json.loads(json.dumps(CONFIG.deciding()))
    del was["network.fold"]
    check_same_run(Restored(1, {}, was), CONFIG)
    other = replace(CONFIG, network=replace(CONFIG.network, fold=2))
    with pytest.raises(InvalidRequest, match=r"network\.fold was 1 and is 2"):
        check_same_run(Restored(1, {}, was), other)
