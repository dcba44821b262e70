"""docs/security.md names tests that exist and settings that can be set."""

import re
from pathlib import Path

from mezzotint.settings import known_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text()


def test_every_promise_names_tests_that_exist():
    rows = [line for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) >= 14
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)`", row.split("|")[3])
        assert tests, row
        assert [test for test in tests if not (ROOT / test).is_file()] == []


def test_every_setting_it_names_exists():
    rooms = "serve|engine|jobs|images|models"
    named = set(re.findall(rf"`((?:{rooms})(?:\.\w+)+)\b", TEXT))
    assert "engine.share_results" in named
    assert named - set(known_settings()) == set()


def test_whoever_finds_a_weakness_is_told_where_to_go():
    assert "privately" in (ROOT / "SECURITY.md").read_text()
