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


def test_what_a_dropped_model_took_goes_back_before_the_next_one_is_used(monkeypatch):
    from mezzotint.models.store import residency as module

    returned: list[set[str]] = []
    residency = Residency(10)
    monkeypatch.setattr(
        module, "return_memory", lambda: returned.append({n for n in "ab" if residency.has(n)})
    )
    source = Source("a")
    with residency.use(("a", HERE), lambda: model(8), source=source):
        assert returned == []
    with residency.use(("b", HERE), lambda: model(8), source=source):
        assert returned == [{"b"}]
    assert returned == [{"b"}]


def test_what_belongs_to_a_model_goes_with_it_and_not_before_what_is_older():
    residency, source = Residency(20), Source("a")
    with (
        residency.use(("old", HERE), lambda: model(8), source=source) as old,
        residency.use(("(x)", 1), lambda: model(4), source=None, owner=old),
    ):
        pass
    with residency.use(("other", HERE), lambda: model(8), source=source):
        pass
    assert residency.num_bytes == 20
    with residency.use(("new", HERE), lambda: model(4), source=source):
        pass
    assert residency.sizes() == {"other": 8, "new": 4}


def test_the_newest_of_what_belongs_to_a_model_in_use_stays_beside_it():
    residency, source = Residency(10), Source("a")
    with residency.use(("m", HERE), lambda: model(8), source=source) as found:
        for k in range(2):
            with residency.use(("(x)", k), lambda: model(4), source=None, owner=found):
                pass
    assert residency.sizes() == {"m": 8, "(x)": 4}
    assert residency.find(("(x)", 1), None) is not None


def test_parts_that_are_shared_are_counted_once():
    class Parts:
        def __init__(self, parts):
            self.parts = lambda: parts

    residency = Residency(0)
    for k, parts in enumerate(({1: 5, 2: 7}, {1: 5, 3: 1})):
        with residency.use(("(x)", k), lambda parts=parts: Parts(parts), source=None):
            pass
    assert residency.num_bytes == 13
    assert residency.sizes() == {"(x)": 13}
