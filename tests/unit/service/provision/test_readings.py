from types import SimpleNamespace

import pytest

from mezzotint.models.spec import ModelSpec
from mezzotint.models.store.store import ModelStore
from mezzotint.request import GenerationRequest
from mezzotint.service.provision.readings import read_levels, read_request

PLAN = {"scheduler": "euler", "sigma_schedule": None, "num_inference_steps": 4}


def test_texts_are_counted_without_their_brackets_and_split_by_weight():
    spec = ModelStore().spec("plate")
    plan = SimpleNamespace(**PLAN, steps=(1, 2, 3, 4))
    request = GenerationRequest(prompt="leaf (leaf:1.3) leaf", prompt_dialect="a1111")
    texts = read_request(request, plan, spec)["texts"]
    assert texts["prompt"] == {
        "tokens": 3, "window": 30, "spans": [["leaf ", 1.0], ["leaf", 1.3], [" leaf", 1.0]],
    }  # fmt: skip
    assert texts["negative_prompt"]["tokens"] == 0


def test_levels_are_those_of_the_steps_that_are_run():
    """Karras' levels from equation 5 of arXiv:2206.00364, the last steps on a start picture."""
    config = {"prediction_type": "epsilon", "beta_schedule": "scaled_linear",
              "beta_start": 0.00085, "beta_end": 0.012}  # fmt: skip
    spec = ModelSpec(name="m", digest="0" * 64, family="sd", path="", scheduler_config=config)
    given = {**PLAN, "sigma_schedule": "karras"}
    levels = read_levels(SimpleNamespace(**given, steps=(1, 2, 3, 4)), spec)
    high, low = levels[0] ** (1 / 7), levels[3] ** (1 / 7)
    assert levels[1] == pytest.approx((high + (low - high) / 3) ** 7, rel=1e-5)
    assert levels[0] == pytest.approx(14.61, abs=0.01)  # of Stable Diffusion's training schedule
    assert levels[-1] == 0
    assert read_levels(SimpleNamespace(**given, steps=(1, 1, 2)), spec) == levels[2:]


def test_schedulers_without_a_table_and_models_without_steps_have_no_levels():
    spec = ModelSpec(name="m", digest="0" * 64, family="sd", path="")
    other = SimpleNamespace(**{**PLAN, "scheduler": "SASolverScheduler"}, steps=(1, 2))
    assert read_levels(other, spec) == []
    assert read_levels(SimpleNamespace(**PLAN, steps=()), spec) == []
    assert read_request(GenerationRequest(), other, ModelSpec(
        name="m", digest="0" * 64, family="gan", path="", takes_prompt=False))["texts"] == {}  # fmt: skip
