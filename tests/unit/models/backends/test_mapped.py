import gc
import mmap
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mezzotint.models.backends import mapped
from mezzotint.models.backends.mapped import (
    give_back_pages,
    give_back_untouched,
    giving_back,
    largest_constant,
)
from mezzotint.models.backends.openvino_backend import OpenVINONetwork
from mezzotint.models.backends.quiet import import_openvino
from mezzotint.models.formats import filling
from mezzotint.models.formats.filling import LeavingPages
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


def address_of(view):
    """Return where a mapping begins."""
    return np.frombuffer(view, np.uint8).ctypes.data


def test_pages_that_were_read_go_and_what_they_hold_stays(file):
    with file.open("rb") as stream:
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    first = bytes(view)
    assert resident_kb(file) == SIZE // 1024
    give_back_pages(address_of(view), SIZE)
    assert resident_kb(file) == 0
    assert bytes(view) == first


def test_a_private_mapping_goes_where_nothing_was_written_and_stays_where_something_was(file):
    with file.open("rb") as stream:
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    first, place = bytes(view), address_of(view)
    assert resident_kb(file) == SIZE // 1024
    assert give_back_untouched(place, SIZE)
    assert resident_kb(file) == 0
    assert bytes(view) == first
    view[5 * mmap.PAGESIZE : 5 * mmap.PAGESIZE + 4] = b"ours"
    assert not give_back_untouched(place, SIZE)
    assert view[5 * mmap.PAGESIZE : 5 * mmap.PAGESIZE + 4] == b"ours"
    assert give_back_untouched(place, 5 * mmap.PAGESIZE)  # the pages before it


def test_memory_of_no_file_is_left_alone():
    own = np.ones(SIZE, np.uint8)
    assert not give_back_untouched(own.ctypes.data, SIZE)
    with giving_back(own):
        pass
    assert own.min() == 1


@pytest.mark.parametrize(("least", "left_kb"), [(0, 0), (2 * SIZE, SIZE // 1024)])
def test_pages_of_a_large_file_are_given_back_when_the_block_ends(
    file, monkeypatch, least, left_kb
):
    monkeypatch.setattr(mapped, "_LEAST_BYTES", least)
    with file.open("rb") as stream:
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    with giving_back(np.frombuffer(view, np.uint8)):
        assert len(bytes(view)) == SIZE
    assert resident_kb(file) == left_kb


def test_what_can_be_written_to_and_nothing_at_all_are_left_alone(file, monkeypatch):
    monkeypatch.setattr(mapped, "_LEAST_BYTES", 0)
    with file.open("rb") as stream:
        view = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    view[:4] = b"ours"
    with giving_back(np.frombuffer(view, np.uint8)), giving_back(None):
        pass
    assert view[:4] == b"ours"


def test_only_what_is_held_is_given_back(file, monkeypatch):
    """Another mapping may go at any moment, and new memory may lie in its place."""
    monkeypatch.setattr(mapped, "_LEAST_BYTES", 0)
    monkeypatch.setattr(mapped, "_EVERY_S", 0.001)
    given: set[tuple[int, int]] = set()
    monkeypatch.setattr(mapped, "give_back_pages", lambda *place: given.add(place))
    with file.open("rb") as stream:
        view, other = (mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) for _ in range(2))
    with giving_back(np.frombuffer(view, np.uint8)):
        time.sleep(0.05)
        other.close()
    assert given == {(address_of(view), SIZE)}


def test_the_largest_constant_keeps_its_file_mapped_when_the_model_is_gone(tmp_path):
    openvino = pytest.importorskip("openvino")
    ops = import_openvino().opset13
    given = ops.parameter([-1, 512], np.float32)
    large = np.arange(512 * 512, dtype=np.float32).reshape(512, 512)
    product = ops.matmul(ops.add(given, np.ones((1, 512), np.float32)), large, False, False)
    openvino.save_model(
        openvino.Model([product], [given]), tmp_path / "m.xml", compress_to_fp16=False
    )
    model = openvino.Core().read_model(tmp_path / "m.xml")
    held = largest_constant(model)
    del model
    gc.collect()
    assert np.array_equal(held, large)
    assert str(tmp_path / "m.bin") in Path("/proc/self/maps").read_text()
    del held
    gc.collect()
    assert str(tmp_path / "m.bin") not in Path("/proc/self/maps").read_text()


def test_weights_that_are_converted_leave_memory_one_by_one(tmp_path):
    path = tmp_path / "w.safetensors"
    halves = {f"{k}.weight": torch.full((1024, 1024), 0.5 + k).half() for k in range(4)}
    save_file(halves, path)
    left: list[int] = []
    state = load_file(path)
    with LeavingPages():
        for k in range(4):
            wide = state[f"{k}.weight"].to(torch.float32)
            assert wide.unique().tolist() == [0.5 + k]
            left.append(resident_kb(path))
    assert max(left) <= 256  # of 2048 each: the system maps a few pages around one that is read
    assert torch.equal(state["0.weight"], halves["0.weight"])


def test_of_a_weight_that_is_spread_out_nothing_is_given_back(tmp_path, monkeypatch):
    given: list[int] = []
    monkeypatch.setattr(filling, "give_back_untouched", lambda _, size: given.append(size))
    row, whole = torch.ones(1024).half(), torch.ones(1024, 1024).half()
    with LeavingPages():
        assert row.expand(2048, 1024).to(torch.float32).sum() == 2048 * 1024  # of one row's memory
        whole.t().to(torch.float32)
        whole.to_sparse().to(torch.float32)
        whole.to(torch.float32)
    assert given == [whole.nbytes]


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
