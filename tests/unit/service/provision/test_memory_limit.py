"""The memory a process may have is its control group's, where that is less than the machine's."""

import os

import pytest

from mezzotint.service.provision import memory_limit as host
from mezzotint.service.provision import model_provider as provider
from mezzotint.service.provision.memory_limit import group_limit, memory_limit

NO_LIMIT_V1 = 9223372036854771712  # what the kernel writes: 2**63 - 1 rounded down to pages


def groups(tmp_path, text):
    path = tmp_path / "cgroup"
    path.write_text(text)
    return path


def test_version_two_takes_the_smallest_limit_on_the_way_up(tmp_path):
    root = tmp_path / "fs"
    for name, text in [("a/b/memory.max", "max"), ("a/memory.max", "4096"), ("memory.max", "8192")]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    assert group_limit(groups(tmp_path, "0::/a/b\n"), root) == 4096
    assert group_limit(groups(tmp_path, "0::/\n"), root) == 8192


def test_version_one_is_read_below_its_own_controller(tmp_path):
    path = tmp_path / "fs" / "memory" / "docker" / "1" / "memory.limit_in_bytes"
    path.parent.mkdir(parents=True)
    path.write_text("65536\n")
    (tmp_path / "fs" / "memory" / "memory.limit_in_bytes").write_text(f"{NO_LIMIT_V1}\n")
    text = "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/init\n"
    assert group_limit(groups(tmp_path, text), tmp_path / "fs") == 65536


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    (tmp_path / "fs" / "memory").mkdir(parents=True)
    (tmp_path / "fs" / "memory" / "memory.limit_in_bytes").write_text("65536\n")
    text = "4:memory:/kubepods/pod1/not-mounted-here\n"
    assert group_limit(groups(tmp_path, text), tmp_path / "fs") == 65536


@pytest.mark.parametrize("text", ["0::/\n", "", "nonsense", "0::/../../outside\n"])
def test_without_a_limit_there_is_none(tmp_path, text):
    (tmp_path / "memory.max").write_text("1\n")  # above the root: not ours
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs" / "memory.max").write_text("max\n")
    assert group_limit(groups(tmp_path, text), tmp_path / "fs") is None
    assert group_limit(tmp_path / "nothing", tmp_path / "nowhere") is None


def test_the_budget_is_half_of_the_smaller(monkeypatch):
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(host, "group_limit", lambda: 1 << 30)
    assert provider.memory_budget(0, "cpu") == 1 << 29
    assert provider.memory_budget(77, "cpu") == 77
    for limit in (None, NO_LIMIT_V1):
        monkeypatch.setattr(host, "group_limit", lambda limit=limit: limit)
        assert memory_limit() == machine
        assert provider.memory_budget(0, "cpu") == machine // 2
