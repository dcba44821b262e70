import math

import pytest

from mezzotint.planning.guidance_curve import resolve_guidance
from mezzotint.request import GuidanceSchedule


@pytest.mark.parametrize("shape", ["linear", "cosine", "power"])
@pytest.mark.parametrize("steps", [2, 4, 8, 30])
def test_a_curve_starts_and_ends_where_it_says(shape, steps):
    curve = resolve_guidance(GuidanceSchedule(schedule=shape, start=12, end=5, power=2), steps)
    assert (curve[0], curve[-1], len(curve)) == (12.0, 5.0, steps)


def test_one_step_takes_the_start():
    assert resolve_guidance(GuidanceSchedule(schedule="linear", start=12, end=5), 1) == (12.0,)


def test_cosine_is_half_way_in_the_middle():
    curve = resolve_guidance(GuidanceSchedule(schedule="cosine", start=10, end=4), 5)
    assert math.isclose(curve[2], 7.0)
    assert math.isclose(curve[1], 4 + 6 * (1 + math.cos(math.pi / 4)) / 2)


def test_power_bends_the_line():
    curve = resolve_guidance(GuidanceSchedule(schedule="power", start=0, end=1, power=2), 3)
    assert curve == (0.0, 0.25, 1.0)


def test_constant_and_number_agree():
    assert resolve_guidance(GuidanceSchedule(start=5), 3) == resolve_guidance(5, 3) == (5.0,) * 3
