from dataclasses import replace

import pytest
from tests.unit.engine.fakes import make_plan

from mezzotint import errors
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.plan import Planned, Techniques
from mezzotint.planning.planner import plan as make
from mezzotint.request import (
    Gates,
    GateSettings,
    GenerationRequest,
    GuidanceSchedule,
    Hires,
    Inpaint,
    Upscale,
    Walk,
)
from mezzotint.service.requests import RequestState, RequestSubmission, standalone
from mezzotint.types import Cancelled, Failed, Finished, ImageOutput

SD = ModelSpec(name="sd15", digest="a" * 64, family="sd", prediction_type="epsilon")


def submission(images=2, warnings=()):
    plans = tuple(make_plan(seed=k) for k in range(images))
    return RequestSubmission(
        id="r", request=GenerationRequest(prompt="a pear"),
        planned=Planned(plans=plans, warnings=warnings), footprints=(), sink=lambda event: None,
    )  # fmt: skip


def output(index):
    return ImageOutput(index=index, seed=index, data=b"x", format="png", width=1, height=1)


def test_a_run_is_over_when_every_image_has_an_outcome_and_only_the_first_counts():
    state = RequestState(submission())
    assert state.close_image(0, output(0))
    assert not state.close_image(0, ValueError("late"))
    assert not state.is_over
    state.close_image(1, output(1))
    ending = state.ending()
    assert state.is_over
    assert isinstance(ending, Finished)
    assert [i.index for i in ending.result.images] == [0, 1]


def test_one_lost_image_is_a_warning_where_others_came():
    state = RequestState(submission(warnings=("first",)))
    state.close_image(0, errors.WorkFailed("NaN"))
    state.close_image(1, output(1))
    assert state.ending().result.warnings == ("first", "image 0 failed: NaN")


def test_no_image_at_all_is_a_failure_with_its_reason():
    state = RequestState(submission(images=1))
    state.close_image(0, errors.WorkFailed("NaN"))
    ending = state.ending()
    assert isinstance(ending, Failed)
    assert str(ending.error) == "NaN"


@pytest.mark.parametrize("error", [errors.DeadlineExceeded("late"), errors.NotReady("draining")])
def test_a_deadline_or_a_closing_engine_fails_the_whole_request(error):
    state = RequestState(submission())
    state.close_image(0, output(0))
    state.close_image(1, error)
    assert state.ending().error is error


def test_cancelled_wins_over_everything():
    state = RequestState(submission(images=1))
    state.is_cancelled = True
    state.close_image(0, output(0))
    assert isinstance(state.ending(), Cancelled)


def test_a_result_is_a_hit_only_if_every_picture_was_kept():
    state = RequestState(submission())
    state.hits = 1
    for k in range(2):
        state.close_image(k, output(k))
    assert state.ending().result.cache == "miss"
    state.hits = 2
    assert state.ending().result.cache == "hit"


def test_alone_resolves_everything_and_drops_what_is_no_part_of_the_picture():
    request = GenerationRequest(
        prompt="a pear", num_images=4, priority=3, deadline_s=9, negative_prompt="unused",
        gates=Gates(gates=(("nsfw", GateSettings()),)),
    )  # fmt: skip
    single = standalone(request, make_plan(seed=9, steps=5, guidance=1.0))
    assert (single.seed, single.num_images, single.num_inference_steps) == (9, 1, 5)
    assert (single.priority, single.deadline_s, single.gates) == (0, None, None)
    assert (single.width, single.scheduler, single.guidance_scale) == (64, "euler", 1.0)
    assert single.negative_prompt == ""


def test_alone_writes_a_curve_as_a_list_and_a_rescale_as_a_constant_with_phi():
    request, plan = GenerationRequest(prompt="a pear"), make_plan(steps=3)
    curve = standalone(request, replace(plan, guidance=(9.0, 7.0, 5.0)))
    assert curve.guidance_scale == GuidanceSchedule(schedule="list", values=(9.0, 7.0, 5.0))
    rescaled = standalone(request, replace(plan, techniques=Techniques(guidance_rescale=0.7)))
    assert rescaled.guidance_scale == GuidanceSchedule(start=5.0, rescale=0.7)
    distilled = standalone(request, replace(plan, techniques=Techniques(distilled_guidance=3.5)))
    assert distilled.guidance_scale == 3.5


SAYINGS = {
    "hires": (
        {"hires": Hires(scale=2.0), "width": 128, "height": 128},
        {"hires": Hires(scale=1.0, width=256, height=256), "width": 128, "height": 128,
         "guidance_scale": SD.default_guidance_scale},
    ),
    "hires words": (
        {"hires": Hires(prompt="a pear", num_inference_steps=SD.default_steps)},
        {"hires": Hires()},
    ),
    "upscale": ({"upscale": Upscale(model="lanczos")}, {"upscale": Upscale()}),
    "inpaint": ({"inpaint": Inpaint(blur=3)}, {}),
    "walk": (
        {"walk": Walk(mode="seed", frames=2)}, {"walk": Walk(mode="seed", frames=2, to_seed=8)},
    ),
}  # fmt: skip
ALL = Abilities(techniques=frozenset({"hires", "upscale", "walk"}))


@pytest.mark.parametrize("kind", SAYINGS)
def test_requests_in_other_words_come_to_the_same_recipe(kind):
    requests = [GenerationRequest(prompt="a pear", seed=7, **f) for f in SAYINGS[kind]]
    plans = [make(request, SD, ALL).plans[0] for request in requests]
    assert plans[0].digest == plans[1].digest
    one, two = (standalone(r, p).canonical() for r, p in zip(requests, plans, strict=True))
    assert one == two


@pytest.mark.parametrize("kind", SAYINGS)
def test_a_recipe_plans_the_same_picture_again(kind):
    request = GenerationRequest(prompt="a pear", seed=7, **SAYINGS[kind][0])
    first = make(request, SD, ALL).plans[0]
    again = make(standalone(request, first), SD, ALL).plans[0]
    assert again.digest == first.digest
