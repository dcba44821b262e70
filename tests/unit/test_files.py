import errno
import hashlib
import os

import pytest

from mezzotint.files import atomic_path, digest_file, expanded, is_there, write_atomically


def test_write_atomically_replaces_the_old_content_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    assert write_atomically(path, b"new") == path
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"), atomic_path(path) as partial:
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_interrupt_leaves_nothing_half_written(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "a.bin") as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["x" * 10_000, "/" + "y" * 300, "a\0b", "~nobody-here/x", "a/" * 9000]
)
def test_a_name_that_no_file_can_have_is_not_there(name):
    assert not is_there(expanded(name))


def test_what_is_there_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_there(tmp_path)
    assert expanded("~/a") == tmp_path / "a"


def test_digest_file_is_the_sha256_of_the_content(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 3_000_000)
    assert digest_file(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()
