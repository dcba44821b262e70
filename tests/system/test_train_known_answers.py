"""Trained on data whose law is known, samples follow that law.

Points of three Gaussians: mean and covariance of the whole, weight, mean and
deviation of each part. Sine waves of two frequencies: the spectrum. One thread,
float32; the bounds are stated beside each case, two to six times what was measured.
"""

import itertools

import numpy as np
import pytest
from tests.unit.train.making import MEANS, SPREADS, WEIGHTS, mixture

from mezzotint.train.config.config import TrainConfig
from mezzotint.train.trainer import Trainer

VP = ("linear", "scaled_linear", "cosine", "sigmoid_beta", "sigmoid")
ALL = [
    *((schedule, target, False) for schedule in VP for target in ("epsilon", "v", "sample")),
    *((schedule, target, True) for schedule in VP for target in ("v", "sample")),
    ("rectified_flow", "flow", False),
]
FAST = [("cosine", "v", False), ("rectified_flow", "flow", False)]


def called(objective):
    """Name a case: schedule-target, and zero where its last step is pure noise."""
    schedule, target, zero = objective
    return f"{schedule}-{target}{'-zero' * zero}"


def learn(tmp_path, array, network, objective, **loop):
    """Train on an array and return the trainer."""
    np.save(tmp_path / "data.npy", array.astype(np.float32))
    schedule, target, zero = objective
    config = TrainConfig.from_dict(
        {
            "output_dir": str(tmp_path / "run"),
            "data": {"path": str(tmp_path / "data.npy")},
            "network": network,
            "objective": {
                "schedule": schedule,
                "target": target,
                "zero_terminal_snr": zero,
                "min_snr_gamma": 5.0 if target == "sample" else 0.0,
            },
            "optimizer": {"learning_rate": 2e-3, "decay": "cosine"},
            "ema": {"decays": [0.99]},
            "checkpoint": {"every": 0},
            "loop": {"device": "cpu", "threads": 1, **loop},
        }
    )
    trainer = Trainer(config)
    trainer.fit()
    return trainer


def check_mixture(tmp_path, objective, *, steps, loose):
    """Train on the mixture of three Gaussians and compare with its law."""
    points, _ = mixture(20_000)
    trainer = learn(
        tmp_path, points * [10, 0.1] + [100, -3], {"kind": "mlp", "hidden": 64, "depth": 3},
        objective, steps=steps, batch_size=256,
    )  # fmt: skip
    drawn = (trainer.draw(3000, num_inference_steps=50) - [100, -3]) / [10, 0.1]
    part = ((drawn[:, None] - MEANS) ** 2).sum(-1).argmin(1)
    shares = np.array([(part == k).mean() for k in range(3)])
    means = np.array([drawn[part == k].mean(0) for k in range(3)])
    spreads = np.array([drawn[part == k].std(0) for k in range(3)])
    off = {
        "weights": np.abs(shares - WEIGHTS).max(),
        "means": np.abs(means - MEANS).max(),
        "deviations": np.abs(spreads / SPREADS[:, None] - 1).max(),
        "mean": np.abs(drawn.mean(0) - points.mean(0)).max(),
        "covariance": np.abs(np.cov(drawn.T) - np.cov(points.T)).max(),
    }
    print(called(objective), {name: round(float(error), 3) for name, error in off.items()})
    assert off["weights"] < 0.05 * loose
    assert off["means"] < 0.15 * loose
    assert off["deviations"] < 0.5 * loose
    assert off["mean"] < 0.15 * loose
    assert off["covariance"] < 0.4 * loose


@pytest.mark.parametrize("objective", FAST, ids=called)
def test_points_follow_their_mixture(tmp_path, objective):
    check_mixture(tmp_path, objective, steps=400, loose=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ALL, ids=called)
def test_points_follow_their_mixture_under_every_schedule_and_target(tmp_path, objective):
    check_mixture(tmp_path, objective, steps=1500, loose=1.0)


def waves(count, seed=0):
    """Sine waves of 3 or 5 periods, any phase, a little noise; one channel of 64."""
    rng = np.random.default_rng(seed)
    periods = rng.choice([3, 5], size=(count, 1), p=[0.7, 0.3])
    phase = rng.uniform(0, 2 * np.pi, (count, 1))
    clean = 2 * np.sin(2 * np.pi * periods * np.arange(64) / 64 + phase)
    return clean + rng.normal(size=(count, 64)) * 0.05


def power(series):
    """Share of the power in each frequency, averaged. Shape (33,)."""
    found = np.abs(np.fft.rfft(series, axis=-1)) ** 2
    return (found / found.sum(-1, keepdims=True)).mean(0)


def check_waves(tmp_path, objective, *, steps, loose):
    """Train on sine waves and compare the spectrum."""
    data = waves(4000)
    network = {"kind": "unet1d", "channels": [16, 32], "layers": 1, "attention": [1]}
    trainer = learn(tmp_path, data * 7 + 50, network, objective, steps=steps, batch_size=32)
    drawn = (trainer.draw(400, num_inference_steps=25)[:, 0] - 50) / 7
    ours, wanted = power(drawn), power(data)
    off = {
        "spectrum": np.abs(ours - wanted).max(),
        "elsewhere": 1 - ours[[3, 5]].sum(),
        "deviation": abs(drawn.std() / data.std() - 1),
    }
    print(called(objective), {name: round(float(error), 3) for name, error in off.items()})
    assert off["spectrum"] < 0.1 * loose
    assert off["elsewhere"] < 0.15 * loose
    assert off["deviation"] < 0.15 * loose


@pytest.mark.slow
@pytest.mark.parametrize("objective", ALL, ids=called)
def test_waves_have_the_spectrum_of_the_data(tmp_path, objective):
    steps = 1600 if objective[1] == "epsilon" else 800  # epsilon learns the shape of waves last
    check_waves(tmp_path, objective, steps=steps, loose=1.0)


def test_every_schedule_meets_every_target_that_it_can():
    possible = {
        (s, t, z) for s, t, z in itertools.product(
            (*VP, "rectified_flow"), ("epsilon", "v", "sample", "flow"), (False, True)
        ) if (t == "flow") == (s == "rectified_flow") and not (z and t in ("epsilon", "flow"))
    }  # fmt: skip
    assert possible == set(ALL)
