"""The end of a process: its code, what it said, and what others had to do at the end."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from mezzotint.cli import main
atexit.register(lambda: print("before", file=sys.stderr))  # before ours: not told

def verb(arguments):
    import torch
    atexit.register(lambda: print("told", file=sys.stderr))
    print("a" * 100_000, end="")
    {last}

main._run = verb
main.main()
"""


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        ("return 2", 2, "told\n"),
        ("return 0", 0, "told\n"),
        ("raise SystemExit(7)", 7, "told\nbefore\n"),  # as a signal has it: Python's own end
    ],
)
def test_a_process_with_torch_ends_at_once_with_its_code_and_all_that_it_said(last, code, said):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(last=last)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, said)
    assert done.stdout == "a" * 100_000
