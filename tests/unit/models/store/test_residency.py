"""Which models are in memory: found without being kept, replaced when their files were."""

import dataclasses
from types import SimpleNamespace
from typing import NamedTuple

from mezzotint.models.config import PlacementConfig
from mezzotint.models.store.residency import Residency

HERE = PlacementConfig()


class Source(NamedTuple):
    digest: str


def model(num_bytes=1):
    return SimpleNamespace(num_bytes=num_bytes)


def test_a_model_is_found_only_under_its_name_placement_and_source():
    residency, made = Residency(0), model()
    source = Source("a" * 64)
    with residency.use(("x", HERE), lambda: made, source=source):
        pass
    assert residency.find(("x", HERE), source) is made
    assert residency.find(("x", HERE), Source("a" * 64)) is made
    assert residency.find(("x", HERE), Source("b" * 64)) is None
    assert residency.find(("y", HERE), source) is None
    other = dataclasses.replace(HERE, device="cuda:7")
    assert residency.find(("x", other), source) is None


def test_a_look_keeps_nobody_in_memory():
    residency = Residency(10)
    source = Source("a")
    with residency.use(("old", HERE), lambda: model(8), source=source):
        pass
    assert residency.find(("old", HERE), source) is not None
    with residency.use(("new", HERE), lambda: model(8), source=source):
        pass
    assert residency.find(("old", HERE), source) is None
    assert residency.has("new")
