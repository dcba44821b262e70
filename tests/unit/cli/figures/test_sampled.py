import wave

import numpy as np
import pytest
from PIL import Image

from mezzotint.cli.figures.sampled import draw_spectrograms
from mezzotint.images.animation import decode_frames
from mezzotint.train.sound import encode_wav
from mezzotint.train.trainer import Trainer

SOUND = """
output_dir = "run"
[data]
path = "tones.npy"
sample_rate = 8000
normalisation = "none"
[network]
kind = "unet1d"
channels = [8, 8]
layers = 1
fold = 4
[loop]
steps = 2
batch_size = 4
"""
FIELD = """
output_dir = "run"
[data]
path = "fields.npy"
channel_names = ["height / m", "wind / m/s"]
[network]
kind = "unet2d"
channels = [8, 8]
layers = 1
[loop]
steps = 2
batch_size = 4
"""


@pytest.fixture
def sound(cli, tmp_path):
    tones = 0.5 * np.sin(np.arange(64) * np.linspace(0.1, 1, 8)[:, None])
    np.save(tmp_path / "tones.npy", tones[:, None].astype("f4"))
    (tmp_path / "run.toml").write_text(SOUND)
    assert cli("train", "run.toml").code == 0
    return tmp_path


@pytest.fixture
def field(cli, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "fields.npy", rng.normal(size=(8, 2, 8, 8)).astype("f4"))
    (tmp_path / "run.toml").write_text(FIELD)
    assert cli("train", "run.toml").code == 0
    return tmp_path


def read_wav(path):
    with wave.open(str(path)) as file:
        values = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return values.reshape(-1, file.getnchannels()).T, file.getframerate()


def test_a_sound_is_sixteen_bits_of_what_was_drawn(sound, cli):
    assert cli("sample", "run", "--seed", 3, "-o", "out.npy").code == 0
    done = cli("sample", "run", "--seed", 3, "-o", "out.wav")
    assert (done.code, done.out) == (0, "out.wav\n"), done.err
    values, rate = read_wav(sound / "out.wav")
    drawn = np.load(sound / "out.npy")[0]
    assert rate == 8000
    np.testing.assert_array_equal(values, (drawn.clip(-1, 1) * 32767).round())
    assert ("cut" in done.err) == bool((np.abs(drawn) > 1).any())


def test_without_a_name_sounds_are_numbered_files_that_can_be_played(sound, cli):
    done = cli("sample", "run", "-n", 2)
    assert done.out == "outputs/run-0000.wav\noutputs/run-0001.wav\n"
    assert read_wav(sound / "outputs" / "run-0001.wav")[0].shape == (1, 64)


def test_what_lies_beyond_full_scale_is_cut_and_counted():
    data, beyond = encode_wav(np.array([[0.0, 1.5, -2.0, 1.0], [0.5, 0.0, 0.0, -1.0]]), 44100)
    assert beyond == 2
    assert data[:4] == b"RIFF"
    channels = np.frombuffer(data[44:], "<i2").reshape(-1, 2).T
    np.testing.assert_array_equal(channels[0], [0, 32767, -32767, 32767])
    np.testing.assert_array_equal(channels[1], [16384, 0, 0, -32767])


def test_a_spectrogram_shows_a_tone_at_its_frequency(tmp_path):
    rows = []
    for frequency in (1000, 2000, 3000):
        tone = np.sin(2 * np.pi * frequency * np.arange(8000) / 8000)[None, None]
        draw_spectrograms(tmp_path / "tone.png", tone, 8000)
        picture = np.asarray(Image.open(tmp_path / "tone.png").convert("RGB")).astype(int)
        inside = picture[:, 200:800]  # between the axis and the colour bar
        bright = (inside.sum(2) > 600) & (inside.sum(2) < 765 - 30)  # not the paper
        rows.append(np.flatnonzero(bright.sum(1) > 300).mean())
    assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=4)
    assert rows[0] - rows[2] > 80


def test_many_sounds_are_one_figure_and_too_many_are_refused(sound, cli):
    done = cli("sample", "run", "-n", 2, "-o", "both.svg")
    assert done.out == "both.svg\n"
    refused = cli("sample", "run", "-n", 17, "-o", "all.png")
    assert refused.code == 2
    assert "--num-images" in refused.err


def test_fields_of_two_channels_are_maps_side_by_side(field, cli):
    done = cli("sample", "run", "-n", 2, "--seed", 1, "-o", "maps.svg")
    assert (done.code, done.out) == (0, "maps.svg\n"), done.err
    text = (field / "maps.svg").read_text()
    assert "height / m" in text
    assert "wind / m/s" in text


def test_fields_are_a_movie_round_a_circle_of_noise(field, cli):
    done = cli("sample", "run", "-n", 5, "--seed", 1, "-o", "movie.gif")
    assert (done.code, done.out) == (0, "movie.gif\n"), done.err
    frames = decode_frames((field / "movie.gif").read_bytes())
    assert len(frames) == 5
    assert len({frame.tobytes() for frame in frames}) == 5


def test_a_circle_goes_through_the_samples_of_two_seeds(field):
    trainer = Trainer.open(field / "run")
    round_trip = trainer.draw(4, seed=6, num_inference_steps=4, circle=True)
    ends = trainer.draw(2, seed=6, num_inference_steps=4)
    np.testing.assert_allclose(round_trip[:2], ends, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "out.wav"), "no data.sample_rate"),
        (("-o", "out.gif"), "at least two frames"),
        (("-n", "17", "-o", "out.svg"), "at most 16"),
        (("-n", "2", "-o", "nowhere/out.gif"), "does not exist"),
    ],
)
def test_what_fields_cannot_be_written_as_is_refused_in_one_line(field, cli, arguments, message):
    done = cli("sample", "run", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err


def test_a_movie_of_sounds_is_refused(sound, cli):
    done = cli("sample", "run", "-n", 4, "-o", "out.gif")
    assert done.code == 2
    assert "made of fields" in done.err
