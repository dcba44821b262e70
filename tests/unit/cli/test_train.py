import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mezzotint.cli.train import _keep_to
from mezzotint.models.config import ModelsConfig, PlacementConfig

CONFIG = """
output_dir = "run"
[data]
path = "ring.npy"
[network]
kind = "mlp"
hidden = 16
depth = 1
[loop]
steps = 4
batch_size = 16
"""


@pytest.fixture
def trained(cli, tmp_path):
    angles = np.linspace(0, 2 * np.pi, 64)
    np.save(tmp_path / "ring.npy", np.stack([np.cos(angles), np.sin(angles)], 1).astype("f4"))
    (tmp_path / "run.toml").write_text(CONFIG)
    return cli("train", "run.toml", "--json", "--set", "loop.steps=3")


def test_train_reports_events_and_leaves_a_run_folder(trained, tmp_path):
    assert trained.code == 0, trained.err
    events = [json.loads(line) for line in trained.out.splitlines()]
    assert events[-1]["event"] == "finished"
    assert events[-1]["step"] == 3
    assert (tmp_path / "run" / "train_config.json").is_file()


def test_sample_writes_numbers_in_the_units_of_the_data(trained, cli, tmp_path):
    done = cli("sample", "run", "-n", 5, "--seed", 1, "-o", "out.npy")
    assert (done.code, done.out) == (0, "out.npy\n")
    values = np.load(tmp_path / "out.npy")
    assert (values.shape, values.dtype) == ((5, 2), np.float32)


def test_sample_draws_pictures_of_a_run(trained, cli, tmp_path):
    done = cli("sample", "run", "--seed", 1, "-o", "out.png")
    assert (done.code, done.out) == (0, "out.png\n"), done.err
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    told = cli("sample", "run", "--seed", 1, "-o", "other.png", "--json")
    assert json.loads(told.out) == {"paths": ["other.png"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--set", "loop.stepz=3"], "loop.stepz"),
        (["--set", "loop.steps=0"], "loop.steps"),
        (["--set", "data.path=nowhere.npy"], "nowhere.npy"),
        (["--set", "loop.batch_size=100"], "loop.batch_size must be at most the 64 samples"),
    ],
)
def test_a_wrong_run_is_one_line_and_code_two(trained, cli, change, message):
    done = cli("train", "run.toml", "--output-dir", "other", *change)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not list(Path("other").rglob("*")) if Path("other").exists() else True


def test_a_finished_run_has_its_loss_still_and_says_how_to_go_on(trained, cli):
    last = [e for e in map(json.loads, trained.out.splitlines()) if "loss" in e][-1]
    again = cli("train", "run.toml", "--json", "--set", "loop.steps=3")
    events = [json.loads(line) for line in again.out.splitlines()]
    assert events[-1]["event"] == "finished"
    assert events[-1]["loss"] == last["loss"]
    warned = next(e for e in events if e["event"] == "warning")
    assert warned["message"] == "the run has its 3 steps; loop.steps takes it further"


@pytest.mark.parametrize(
    ("device", "asked", "before", "seen"),
    [
        ("auto", "auto", "0,1", "0,1"), ("cpu", "auto", "0,1", ""), ("cpu", "cuda", "0,1", "0,1"),
        ("cuda:1", "auto", "4,5", "5"), ("cuda:1", "cuda", "", "1"), ("cuda:1", "cpu", "4", "4"),
    ],
)  # fmt: skip
def test_a_run_keeps_to_the_device_of_the_settings(monkeypatch, device, asked, before, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    _keep_to(ModelsConfig(placement=PlacementConfig(device=device)), asked)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_run_fetches_nothing_where_the_settings_forbid_it(trained, cli, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    cli("train", "run.toml", "--check")
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    monkeypatch.setenv("MEZZOTINT_MODELS__ALLOW_DOWNLOADS", "false")
    cli("train", "run.toml", "--check")
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("said", "holds"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
@pytest.mark.parametrize("verb", ["train", "sample"])
def test_threads_soon_sleep_when_they_wait_unless_the_caller_says_otherwise(
    cli, monkeypatch, verb, said, holds
):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # comes back with the test's end
        monkeypatch.delenv(name)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert cli(verb, "nothing").code == 2
    assert os.environ.get("GOMP_SPINCOUNT") == holds


def test_how_threads_wait_is_said_before_torch_reads_it():
    script = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('GOMP_SPINCOUNT')); os._exit(0)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from mezzotint.cli.main import main\n"
        "main()\n"
    )
    said = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", script, "sample", "."],
        env=said, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("1000\n", "")


@pytest.mark.parametrize("name", ["cloud.png", "cloud.svg"])
def test_many_points_are_one_scatter(trained, cli, tmp_path, name):
    done = cli("sample", "run", "-n", 50, "--seed", 1, "-o", name)
    assert (done.code, done.out) == (0, f"{name}\n"), done.err
    assert [path.name for path in tmp_path.glob("cloud*")] == [name]
    if name.endswith("png"):
        from PIL import Image

        with Image.open(tmp_path / name) as picture:
            assert picture.size == (900, 900)


@pytest.mark.slow
def test_a_run_of_a_lora_ends_with_the_line_that_draws_with_it(cli, tmp_path):
    (tmp_path / "squares").mkdir()
    for k, color in enumerate(("red", "blue")):
        Image.new("RGB", (64, 64), color).save(tmp_path / "squares" / f"{k}.png")
    (tmp_path / "lora.toml").write_text(
        "output_dir = 'my run'\nkind = 'lora'\nbase = 'plate'\n[data]\npath = 'squares'\n"
        "resolution = 64\n[lora]\nrank = 1\n[loop]\nsteps = 1\nbatch_size = 1\n[samples]\nevery = 0\n"
    )
    (tmp_path / "squares" / "0.txt").write_text("a square")
    refused = cli("train", "lora.toml")
    assert (refused.code, refused.err.count("\n")) == (2, 1)  # and no bar of a library
    assert "1 of 2 pictures have no caption: put its words beside each picture" in refused.err
    (tmp_path / "squares" / "1.txt").write_text("a square")
    done = cli("train", "lora.toml")
    assert (done.code, done.out.splitlines()[-1]) == (0, "my run"), done.err
    line = "draw with it: mezzotint generate PROMPT --model plate --lora 'my run'"
    assert line in done.err.splitlines()
    plan = cli("generate", "a square", "--model", "plate", "--lora", "my run", "--plan", "--json")
    assert json.loads(plan.out)["plan"]["techniques"]["loras"][0]["name"] == "my run"
