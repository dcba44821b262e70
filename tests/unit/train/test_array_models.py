"""The arrays' models that are kept in the repository: what :mod:`mezzotint.train.trainer` draws of them."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mezzotint.errors import UnknownName
from mezzotint.models.families.runs import RUN_FILE, RunDescription, load_run
from mezzotint.sampling.solvers import plan_table
from mezzotint.train.sampling import walk
from mezzotint.train.trainer import Trainer

ARRAYS = Path(__file__).resolve().parents[3] / "training" / "arrays"
WEIGHTS = Path("network") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def formulas():
    """The module ``check``, with its folder on the path for as long as it is needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ARRAYS))
        patch.delitem(sys.modules, "make_data", raising=False)
        spec = importlib.util.spec_from_file_location("arrays_check", ARRAYS / "check.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
        sys.modules.pop("make_data", None)


def draw_weather(folder, count, steps=None):
    return Trainer.open(folder).draw(count, num_inference_steps=steps)


def weather_holds(found):
    """Whether 48 fields of 20 steps are weather: bounds of three times what such few differ."""
    return (
        abs(found["deviation of the pressure, of true"] - 1) < 0.12
        and abs(found["deviation of the wind, of true"] - 1) < 0.1
        and found["correlation of wind and slope"] > 0.89
        and found["worst band of the pressure"] < 0.5
        and found["worst band of the wind"] < 0.35
    )


def test_the_kept_weather_has_the_spectra_of_the_formulas(formulas):
    found = formulas.judge_weather(draw_weather(ARRAYS / "weather", 48, 20))
    assert weather_holds(found), found


def test_a_damaged_weather_would_be_found_out(formulas, tmp_path):
    shutil.copytree(ARRAYS / "weather", tmp_path / "run")
    weights = load_file(tmp_path / "run" / WEIGHTS)
    weights["mid_block.resnets.0.conv1.weight"] *= 0
    weights["mid_block.resnets.1.conv1.weight"] *= 0
    save_file(weights, tmp_path / "run" / WEIGHTS)
    found = formulas.judge_weather(draw_weather(tmp_path / "run", 48, 20))
    assert not weather_holds(found), found
    white = np.random.default_rng(0).standard_normal((48, 2, 32, 32)) * [[[6.0]], [[18.7]]]
    assert not weather_holds(formulas.judge_weather(white))


def draw_notes(folder, labels, steps=None):
    return Trainer.open(folder).draw(
        len(labels), labels=labels.tolist(), num_inference_steps=steps
    )[:, 0]


def notes_hold(found):
    """Whether most of 16 notes are those that were asked for."""
    return (
        found["right semitone"] >= 10 / 16
        and found["right instrument"] >= 14 / 16
        and found["median error, cents"] < 15
        and found["power between the harmonics, dB"] < -20
    )


def test_the_kept_notes_have_the_pitch_and_the_instrument_of_their_label(formulas):
    labels = np.arange(16) * 3  # every instrument, twelve pitches
    found = formulas.judge_notes(draw_notes(ARRAYS / "notes", labels, 20), labels)
    assert notes_hold(found), found


def test_damaged_notes_would_be_found_out(formulas, tmp_path):
    labels = np.arange(16) * 3
    shutil.copytree(ARRAYS / "notes", tmp_path / "run")
    weights = load_file(tmp_path / "run" / WEIGHTS)
    weights["down.0.0.conv_2.weight"] *= 0
    save_file(weights, tmp_path / "run" / WEIGHTS)
    found = formulas.judge_notes(draw_notes(tmp_path / "run", labels, 20), labels)
    assert not notes_hold(found), found
    drawn = draw_notes(ARRAYS / "notes", labels, 20)
    assert not notes_hold(formulas.judge_notes(drawn, (labels + 1) % 48))  # another instrument
    assert not notes_hold(formulas.judge_notes(drawn, (labels + 4) % 48))  # another pitch


@pytest.mark.slow
def test_the_kept_notes_in_full(formulas):
    labels = np.tile(np.arange(48), 4)
    found = formulas.judge_notes(draw_notes(ARRAYS / "notes", labels), labels)
    assert found["right semitone"] >= 0.85
    assert found["right instrument"] >= 0.9
    assert found["power between the harmonics, dB"] <= -22


@pytest.mark.slow
def test_the_kept_weather_in_full(formulas):
    found = formulas.judge_weather(draw_weather(ARRAYS / "weather", 512))
    assert found["deviation of the pressure, of true"] == pytest.approx(1, abs=0.03)
    assert found["deviation of the wind, of true"] == pytest.approx(1, abs=0.03)
    assert found["correlation of wind and slope"] > 0.91
    assert found["worst band of the pressure"] < 0.2
    assert found["worst band of the wind"] < 0.2


def test_unipc_keeps_the_variance_of_the_longest_wave_of_which_ddim_loses_a_fifth(formulas):
    """The exact denoiser of a Gaussian wave, so that what is missing is the solver's doing."""
    about = RunDescription.load(ARRAYS / "weather")
    variance = formulas.spectra()[0].max() / about.normalisation.scale[0] ** 2 * formulas.SIDE**2

    def wiener(latents, sigma, _timestep):
        return latents * variance / (variance + sigma[0] ** 2)

    def left(scheduler):
        table = plan_table(scheduler, about.scheduler, 50)
        generators = [torch.Generator().manual_seed(0)]
        return float(walk(wiener, table, torch.ones(1, 1), generators) ** 2 / variance)

    # DDIM of this denoiser is a product: (variance + s s') / (variance + s^2) a step.
    course = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(np.maximum(1 - np.minimum(1 - course[1:] / course[:-1], 0.999), 1e-3))
    sigma = np.sqrt(1 / alpha_bar[np.arange(999, -1, -20)] - 1)
    following = np.append(sigma[1:], 0)
    by_hand = sigma[0] * np.prod((variance + sigma * following) / (variance + sigma**2))
    assert left("ddim") == pytest.approx(by_hand**2 / variance, rel=1e-3)
    assert left("ddim") == pytest.approx(0.81, abs=0.01)
    assert left("unipc") == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["notes", "weather"])
def test_a_kept_model_is_small_half_and_says_how_it_is_sampled(name):
    assert (ARRAYS / name / WEIGHTS).stat().st_size < 3e6
    assert {w.dtype for w in load_file(ARRAYS / name / WEIGHTS).values()} == {torch.float16}
    assert load_run(ARRAYS / name).spec.default_scheduler == "unipc"


def test_a_run_that_names_no_scheduler_has_the_first_of_its_frame(tmp_path):
    shutil.copytree(ARRAYS / "weather", tmp_path / "run")
    plain = json.loads((tmp_path / "run" / RUN_FILE).read_text("utf-8"))
    del plain["default_scheduler"]
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps(plain), "utf-8")
    assert load_run(tmp_path / "run").spec.default_scheduler == "ddim"
    plain["default_scheduler"] = "unipcc"
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps(plain), "utf-8")
    with pytest.raises(UnknownName, match="unipc"):
        draw_weather(tmp_path / "run", 1, 2)
