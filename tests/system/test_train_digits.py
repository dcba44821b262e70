"""A class-conditional diffusion model of scikit-learn's digits, judged by a classifier."""

import numpy as np
import pytest

from mezzotint.train.config.config import TrainConfig
from mezzotint.train.trainer import Trainer


@pytest.mark.slow
def test_a_classifier_recognises_the_digits_that_were_asked_for(tmp_path):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from sklearn.svm import SVC

    images, labels = load_digits(return_X_y=True)
    known, unseen, known_labels, unseen_labels = train_test_split(
        images, labels, test_size=0.3, random_state=0, stratify=labels
    )
    judge = SVC(gamma=0.001, C=10).fit(known, known_labels)  # never sees the model or its data
    assert judge.score(unseen, unseen_labels) >= 0.97

    np.savez(tmp_path / "digits.npz", x=unseen.reshape(-1, 8, 8), y=unseen_labels)
    config = TrainConfig.from_dict(
        {
            "output_dir": str(tmp_path / "run"),
            "data": {
                "path": str(tmp_path / "digits.npz"),
                "array": "x",
                "labels": "y",
                "normalisation": "range",
            },
            "conditioning": {"kind": "class", "dropout": 0.1},
            "network": {"kind": "unet2d", "channels": [32, 64], "layers": 1},
            "objective": {"schedule": "cosine", "target": "v", "min_snr_gamma": 5.0},
            "optimizer": {"learning_rate": 1e-3, "decay": "cosine"},
            "ema": {"decays": [0.99]},
            "checkpoint": {"every": 0},
            "loop": {"steps": 1200, "batch_size": 64, "device": "cpu"},
        }
    )
    trainer = Trainer(config)
    trainer.fit()
    asked = [k % 10 for k in range(200)]
    drawn = trainer.draw(200, labels=asked, guidance_scale=1.5, num_inference_steps=25)
    score = judge.score(drawn.reshape(200, 64).clip(0, 16), asked)
    print(f"{score:.3f} of 200 samples are the digit that was asked for")
    assert score >= 0.90
