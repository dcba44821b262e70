"""Small data and small runs for the trainer's tests."""

import numpy as np
from PIL import Image

from mezzotint.train.config.config import TrainConfig
from mezzotint.train.trainer import Trainer

MEANS = np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, -3.0]])
SPREADS = np.array([0.3, 0.5, 0.2])
WEIGHTS = np.array([0.5, 0.3, 0.2])


def mixture(count, seed=0):
    """Points of three Gaussians and the component of each."""
    rng = np.random.default_rng(seed)
    part = rng.choice(3, size=count, p=WEIGHTS)
    return MEANS[part] + rng.normal(size=(count, 2)) * SPREADS[part, None], part


def save_points(folder, count=256):
    """An .npy of points far from zero and of unlike scales."""
    points, _ = mixture(count)
    path = folder / "points.npy"
    np.save(path, (points * [10, 0.1] + [100, -3]).astype(np.float32))
    return path


def save_pictures(folder, count=12, side=16, captions=True):
    """Squares of three colours, captioned."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pixels = np.zeros((side, side, 3), np.uint8)
        pixels[4:12, 4:12, k % 3] = 255
        pixels[0, 0] = k  # no two are equal
        Image.fromarray(pixels).save(folder / f"{k:03}.png")
        if captions:
            text = f"a {('red', 'green', 'blue')[k % 3]} square"
            (folder / f"{k:03}.txt").write_text(text)
    return folder


def points_config(tmp_path, name="run", **changes):
    """A run on points that takes a second for a hundred steps."""
    data = tmp_path / "points.npy"
    if not data.exists():
        save_points(tmp_path)
    plain = {
        "output_dir": str(tmp_path / name),
        "data": {"path": str(data)},
        "network": {"kind": "mlp", "hidden": 16, "depth": 1},
        "optimizer": {"learning_rate": 1e-3},
        "loop": {"steps": 12, "batch_size": 16, "log_every": 4, "device": "cpu"},
        "checkpoint": {"every": 4},
    }
    for room, values in changes.items():
        plain[room] = {**plain.get(room, {}), **values} if isinstance(values, dict) else values
    return TrainConfig.from_dict(plain)


def picture_config(tmp_path, name="run", **changes):
    """A run on pictures with the smallest U-Net."""
    folder = tmp_path / "pictures"
    if not folder.exists():
        save_pictures(folder)
    plain = {
        "output_dir": str(tmp_path / name),
        "data": {"path": str(folder)},
        "network": {
            "channels": [8, 8],
            "layers": 1,
            "attention": [1],
            "heads": 2,
            "text_hidden": 8,
            "text_layers": 1,
            "text_tokens": 12,
            "vocabulary": 600,
            "hidden": 16,
            "depth": 1,
        },
        "loop": {"steps": 2, "batch_size": 4, "log_every": 1, "device": "cpu"},
    }
    for room, values in changes.items():
        plain[room] = {**plain.get(room, {}), **values} if isinstance(values, dict) else values
    return TrainConfig.from_dict(plain)


def train(config, **options):
    """Train a run to its end and return the trainer."""
    trainer = Trainer(config, **options)
    trainer.fit()
    return trainer


def weights(trainer):
    """Every weight and every running mean of a run, by name."""
    state = trainer._state
    found = dict(state.task.modules.state_dict())
    for k, mean in enumerate(state.ema.means):
        found |= {f"mean {k} {name}": value for name, value in mean.items()}
    return found
