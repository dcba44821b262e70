import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *arguments):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_mixture_comes_out_of_every_solver_that_the_example_shows():
    lines = run("mixture.py").splitlines()
    assert len(lines) == 4
    for line in lines:
        weight, mean = (float(line.split(word)[1].split()[0]) for word in ("weight", "mean"))
        assert abs(weight - 0.25) < 0.02
        assert abs(mean + 2) < 0.15


@pytest.mark.slow
def test_the_generate_example_draws_the_same_bytes_twice(tmp_path):
    assert "the same bytes: True" in run("generate.py", tmp_path)
    assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_many_at_once_changes_no_byte():
    assert run("many_at_once.py").count("together: True") == 3
