"""Tests can be found: the test of ``a/b.py`` is ``tests/unit/a/test_b.py``, or says where it is."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "mezzotint"
UNIT = ROOT / "tests" / "unit"


@pytest.mark.parametrize(
    "path", sorted(UNIT.rglob("test_*.py")), ids=lambda p: str(p.relative_to(UNIT))
)
def test_a_test_stands_where_its_module_stands_or_says_which_it_tests(path):
    own = path.relative_to(UNIT).with_name(path.name.removeprefix("test_"))
    if (SOURCE / own).is_file():
        return
    named = re.findall(
        r"\bmezzotint(?:\.\w+)+", ast.get_docstring(ast.parse(path.read_text())) or ""
    )
    assert named, f"there is no src/mezzotint/{own}, and the docstring names no module"
    for name in named:
        place = SOURCE.parent / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), f"there is no {name}"
