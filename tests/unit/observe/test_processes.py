import os
import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.observe.processes import resident_bytes, tree_bytes

BLOCK = 64 << 20
HOLD = f"block = b'x' * {BLOCK}; print('held', flush=True); input()"
NEST = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', sys.argv[1]]); "
    "child.wait()"
)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not say")
def test_the_memory_of_a_tree_holds_that_of_children_and_of_theirs_while_they_live():
    before = tree_bytes()
    assert before >= resident_bytes() * 0.9
    child = subprocess.Popen(
        [sys.executable, "-c", NEST, HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        during = tree_bytes()
    finally:
        child.communicate("\n")
    assert BLOCK <= during - before < 4 * BLOCK
    assert tree_bytes() - before < BLOCK


def test_a_process_that_is_gone_has_no_memory():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert resident_bytes(child.pid) == 0
    assert resident_bytes(os.getpid()) in (0, pytest.approx(resident_bytes(), rel=0.2))
