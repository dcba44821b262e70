"""Lessons about call sizes: when they are tried, at whose cost, and what is kept."""

import math
from typing import ClassVar

import pytest
import torch
from tests.unit.engine.fakes import make_plan

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.execution.certify import Certificates, Rows
from mezzotint.engine.execution.lessons import Lessons
from mezzotint.engine.learning import Learner, Lesson
from mezzotint.models.base import Conditioning
from mezzotint.models.spec import ModelSpec
from mezzotint.observe.interruption import check
from mezzotint.planning.costs import CostTable, cost_key

KEY = (("digest", "64x64", "exact"), ())


class Thing:
    """Stands for a model that may be left at any call."""

    networks: ClassVar[dict] = {}
    spec = ModelSpec(name="tiny", digest="d", family="sd")

    def __init__(self):
        self.called = []

    def call(self, rows):
        check()
        self.called.append(len(rows))
        return rows.latents * 2


def rows(count):
    return Rows(torch.ones(count, 4, 8, 8), torch.ones(count), None, Conditioning({}, rows=count))


def tell(lessons, model, *, seconds=1.0, wanted, count=2, limit_s=math.inf):
    return lessons.tell(
        KEY, "tiny", plan=make_plan(), model=model, rows=rows(count), seconds=seconds,
        wanted=wanted, limit_s=limit_s,
    )  # fmt: skip


def taught(model, learner=None, costs=None, **config):
    certificates = Certificates("env")
    lessons = Lessons(
        EngineConfig(**config), certificates, lambda m: m.call, costs=costs, learner=learner
    )
    return lessons, lambda size: certificates.is_tried(KEY, "tiny", size)


@pytest.mark.parametrize(("share", "most"), [(0.1, 0.1), (0.5, 0.5)])
def test_who_waits_pays_a_small_share(share, most):
    model = Thing()
    lessons, is_tried = taught(model, learn_share=share)
    for calls in range(1, 200):
        tell(lessons, model, wanted=8)
        assert sum(model.called) <= most * 2 * calls + 1e-9  # in rows; a call had two
    assert is_tried(4)
    assert not is_tried(1)


def test_nothing_is_tried_that_nobody_could_use():
    model = Thing()
    lessons, is_tried = taught(model, learn_share=100)
    for _ in range(20):
        assert not tell(lessons, model, wanted=2)
    assert model.called == []
    assert tell(lessons, model, wanted=1, count=1)  # a lone row
    assert tell(lessons, model, wanted=1, count=1)
    assert is_tried(1)
    assert model.called == [1, 2]


def test_a_trial_keeps_nobody_waiting_for_longer_than_a_call_may():
    model = Thing()
    lessons, _ = taught(model, learn_share=100)
    for _ in range(20):
        assert not tell(lessons, model, wanted=8, limit_s=1.9)  # four rows take two seconds
    assert model.called == []
    assert tell(lessons, model, wanted=8, limit_s=2.0)
    assert model.called == [4]


def test_what_could_not_be_spent_on_trials_is_not_saved_for_many_at_once():
    model = Thing()
    lessons, _ = taught(model, learn_share=0.1)
    for _ in range(1000):
        tell(lessons, model, wanted=8, limit_s=0.0)
    for _ in range(5):
        tell(lessons, model, wanted=8)
    assert model.called == [4]


def test_a_trial_that_fails_fails_nobody_and_is_not_begun_again():
    model = Thing()
    model.call = lambda rows: 1 / 0
    lessons, is_tried = taught(model, learn_share=100)
    assert tell(lessons, model, wanted=4)
    assert not tell(lessons, model, wanted=4)
    assert not is_tried(4)


def test_while_nobody_waits_all_sizes_up_to_eight_are_tried_and_timed():
    model, learner, costs = Thing(), Learner(1.0), CostTable()
    lessons, is_tried = taught(model, learner, costs)
    tell(lessons, model, wanted=2)
    assert learner.wait_s == 1.0
    learner.study()
    assert all(is_tried(size) for size in (1, 4, 6, 8))
    assert not is_tried(12)
    assert costs.measured_rows(cost_key(make_plan()), "step") == (1, 4, 6, 8)
    assert learner.wait_s is None


def test_a_lesson_is_left_when_somebody_comes_and_goes_on_where_it_stood():
    model, learner = Thing(), Learner(1.0)
    lessons, is_tried = taught(model, learner, buckets=(2, 8))
    tell(lessons, model, wanted=2)
    usual = model.call

    def call(asked):
        answer = usual(asked)
        if len(model.called) == 3:
            learner.interrupt()
        return answer

    model.call = call
    learner.study()
    assert model.called == [8, 8, 2]
    assert not is_tried(8)
    learner.study()  # somebody is still there
    assert model.called == [8, 8, 2]
    learner.clear()
    learner.study()
    assert model.called == [8, 8, 2, 2, 2, 2]
    assert is_tried(8)


