"""What each tier gives up, decided from the plan alone."""

import dataclasses

import pytest

from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.costs import CostTable, cost_key
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import Resolved, Techniques
from mezzotint.planning.planner import plan
from mezzotint.planning.tiers import choose
from mezzotint.request import GenerationRequest, GuidanceSchedule, Lora

SPEC = ModelSpec(name="m", digest="d" * 64, family="sd", prediction_type="epsilon")


def shortcuts(tier="turbo", family="sd", rows=(2,) * 10, precision="int8", **techniques):
    return choose(
        tier,
        dataclasses.replace(SPEC, family=family),
        Techniques(**techniques),
        steps=tuple(range(1, len(rows) + 1)),
        rows=rows,
        precision=precision,
    )


@pytest.mark.parametrize("tier", ["exact", "stable"])
def test_exact_and_stable_change_nothing_of_the_plan(tier):
    found = shortcuts(tier)
    assert (found.rows, found.reused, found.names) == ((2,) * 10, (), ())


def test_turbo_sends_one_row_at_every_second_evaluation_but_never_first_or_last():
    found = shortcuts()
    assert found.reused == (False, True) * 4 + (False, False)
    assert found.rows == (2, 1) * 4 + (2, 2)
    assert found.names == (
        "denoiser and decoder in int8",
        "every second evaluation reuses deep features and guidance",
    )


def test_few_steps_share_nothing():
    assert shortcuts(rows=(2,) * 7).reused == ()


def test_where_guidance_sets_in_there_is_nothing_to_reuse():
    found = shortcuts(rows=(1, 2, 2, 2, 1, 1, 2, 2, 2, 1))
    assert [k for k, reused in enumerate(found.reused) if reused] == [3, 5, 7]


def test_without_a_step_cache_guidance_alone_is_reused():
    assert shortcuts(family="z-image", rows=(1,) * 10).reused == ()
    assert shortcuts(family="z-image").names[-1] == "every second evaluation reuses guidance"


def test_a_transformer_reuses_its_blocks_with_guidance_and_without():
    guided, plain = shortcuts(family="dit"), shortcuts(family="flux", rows=(1,) * 10)
    assert guided.names[-1] == (
        "every second evaluation reuses blocks that changed little and guidance"
    )
    assert plain.names[-1] == "every second evaluation reuses blocks that changed little"
    assert plain.reused == guided.reused == (False, True) * 4 + (False, False)


def test_a_lora_keeps_full_precision_and_full_steps_and_the_request_is_told():
    lora = Resolved(part=Lora(name="l"), digest="0")
    found = shortcuts(loras=(lora,))
    assert found.names == ()
    assert found.reused == ()
    assert "no shortcut" in found.warnings[0]


def test_a_solver_with_two_evaluations_a_step_reuses_nothing():
    found = choose(
        "turbo", SPEC, Techniques(), steps=(1, 1, 2, 2, 3, 3, 4, 4, 5, 5), rows=(2,) * 10
    )
    assert found.reused == ()


def planned(tier, **fields):
    request = GenerationRequest(
        model="m", prompt="a", seed=1, num_inference_steps=10, reproducibility=tier,
        scheduler="euler", **fields,
    )  # fmt: skip
    return plan(request, SPEC, Abilities(precision=lambda _: "int8")).plans[0]


def test_tiers_never_share_a_call_or_a_cache_entry():
    plans = [planned(tier) for tier in ("exact", "stable", "turbo")]
    assert len({p.batch_key for p in plans}) == 3
    assert len({p.digest for p in plans}) == 3
    assert len({cost_key(p) for p in plans}) == 3


def test_the_price_of_a_turbo_plan_counts_its_cheap_evaluations_apart():
    table = CostTable()
    turbo = planned("turbo")
    for kind, rows, seconds in (
        ("step", 2, 0.8), ("reuse", 1, 0.1), ("decode", 1, 0.5), ("encode", 1, 0.25),
    ):  # fmt: skip
        table.record(cost_key(turbo), kind, rows, seconds)
    predicted = table.predict(turbo, Footprint(slot_bytes=1, row_bytes=1, decode_bytes=1))
    assert predicted.model_calls == 6 * 2 + 4
    assert predicted.seconds == pytest.approx(6 * 0.8 + 4 * 0.1 + 0.5 + 0.25)


def test_guidance_that_is_off_part_of_the_time_stays_one_row():
    curve = GuidanceSchedule(schedule="interval", start=5, from_=0.3, until=0.7)
    turbo, exact = planned("turbo", guidance_scale=curve), planned("exact", guidance_scale=curve)
    assert all(t <= e for t, e in zip(turbo.rows, exact.rows, strict=True))
    assert turbo.guidance == exact.guidance
