"""The models inside the package: whole, small, and as their cards say."""

import pytest

from mezzotint.models.cards import CARDS_FOLDER, builtin_cards, measure_card

MAX_FILE_BYTES, MAX_BYTES = 45_000_000, 80_000_000


@pytest.mark.parametrize("name", sorted(builtin_cards()))
def test_digests_in_a_card_are_those_of_the_files(name):
    """After new weights: python -m mezzotint.models.cards plate plate-quick plate-gan."""
    card = builtin_cards()[name]
    if card.sha256:
        assert dict(card.sha256) == dict(measure_card(CARDS_FOLDER / f"{name}.toml").sha256)


def test_all_built_in_files_together_stay_small():
    files = [p for p in (CARDS_FOLDER.parent / "builtin").rglob("*") if p.is_file()]
    assert max(p.stat().st_size for p in files) <= MAX_FILE_BYTES
    assert sum(p.stat().st_size for p in files) <= MAX_BYTES
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".txt", ".md"}
