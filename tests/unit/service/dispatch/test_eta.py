"""An ETA learns from what became of the ETAs before it."""

import random

import pytest

from mezzotint.service.dispatch.eta import EtaCorrection


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(
    etas: EtaCorrection, clock: Clock, request_id: str, predicted: float, took: float, images: int
):
    promised = predicted * etas.factor(images)
    etas.begin(request_id, predicted, images)
    clock.now += took
    etas.learn(request_id)
    return took / promised


def test_without_experience_a_prediction_stands(clock):
    assert EtaCorrection(clock).factor(0) == 1.0
    assert EtaCorrection(clock).factor(1000) == 1.0


def test_ninety_five_of_a_hundred_promises_hold_whatever_the_machine_does(clock):
    """Batches make it faster at load, neighbours slower: both are learnt, level by level."""
    chance, etas = random.Random(1), EtaCorrection(clock)
    late: dict[int, list[float]] = {0: [], 60: []}
    for number in range(600):
        images = chance.choice([0, 60])
        truth = {0: 2.5, 60: 0.3}[images] * chance.uniform(0.7, 1.3)
        predicted = chance.uniform(0.1, 10)
        ratio = run(etas, clock, str(number), predicted, predicted * truth, images)
        if number > 50:
            late[images].append(ratio)
    for ratios in late.values():
        ratios.sort()
        assert ratios[int(len(ratios) * 0.95)] < 1.5
        assert ratios[len(ratios) // 2] > 0.6  # and they are no excuses


def test_what_is_late_already_is_known_before_it_ends(clock):
    etas = EtaCorrection(clock)
    for number in range(20):
        run(etas, clock, f"a{number}", 1.0, 1.0, 8)
    for number in range(5):
        etas.begin(f"b{number}", 1.0, 8)
    clock.now += 7.0
    assert etas.factor(8) == pytest.approx(7.0)
    for number in range(5):
        etas.forget(f"b{number}")
    assert etas.factor(8) == pytest.approx(1.0)
