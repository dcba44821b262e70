"""Pictures on disk: damage is repaired, names outlive a loss of power, nobody else reads them."""

import os
import stat
import sys
from pathlib import Path

import pytest

from mezzotint.service.jobs.results import ResultFiles
from mezzotint.service.objects import FolderObjects

DATA = b"a picture"


def path_of(files: ResultFiles, digest: str) -> Path:
    return files.objects.path(f"{digest[:2]}/{digest}")


unix = pytest.mark.skipif(sys.platform == "win32", reason="folders are not synced there")


def test_put_repairs_a_damaged_file_of_the_same_length(tmp_path):
    files = ResultFiles(FolderObjects(tmp_path / "results"))
    digest = files.put(DATA)
    path_of(files, digest).write_bytes(b"a pictuRE")
    assert files.get(digest) is None
    assert files.put(DATA) == digest
    assert files.get(digest) == DATA


@unix
def test_the_folder_of_a_new_name_is_synced_after_the_rename(tmp_path, monkeypatch):
    synced: list[Path] = []
    real = os.fsync

    def sync(number: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{number}")))
        real(number)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("what a descriptor is open on is read from /proc")
    monkeypatch.setattr(os, "fsync", sync)
    files = ResultFiles(FolderObjects(tmp_path / "results"))
    path = path_of(files, files.put(DATA))
    folders = [p for p in synced if p.is_dir()]
    assert folders == [tmp_path / "results", path.parent]
    assert synced[-1] == path.parent


@unix
def test_kept_pictures_are_their_owners_alone(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir(mode=0o755)
    ResultFiles(FolderObjects(folder)).put(DATA)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
