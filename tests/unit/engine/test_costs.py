import pytest
from tests.unit.engine.fakes import make_plan

from mezzotint.engine.costs import CostTable, cost_key
from mezzotint.engine.memory import Footprint

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
    assert table.seconds("m", "step", 2) < 4.0


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