def test_calls_too_long_for_a_batch_of_several_are_not_learnt():
    model, learner = Thing(), Learner(1.0)
    lessons, is_tried = taught(model, learner, quantum_s=2.0)
    tell(lessons, model, seconds=6.0, wanted=2)  # as a Stable Diffusion takes on two cores
    learner.study()
    assert is_tried(1)
    assert not is_tried(4)


def test_a_lesson_that_fails_is_done_without_and_urgent_ones_go_first():
    learner, order = Learner(1.0, is_busy=lambda: True), []
    learner.add(Lesson(name="later", study=lambda: order.append("later")))
    learner.add(Lesson(name="fails", study=lambda: 1 / 0, at_once=True))
    assert learner.wait_s == 0.0
    learner.study()
    learner.study()  # somebody is busy
    assert order == []
    assert learner.wait_s == 1.0


def test_who_does_not_serve_others_learns_only_what_is_urgent():
    learner = Learner(0.0)
    learner.add(Lesson(name="later", study=lambda: None))
    assert learner.wait_s is None


class Drawer:
    """Stands for a model that draws whole pictures and certifies its rows itself."""

    study = None
    certifies_rows = True
    spec = ModelSpec(name="drawer", digest="d", family="gan")

    def __init__(self, left):
        self.left = left

    @property
    def trial_rows(self):
        return 4 if self.left else 0

    def try_rows(self):
        check()
        self.left -= 1


def test_numbers_of_rows_of_whole_pictures_are_tried_for_a_share_of_what_they_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now.append(now.pop() + 1.0) or now[0])
    learner, model = Learner(1.0), Drawer(left=50)
    lessons, _ = taught(Thing(), learner, learn_share=0.1)
    tried = [lessons.tell_drawn(model, rows=8, seconds=2.0) for _ in range(40)]
    # each call pays 0.2 s; a trial, of half a call's rows, is begun at 1 s, and took 1 s
    assert [k for k, was in enumerate(tried) if was] == [4, 9, 14, 19, 24, 29, 34, 39]
    assert model.left == 42
    assert not lessons.tell_drawn(model, rows=8, seconds=None)
    assert not any(lessons.tell_drawn(model, rows=8, seconds=9.0, limit_s=4.0) for _ in range(9))
    assert lessons.tell_drawn(model, rows=8, seconds=9.0, limit_s=5.0)
    learner.study()
    assert model.left == 0
    assert not any(lessons.tell_drawn(model, rows=8, seconds=9.0) for _ in range(9))


def test_without_a_learner_and_of_other_models_no_numbers_of_rows_are_tried():
    model = Drawer(left=5)
    lessons, _ = taught(Thing())
    assert not any(lessons.tell_drawn(model, rows=1, seconds=9.0) for _ in range(9))
    learner = Learner(1.0)
    lessons, _ = taught(Thing(), learner)
    model.certifies_rows = False
    assert not any(lessons.tell_drawn(model, rows=1, seconds=9.0) for _ in range(9))
    assert learner.wait_s is None


@pytest.mark.parametrize(
    ("twelve_s", "is_wanted"), [(1.18, False), (1.1, True)], ids=["hardly quicker", "quicker"]
)
def test_sizes_are_not_tried_above_one_that_is_hardly_quicker(twelve_s, is_wanted):
    model, costs = Thing(), CostTable()
    lessons, is_tried = taught(model, costs=costs, learn_share=100)
    for _ in range(60):
        tell(lessons, model, wanted=12)
    assert is_tried(12)
    key = cost_key(make_plan())
    for _ in range(2):  # the first is a warm-up
        costs.record(key, "step", 8, 0.8)
        costs.record(key, "step", 12, twelve_s)
    for _ in range(60):
        tell(lessons, model, wanted=64)
    assert is_tried(16) is is_wanted


def test_what_a_model_has_to_learn_is_learnt_once_after_its_first_picture():
    learner, model, learnt = Learner(1.0), Drawer(left=0), []
    model.certifies_rows, model.study = False, lambda: learnt.append("learnt")
    lessons, _ = taught(Thing(), learner)
    assert not any(lessons.tell_drawn(model, rows=1, seconds=9.0) for _ in range(3))
    assert not learnt
    learner.study()
    assert learnt == ["learnt"]
    assert learner.wait_s is None
    gone = Drawer(left=0)
    gone.certifies_rows, gone.study = False, model.study
    lessons.tell_drawn(gone, rows=1, seconds=9.0)
    del gone
    learner.study()
    assert learnt == ["learnt"]
