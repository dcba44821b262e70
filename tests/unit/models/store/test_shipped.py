from dataclasses import replace

import pytest

from mezzotint.models.cards import builtin_cards
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.store import shipped
from mezzotint.models.store.entries import builtin_entries
from mezzotint.models.store.shipped import SHIPPED, measure_shipped, shipped_spec
from mezzotint.models.store.store import ModelStore

CPU = PlacementConfig(device="cpu")
PLATE = next(entry for entry in builtin_entries() if entry.name == "plate")


def test_the_file_says_what_loading_each_built_in_model_finds_out():
    """After new weights: python -m mezzotint.models.store.shipped."""
    assert SHIPPED.read_bytes() == measure_shipped()


@pytest.mark.parametrize("name", sorted(builtin_cards()))
def test_a_fresh_home_knows_what_a_loaded_model_says_of_itself(tmp_path, name):
    store = ModelStore(ModelsConfig(home=str(tmp_path), placement=CPU))
    known = store.known_spec(name)
    assert known is not None
    assert known == store.spec(name)


def test_another_default_version_takes_the_bare_name(tmp_path):
    store = ModelStore(ModelsConfig(home=str(tmp_path), placement=CPU))
    store.add("plate", PLATE.path, version="0.9")
    assert store.known_spec("plate@1.0") == store.spec("plate@1.0")
    assert store.known_spec("plate@1.0").name == "plate@1.0"
    assert shipped_spec(store.entry("plate"), CPU) is None  # 0.9, which is nobody's but the home's


@pytest.mark.parametrize(
    "placement",
    [
        PlacementConfig(device="cuda"),
        PlacementConfig(device="cpu", dtype="bfloat16"),
        PlacementConfig(device="cpu", offload="disk"),
    ],
)
def test_what_computes_otherwise_is_read_from_the_files(placement):
    assert shipped_spec(PLATE, placement) is None
    assert shipped_spec(PLATE, CPU) is not None


def test_where_an_accelerator_may_be_nothing_is_known(monkeypatch):
    monkeypatch.setattr(shipped, "_ACCELERATORS", ())
    monkeypatch.setattr(shipped.platform, "system", lambda: "Linux")
    assert shipped_spec(PLATE, PlacementConfig()) == shipped_spec(PLATE, CPU)
    monkeypatch.setattr(shipped, "_ACCELERATORS", ("/dev/null",))
    assert shipped_spec(PLATE, PlacementConfig()) is None
    monkeypatch.setattr(shipped.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(shipped, "_ACCELERATORS", ())
    assert shipped_spec(PLATE, PlacementConfig()) is None


def test_a_model_of_the_home_by_a_built_in_name_is_not_the_built_in_one():
    assert shipped_spec(replace(PLATE, is_builtin=False), CPU) is None
