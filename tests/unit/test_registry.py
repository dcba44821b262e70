import pytest

from mezzotint.errors import UnknownName
from mezzotint.registry import Registry


class _Entry:
    name = "plugged"

    def load(self):
        return "thing"


def test_an_unknown_name_lists_the_known_ones_and_suggests_the_nearest():
    registry = Registry("scheduler", {"euler": 1, "heun": 2})
    with pytest.raises(UnknownName) as caught:
        registry["eulr"]
    assert str(caught.value) == (
        "unknown scheduler 'eulr'; did you mean 'euler'? Known: euler, heun"
    )


def test_entry_points_are_loaded_on_the_first_miss_and_built_in_names_win(monkeypatch):
    asked = []

    def entry_points(group):
        asked.append(group)
        return [_Entry()]

    monkeypatch.setattr("mezzotint.registry.metadata.entry_points", entry_points)
    registry = Registry("gate", {"nsfw": "ours"}, group="mezzotint.gates")
    assert registry["nsfw"] == "ours"
    assert asked == []
    assert registry["plugged"] == "thing"
    assert "absent" not in registry
    assert asked == ["mezzotint.gates"]
    assert registry.names() == ("nsfw", "plugged")
