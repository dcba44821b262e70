"""Guidance as a Python function: asked once per step, kept as a list, never sent.

Tests mezzotint.planning.guidance_curve.
"""

import pytest
from tests.unit.planning.test_tiers import SPEC

from mezzotint.errors import InvalidRequest
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest, GuidanceSchedule
from mezzotint.service.requests import standalone


def ask(function, **fields):
    fields = {"num_inference_steps": 5, "scheduler": "euler", **fields}
    return GenerationRequest(model="m", prompt="a", seed=1, guidance_scale=function, **fields)


def resolve(request):
    return plan(request, SPEC, Abilities()).plans[0]


def test_a_function_gives_what_the_same_curve_gives_and_the_recipe_holds_the_scales():
    by_function = resolve(ask(lambda done: 9 - 4 * done))
    by_curve = resolve(ask(GuidanceSchedule(schedule="linear", start=9, end=5)))
    assert by_function.guidance == pytest.approx(by_curve.guidance)
    assert by_function.guidance[0] == 9
    assert by_function.guidance[-1] == 5
    kept = standalone(ask(lambda done: 9 - 4 * done), by_function)
    assert kept.to_dict()["guidance_scale"]["values"] == list(by_function.guidance)
    assert resolve(GenerationRequest.from_dict(kept.to_dict())).guidance == by_function.guidance


def test_where_a_function_says_one_no_second_row_is_sent():
    assert resolve(ask(lambda done: 1 if done < 0.5 else 6)).rows[0] == 1


@pytest.mark.parametrize("bad", [lambda _: -1, lambda _: float("nan"), lambda _: "x", lambda: 1])
def test_a_function_that_answers_no_scale_is_refused(bad):
    with pytest.raises(InvalidRequest, match="guidance_scale"):
        resolve(ask(bad))


def test_a_function_is_never_written_as_json():
    with pytest.raises(InvalidRequest, match="only this process"):
        ask(lambda _: 3.0).to_dict()
    with pytest.raises(InvalidRequest, match="guidance_scale"):
        GenerationRequest.from_dict({"guidance_scale": "lambda done: 3"})
