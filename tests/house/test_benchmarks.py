"""Every benchmark imports: what it takes from the package and from the tests is there."""

import importlib
from pathlib import Path

import pytest

BENCH = sorted(p.stem for p in (Path(__file__).parents[2] / "bench").glob("*.py"))


@pytest.mark.parametrize("name", BENCH)
def test_a_benchmark_finds_what_it_imports(name):
    module = importlib.import_module(f"bench.{name}")
    assert name.startswith("_") or callable(module.main)
