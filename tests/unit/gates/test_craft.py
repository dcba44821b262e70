"""The built-in aesthetic gate on photographs that it never saw, against spoilt ones."""

import io
from importlib import resources

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from mezzotint.gates.craft import CraftGate
from mezzotint.gates.judge import GateJudge
from mezzotint.gates.statistics import COUNT, measure
from mezzotint.request import Gates, GateSettings


def noise(image, deviation):
    draw = np.random.default_rng(4)
    pixels = np.asarray(image, np.float64) + draw.normal(0, deviation, (*image.size[::-1], 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def jpeg(image, quality):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


SPOILT = {
    "blurred": lambda i: i.filter(ImageFilter.GaussianBlur(4)),
    "noisy": lambda i: noise(i, 40),
    "flat": lambda i: Image.new("RGB", i.size, (120, 130, 90)),
    "faint": lambda i: ImageEnhance.Contrast(i).enhance(0.12),
    "dark": lambda i: ImageEnhance.Brightness(i).enhance(0.2),
    "compressed": lambda i: jpeg(i, 4),
    "coarse": lambda i: i.resize((30, 20)).resize(i.size, Image.Resampling.NEAREST),
}


@pytest.fixture(scope="module")
def gate():
    return CraftGate()


@pytest.fixture(scope="module", params=["china", "flower"])
def photograph(request):
    folder = resources.files("sklearn.datasets") / "images"
    with resources.as_file(folder / f"{request.param}.jpg") as path:
        return Image.open(path).convert("RGB").resize((240, 160), Image.Resampling.LANCZOS)


def points(gate, image):
    return gate.score(np.asarray(image)).value


@pytest.mark.parametrize("way", SPOILT)
def test_a_photograph_passes_and_is_above_itself_spoilt_which_does_not(gate, photograph, way):
    assert points(gate, photograph) > 5.0
    assert points(gate, SPOILT[way](photograph)) < min(5.0, points(gate, photograph) - 1)


def test_more_noise_is_worse(gate, photograph):
    found = [points(gate, noise(photograph, deviation)) for deviation in (10, 25, 60)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 900, 3), (1500, 40, 3), (64, 64, 3)])
def test_every_size_is_measured(gate, shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    assert measure(pixels).shape == (COUNT,)
    assert np.isfinite(measure(pixels)).all()
    assert 1 <= gate.score(pixels).value <= 10


def test_the_judge_offers_it_without_anything_of_the_users(tmp_path, photograph):
    judge = GateJudge(tmp_path)
    assert "aesthetic" in judge.names()
    policy = judge.policy(Gates(gates=(("aesthetic", GateSettings()),)))
    assert judge.judge(np.asarray(photograph), policy)[0].passed
    assert not judge.judge(np.zeros((64, 64, 3), np.uint8), policy)[0].passed
