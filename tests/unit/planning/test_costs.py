from dataclasses import replace

import pytest
from tests.unit.engine.fakes import make_plan

from mezzotint.planning.costs import CostTable, cost_key, encode_key, finish_key
from mezzotint.planning.memory import Footprint
from mezzotint.planning.plan import Resolved, Techniques
from mezzotint.request import EnsembleMember, Upscale

FOOTPRINT = Footprint(slot_bytes=10, row_bytes=3, decode_bytes=4)


def test_times_between_measurements_are_interpolated():
    table = CostTable()
    table.record("m", "step", 2, 1.0)
    table.record("m", "step", 6, 2.0)
    assert table.seconds("m", "step", 4) == 1.5
    assert table.seconds("m", "step", 12) == 4.0


def test_the_first_time_of_a_shape_is_replaced_by_the_second():
    table = CostTable()
    table.record("m", "step", 2, 9.0)
    table.record("m", "step", 2, 1.0)
    assert table.seconds("m", "step", 2) == 1.0


def test_an_outlier_moves_the_mean_only_so_far():
    table = CostTable()
    for seconds in (1.0, 1.0, 1000.0):
        table.record("m", "step", 2, seconds)
    assert table.seconds("m", "step", 2) < 1.2


def test_a_warm_up_is_not_believed_until_the_size_was_tried_again():
    table = CostTable()
    table.record("m", "step", 2, 1.0)
    table.record("m", "step", 4, 3.0)
    assert table.is_settled("m", "step", 2)
    assert not table.is_settled("m", "step", 4)
    table.record("m", "step", 4, 2.5)
    assert table.is_settled("m", "step", 4)
    assert not table.is_settled("m", "step", 6)


def test_a_time_that_was_good_at_once_is_believed():
    table = CostTable()
    table.record("m", "step", 2, 1.0)
    table.record("m", "step", 4, 1.5)
    assert table.is_settled("m", "step", 4)


def test_a_size_that_was_not_called_for_long_is_worth_another_trial():
    table = CostTable()
    for seconds in (1.9, 1.9):
        table.record("m", "step", 4, seconds)
    for _ in range(256):
        table.record("m", "step", 2, 1.0)
        assert table.is_settled("m", "step", 4)
    table.record("m", "step", 2, 1.0)
    assert not table.is_settled("m", "step", 4)
    assert table.is_settled("m", "step", 2)


def test_an_old_time_is_replaced_by_a_shorter_one_and_moved_by_a_longer_one():
    for seconds, expected in ((1.2, 1.2), (2.9, 0.7 * 1.9 + 0.3 * 1.5 * 1.9)):
        table = CostTable()
        for first in (1.9, 1.9, 1.9):
            table.record("m", "step", 4, first)
        for _ in range(257):
            table.record("m", "step", 2, 1.0)
        table.record("m", "step", 4, seconds)
        assert table.seconds("m", "step", 4) == pytest.approx(expected)
        table.record("m", "step", 4, expected)  # the next one is a call among others
        assert table.seconds("m", "step", 4) == pytest.approx(expected)


def test_a_prediction_counts_calls_exactly_and_seconds_by_measurement():
    plan, table = make_plan(steps=10), CostTable()
    table.record(cost_key(plan), "encode", 1, 0.5)
    table.record(cost_key(plan), "step", 2, 0.1)
    table.record(cost_key(plan), "decode", 1, 0.25)
    prediction = table.predict(plan, FOOTPRINT)
    assert prediction.seconds == pytest.approx(1.75)
    assert prediction.model_calls == 20
    assert prediction.peak_bytes == 16
    assert prediction.measured


def test_what_is_left_costs_less():
    plan, table = make_plan(steps=10), CostTable()
    table.record(cost_key(plan), "step", 2, 0.1)
    whole = table.predict(plan, FOOTPRINT).seconds
    assert table.predict(plan, FOOTPRINT, evaluation=5).seconds < whole - 0.5


def with_techniques(plan, **fields):
    return replace(plan, techniques=Techniques(**fields))


def test_what_goes_another_way_has_times_of_its_own():
    plain, table = make_plan(steps=10), CostTable()
    tiled = with_techniques(plain, tiling=True)
    painted = with_techniques(plain, image="picture")
    table.record(cost_key(plain), "step", 2, 0.1)
    table.record(cost_key(plain), "encode", 1, 0.5)
    table.record(cost_key(tiled), "step", 2, 0.9)
    table.record(encode_key(painted), "encode", 1, 2.0)
    table.record(cost_key(plain), "decode", 1, 0.25)
    assert table.predict(plain, FOOTPRINT).seconds == pytest.approx(1.75)
    assert table.predict(painted, FOOTPRINT).seconds == pytest.approx(3.25)
    assert table.predict(tiled, FOOTPRINT).seconds > 9


def test_an_enlargement_is_part_of_the_prediction():
    plain, table = make_plan(steps=0), CostTable()
    enlarged = with_techniques(
        plain, upscale=Resolved(part=Upscale(factor=4.0, model="real-esrgan"), digest="d")
    )
    table.record(finish_key(enlarged), "finish", 1, 3.0)
    more = table.predict(enlarged, FOOTPRINT).seconds - table.predict(plain, FOOTPRINT).seconds
    assert more == pytest.approx(3.0)


def test_an_ensemble_costs_a_call_to_each_member_that_is_asked():
    table = CostTable()
    members = (
        Resolved(part=EnsembleMember(model="tiny", weights=(0.5,) * 10), digest="tiny" * 8),
        Resolved(
            part=EnsembleMember(model="other", weights=(0.5,) * 5 + (0.0,) * 5), digest="other" * 8
        ),
    )
    plan = with_techniques(make_plan(steps=10), ensemble=members)
    plan = replace(plan, rows=(4,) * 5 + (2,) * 5)
    table.record(cost_key(plan), "encode", 1, 0.0)
    table.record(cost_key(plan), "decode", 1, 0.0)
    table.record(cost_key(plan), "step", 2, 0.1)
    table.record(cost_key(replace(plan, model_digest="other" * 8)), "step", 2, 0.3)
    assert table.predict(plan, FOOTPRINT).seconds == pytest.approx(10 * 0.1 + 5 * 0.3)


def test_images_side_by_side_save_what_larger_calls_save():
    plan, table = make_plan(steps=10), CostTable()
    table.record(cost_key(plan), "step", 2, 0.1)
    assert table.share((plan, plan)) == pytest.approx(0)  # no larger call is known
    table.record(cost_key(plan), "step", 4, 0.15)
    assert table.share((plan,)) == 0
    assert table.share((plan, plan)) == pytest.approx(10 * (0.2 - 0.15))
    assert table.share((plan,) * 3) == pytest.approx(
        0
    )  # two of four rows cost what three of two do
    other = replace(plan, size=plan.size._replace(width=128))
    assert table.share((plan, other)) == 0


def test_the_table_survives_on_disk_for_the_same_environment_only(tmp_path):
    path = tmp_path / "costs.json"
    table = CostTable("cpu", path)
    table.record("m", "step", 2, 1.25)
    table.save()
    assert CostTable("cpu", path).seconds("m", "step", 2) == 1.25
    assert not CostTable("cuda", path).is_measured("m", "step")


def test_a_broken_file_is_no_error(tmp_path):
    (tmp_path / "costs.json").write_text("{")
    assert not CostTable("cpu", tmp_path / "costs.json").table()
