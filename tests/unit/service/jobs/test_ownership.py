"""One server for each folder of jobs: the second one is told who the first is."""

import os
import subprocess
import sys

import pytest

from mezzotint.service.jobs.ownership import FolderOwner, FolderTaken

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no such lock")
HOLD = """
import sys
from pathlib import Path
from mezzotint.service.jobs.ownership import FolderOwner
owner = FolderOwner(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_by_name_until_the_first_is_gone(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(FolderTaken, match=f"belong to another server, process {first.pid} on"):
            FolderOwner(tmp_path)
        first.kill()  # nothing is left behind to clean up
        first.wait()
    owner = FolderOwner(tmp_path)
    with pytest.raises(FolderTaken, match=f"process {os.getpid()} on"):
        FolderOwner(tmp_path)
    owner.release()
    FolderOwner(tmp_path).release()
