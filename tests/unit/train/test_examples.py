"""Tests mezzotint.train.config.config."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.sources import load_data

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((Path(__file__).parents[3] / "training" / "examples").glob("*.toml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_configuration(path):
    config = TrainConfig.from_toml(path)
    assert config.output_dir.startswith("runs/")


def test_there_is_an_example_of_every_kind():
    kinds = {TrainConfig.from_toml(path).kind for path in EXAMPLES}
    assert kinds == {"diffusion", "autoencoder", "gan", "lora", "distill"}


@pytest.mark.slow
def test_every_example_finds_its_data(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("make_data", EXAMPLES[0].parent / "make_data.py")
    make_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_data)
    make_data.main(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    found = {}
    for path in EXAMPLES:
        config = TrainConfig.from_toml(path)
        data, report = load_data(config)
        found[path.stem] = (report.count, data.shape, len(set(data.captions)))
    pictures = (1000, (3, 64, 64), 40)  # two counts, five colours, four shapes
    assert found["classes"] == (1797, (1, 16, 16), 0)
    assert found["points"] == (20_000, (2,), 0)
    assert found["waves"] == (4000, (1, 64), 0)
    assert found["text"] == found["gan"] == found["distill"] == found["autoencoder"] == pictures
    assert found["lora"][:2] == (20, (3, 128, 128))


def test_a_python_without_numpy_is_told_which_one_to_take(tmp_path):
    (tmp_path / "numpy.py").write_text("raise ModuleNotFoundError('none', name='numpy')")
    done = subprocess.run(
        [sys.executable, "training/examples/make_data.py", tmp_path / "data"],
        capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "make_data.py needs numpy" in done.stderr
    assert ".venv/bin/python" in done.stderr
