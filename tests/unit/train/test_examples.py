from pathlib import Path

import pytest

from mezzotint.train.config import TrainConfig

EXAMPLES = sorted((Path(__file__).parents[3] / "training" / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_configuration(path):
    config = TrainConfig.from_toml(path)
    assert config.output_dir.startswith("runs/")


def test_there_is_an_example_of_every_kind():
    kinds = {TrainConfig.from_toml(path).kind for path in EXAMPLES}
    assert kinds == {"diffusion", "autoencoder", "gan", "lora", "distill"}
