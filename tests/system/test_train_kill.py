"""A run that is killed at random moments ends in the same bytes as one that is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.train.making import picture_config, points_config, train

KILLER = Path(__file__).with_name("train_killer.py")


def killed(tmp_path, config, kills, seed=0):
    """Train with kills; return how many there were."""
    plain = tmp_path / "config.json"
    plain.write_text(json.dumps(config.to_dict()))
    done = subprocess.run(
        [sys.executable, str(KILLER), str(plain), str(kills), str(seed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])["kills"]


def tree(folder):
    """The bytes of everything that is the model, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith(("checkpoints", "metrics", "train_config")):
            found[name] = path.read_bytes()
    return found


def longer(maker, tmp_path, name, **changes):
    return maker(
        tmp_path, name,
        loop={"steps": changes.pop("steps"), "accumulate": 2, "log_every": 5, "threads": 1},
        checkpoint={"every": 10, "keep": 2}, ema={"decays": [0.9, 0.99]}, **changes,
    )  # fmt: skip


def check_points(tmp_path, steps, kills):
    """Kill a run on points, and compare every byte of its model with an undisturbed one's."""
    changes = {"steps": steps, "network": {"dropout": 0.1}}
    config = longer(points_config, tmp_path, "killed", **changes)
    assert killed(tmp_path, config, kills) >= kills // 2
    train(longer(points_config, tmp_path, "whole", **changes))
    first, second = tree(tmp_path / "whole"), tree(tmp_path / "killed")
    assert any(name.endswith(".safetensors") for name in first)
    # only the configuration inside the description says where it was trained
    assert {name: data.replace(b"/killed", b"/whole") for name, data in second.items()} == first


def test_kills_change_not_a_byte_of_the_model(tmp_path):
    check_points(tmp_path, steps=500, kills=2)


@pytest.mark.slow
def test_ten_kills_change_not_a_byte_of_the_model(tmp_path):
    check_points(tmp_path, steps=600, kills=10)


@pytest.mark.slow
def test_a_gan_with_augmentation_survives_kills_too(tmp_path):
    changes = {
        "steps": 150, "kind": "gan", "data": {"flip": True, "shift": 0.1},
        "adversarial": {"base_channels": 4, "latent_size": 4},
    }  # fmt: skip
    config = longer(picture_config, tmp_path, "killed", **changes)
    assert killed(tmp_path, config, 10, seed=1) >= 1
    train(longer(picture_config, tmp_path, "whole", **changes))
    name = "generator.safetensors"
    assert tree(tmp_path / "whole")[name] == tree(tmp_path / "killed")[name]
