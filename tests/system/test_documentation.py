"""The tutorials as a person does them: every command, for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.documentation import ROOT, commands, pages

PROGRAMS = {
    "mezzotint": [Path(sys.executable).with_name("mezzotint")],
    "python": [sys.executable],
}
SLOW = [page for page in pages() if any(command.level == "slow" for command in commands(page))]


@pytest.fixture(scope="module")
def home(tmp_path_factory, share_exports):
    return share_exports(tmp_path_factory.mktemp("docs") / "home")


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=lambda path: path.stem)
def test_a_tutorial_does_what_it_says(page, home, tmp_path):
    for name in ("bench", "training"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "MEZZOTINT_HOME": str(home)}
    for level, words in commands(page):
        if level != "parse" and words[0] in PROGRAMS:
            done = subprocess.run(
                [*PROGRAMS[words[0]], *words[1:]],
                capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{' '.join(words)}: {done.stderr[-2000:]}"
