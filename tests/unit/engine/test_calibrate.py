"""Calibration: times before anybody waits, and predictions that come true."""

import pytest
from tests.unit.engine.fakes import Bench, FakeClock, FakeExecutor, make_plan

from mezzotint.engine.calibrate import calibrate
from mezzotint.planning.costs import CostTable, cost_key
from mezzotint.planning.memory import Footprint

SMALL = Footprint(slot_bytes=1, row_bytes=1, decode_bytes=1)


class Executor(FakeExecutor):
    """Executor that decode at any step: calibration does not finish its pictures."""

    def decode(self, batch):
        for image in batch.ids:
            self.evaluations[image] = len(self.held[image].rows)
        return super().decode(batch)


def test_what_was_timed_predicts_a_run_within_a_hundredth():
    plan, costs, clock = make_plan(steps=12), CostTable(), FakeClock()
    executor = Executor(clock, row_s=0.1, call_s=0.05)
    calibrate(executor, costs, plan, sizes=(1, 2, 4, 8), limit_s=1e9, clock=clock)
    assert executor.held == {}  # everything was let go of
    assert costs.measured_rows(cost_key(plan), "step") == (2, 4, 8)
    assert costs.seconds(cost_key(plan), "step", 8) == pytest.approx(0.85)
    bench = Bench(row_s=0.1, call_s=0.05)
    bench.submit("r", make_plan(steps=30))
    began = bench.clock.now
    bench.run()
    predicted = costs.predict(make_plan(steps=30), SMALL).seconds
    assert bench.clock.now - began == pytest.approx(predicted, rel=0.01)


def test_a_lone_row_costs_what_a_call_of_one_took_where_such_calls_are_made():
    plan, costs = make_plan(steps=10, guidance=1.0), CostTable()
    costs.record(cost_key(plan), "decode", 1, 0.0)
    costs.record(cost_key(plan), "encode", 1, 0.0)
    costs.record(cost_key(plan), "step", 2, 0.4)
    assert costs.predict(plan, SMALL).seconds == pytest.approx(4.0)  # padded
    costs.record(cost_key(plan), "step", 1, 0.25)
    assert costs.predict(plan, SMALL).seconds == pytest.approx(2.5)


def test_a_known_size_is_not_timed_again_and_time_that_is_up_ends_it():
    plan = make_plan(steps=12)
    clock, costs = FakeClock(), CostTable()
    fake = Executor(clock, row_s=0.1)
    assert calibrate(fake, costs, plan, sizes=(2, 4), limit_s=0.5, clock=clock) == 6
    assert costs.measured_rows(cost_key(plan), "step") == (2,)  # 0.6 s were up
    calls = len(fake.calls)
    calibrate(fake, costs, plan, sizes=(2,), limit_s=9, clock=clock)
    assert len(fake.calls) == calls


def test_a_size_that_would_outlast_the_time_is_not_begun():
    plan, costs, clock = make_plan(steps=12), CostTable(), FakeClock()
    costs.record(cost_key(plan), "step", 2, 16.0)  # as the picture before it took
    fake = Executor(clock, row_s=8.0)
    assert calibrate(fake, costs, plan, sizes=(1, 2, 4, 8), limit_s=3.0, clock=clock) == 0
    assert fake.calls == []


def test_a_gan_is_timed_by_its_one_call():
    plan = make_plan(steps=0)
    fake = Executor(FakeClock(), row_s=0.1)
    fake.buckets = lambda kind, key: (1, 2, 4, 8)
    costs = CostTable()
    calibrate(fake, costs, plan, sizes=(1, 2, 4), limit_s=9, clock=fake.clock)
    assert costs.measured_rows(cost_key(plan), "decode") == (1, 2, 4)


def test_a_warm_up_does_not_spoil_what_an_earlier_process_measured(tmp_path):
    path = tmp_path / "costs.json"
    first = CostTable("here", path)
    for _ in range(3):
        first.record("k", "step", 2, 0.1)
    first.save()
    second = CostTable("here", path)
    second.record("k", "step", 2, 5.0)  # the first call of a process
    assert second.seconds("k", "step", 2) == pytest.approx(0.1)
    second.record("k", "step", 2, 0.12)
    assert 0.09 < second.seconds("k", "step", 2) < 0.12
