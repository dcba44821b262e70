"""A certificate of an earlier process rests on repairs, which each model needs anew.

Tests mezzotint.engine.execution.certify.
"""

from tests.unit.engine.fakes import make_plan

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.execution.runner import Runner


class Tried:
    """Certificates of an earlier process: every size was tried."""

    def __init__(self):
        self.prepared = []

    def is_tried(self, key, label, bucket):
        return True

    def prepare(self, key, label, model):
        self.prepared.append((key, model))


class Thing:
    """Stands for a model."""


def test_repairs_are_repeated_once_for_each_model_though_no_size_is_tried_again():
    known = Tried()
    runner = Runner(EngineConfig(), None, certificates=known, filler=object())
    key, other = [(make_plan(seed=1, model=d).batch_key, ()) for d in "ab"]
    first, second = Thing(), Thing()
    for model, of in [(first, key), (first, key), (second, key), (first, other), (first, other)]:
        assert not runner._certify(model, of, 4, None, None)
    assert known.prepared == [(key, first), (key, second), (other, first)]
