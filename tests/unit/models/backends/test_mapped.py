import mmap
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mezzotint.models.backends import mapped
from mezzotint.models.backends.mapped import give_back, giving_back
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.networks import TorchNetwork

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="madvise of Linux")

SIZE = 1 << 20


def resident_kb(path):
    """Return the memory that mappings of a file take in this process."""
    total, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and not fields[0].endswith(":"):
            is_ours = line.endswith(str(path))
        elif is_ours and fields[0] == "Rss:":
            total += int(fields[1])
    return total


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "constants.bin"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def test_pages_that_were_read_go_and_what_they_hold_stays(file):
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        first = bytes(view)
        assert resident_kb(file) == SIZE // 1024
        assert give_back(file) == SIZE
        assert resident_kb(file) == 0
        assert bytes(view) == first


def test_a_mapping_that_can_be_written_to_is_left_alone(file):
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[:4] = b"ours"
        assert give_back(file) == 0
        assert view[:4] == b"ours"


def test_a_private_mapping_is_touched_where_nobody_writes_and_nothing_was_written(file):
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        first = bytes(view)
        assert resident_kb(file) == SIZE // 1024
        assert give_back(file, is_untouched=True) == SIZE
        assert resident_kb(file) == 0
        assert bytes(view) == first
        view[:4] = b"ours"
        assert give_back(file, is_untouched=True) == 0
        assert view[:4] == b"ours"


@pytest.mark.parametrize(("least", "left_kb"), [(0, 0), (2 * SIZE, SIZE // 1024)])
def test_pages_of_a_large_file_are_given_back_when_the_block_ends(
    file, monkeypatch, least, left_kb
):
    monkeypatch.setattr(mapped, "_LEAST_BYTES", least)
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        with giving_back(file):
            assert len(bytes(view)) == SIZE
        assert resident_kb(file) == left_kb


def test_a_file_that_is_gone_and_no_file_are_nothing_to_give_back(tmp_path):
    with giving_back(tmp_path / "gone.bin"), giving_back(None):
        pass
    assert give_back(tmp_path / "gone.bin") == 0


def test_a_network_counts_once_after_its_first_call_and_answers_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "_LEAST_BYTES", 0)
    module = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    source = TorchNetwork(lambda _: module, lambda m, x: (m(x["rows"]),), digest="d")
    network = OpenVINONetwork(source, role="denoiser", cache=tmp_path)
    rows = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    first = network(rows=rows)[0]
    (weights,) = tmp_path.glob("*.bin")
    assert weights.stat().st_size > 2 << 20
    assert resident_kb(weights) <= 64
    assert torch.equal(network(rows=rows)[0], first)
    assert torch.allclose(first, module(rows), atol=1e-4)
