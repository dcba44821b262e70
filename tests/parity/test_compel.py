"""Weights below and above 1 as compel itself computes them, on the same random encoder.

Known answers of compel 2.5.1 with its default settings, four values of its (77, 32) states of
the tiny Stable Diffusion 1 pipeline. To record them again::

    pip install --no-deps --target FOLDER compel==2.5.1 pyparsing
    Compel(tokenizer=p.tokenizer, text_encoder=p.text_encoder)(text)[0]  # p = tiny.build("sd1")

Over all values the two differed by at most 7e-7, and by 2e-5 at weight 0, where compel clamps.
"""

import pytest
from tests import tiny

from mezzotint.models.base import Prompt
from mezzotint.models.formats.components import from_pipeline

ANSWERS = [
    ("a red- apple", [-0.78849, -0.76385, -0.11443, 0.43334]),
    ("a (red)0.5 apple", [-0.72693, -0.83265, -0.2249, 0.39635]),
    ("a (big red)0.3 apple on the table", [-0.9171, -0.71423, -0.66241, 0.58065]),
    ("a (red)0.5 (apple)0.7", [-0.74554, -0.81867, -0.21369, 0.41929]),
    ("a (red)1.4 (apple)0.7", [-0.85238, -0.68767, -0.10554, 0.46822]),
    ("a (red)0.0 apple", [-0.79982, -0.80611, -0.37694, 0.34544]),
]


@pytest.fixture(scope="module")
def model():
    return from_pipeline(tiny.build("sd1"), name="sd")


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_states_are_compels_own(model, text, expected):
    (found,) = model.encode([Prompt(text=text, dialect="compel")])
    states = found["encoder_hidden_states"][0]
    values = [states[2, 0], states[2, 1], states[5, 0], states[76, 3]]
    assert [float(v) for v in values] == pytest.approx(expected, abs=5e-5)
