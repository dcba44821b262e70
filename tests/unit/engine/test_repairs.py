"""A certificate of an earlier process rests on repairs, which each model needs anew.

Tests mezzotint.engine.execution.certify.
"""

from tests.unit.engine.fakes import make_plan

from mezzotint.engine.config import EngineConfig
from mezzotint.engine.execution.runner import Runner


class Tried:
    """Certificates of an earlier process."""

    def __init__(self):
        self.prepared = []

    def prepare(self, key, label, model):
        self.prepared.append((key, model))


class Thing:
    """Stands for a model."""


def test_repairs_are_repeated_once_for_each_model_whatever_sizes_are_tried():
    known = Tried()
    runner = Runner(EngineConfig(), None, certificates=known, filler=object())
    key, other = [(make_plan(seed=1, model=d).batch_key, ()) for d in "ab"]
    first, second = Thing(), Thing()
    for model, of in [(first, key), (first, key), (second, key), (first, other), (first, other)]:
        runner._repair(model, of)
    assert known.prepared == [(key, first), (key, second), (other, first)]
