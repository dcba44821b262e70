"""What runs of :mod:`mezzotint.train` over sound and fields are held against: formulas."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mezzotint.errors import Cancelled
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.trainer import Trainer

ARRAYS = Path(__file__).resolve().parents[3] / "training" / "arrays"
# Losses by step, as training/arrays/README.md says.
LOGGED = {
    "notes": {50: 0.3608, 100: 0.2172, 150: 0.0777, 200: 0.1359},
    "weather": {50: 0.6273, 100: 0.4301, 150: 0.4733, 200: 0.479},
}


@pytest.fixture
def formulas(monkeypatch):
    """The module ``check``, with its folder on the path for as long as it is needed."""
    monkeypatch.syspath_prepend(str(ARRAYS))
    monkeypatch.delitem(sys.modules, "make_data", raising=False)
    spec = importlib.util.spec_from_file_location("arrays_check", ARRAYS / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("make_data", None)


def test_notes_have_the_pitch_and_the_instrument_of_their_label(formulas):
    rng = np.random.default_rng(3)
    labels = np.arange(0, len(formulas.CLASSES), 3)
    played = np.stack([formulas.note(int(label), rng) for label in labels])
    found = formulas.judge_notes(played, labels)
    assert found["right semitone"] == found["right instrument"] == 1
    assert found["95 % below, cents"] < 4  # three are drawn, and the transform has a grain
    assert formulas.judge_notes(played, (labels + 4) % 48)["right semitone"] == 0
    assert formulas.pitch_hz(formulas.CLASSES.index("C4 harp")) == pytest.approx(261.626, abs=1e-3)


def test_fields_have_the_spectra_of_the_formulas_and_the_wind_blows_along_the_isobars(formulas):
    fields = formulas.weather(600, np.random.default_rng(3))
    found = formulas.judge_weather(fields)
    assert found["worst band of the pressure"] < 0.1
    assert found["worst band of the wind"] < 0.1
    assert found["correlation of wind and slope"] == pytest.approx(
        found["true correlation of wind and slope"], abs=0.01
    )
    # High pressure to the east of a place: air flows north there, in the northern half.
    high = fields[:, 0, 16, 18] - fields[:, 0, 16, 14]
    assert np.corrcoef(high, fields[:, 1, 16, 16])[0, 1] > 0.8
    mirrored = formulas.judge_weather(fields[:, :, :, ::-1])
    assert mirrored["correlation of wind and slope"] < -0.9


def test_both_configurations_say_what_their_arrays_are():
    notes, weather = (TrainConfig.from_toml(ARRAYS / f"{n}.toml") for n in ("notes", "weather"))
    assert notes.data.sample_rate == 8000
    assert notes.conditioning.kind == "class"
    assert len(weather.data.channel_names) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["notes", "weather"])
def test_a_run_of_the_kept_configuration_has_the_losses_that_were_logged(
    formulas, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    sys.modules["make_data"].main(tmp_path / "data")
    losses = {}

    def listen(event):
        if event["event"] == "step":
            losses[event["step"]] = event["loss"]
            if event["step"] == 200:
                trainer.stop()

    trainer = Trainer(TrainConfig.from_toml(ARRAYS / f"{name}.toml"), on_event=listen)
    with pytest.raises(Cancelled, match="stopped at step 200"):
        trainer.fit()
    assert losses == {step: pytest.approx(loss, rel=0.03) for step, loss in LOGGED[name].items()}
