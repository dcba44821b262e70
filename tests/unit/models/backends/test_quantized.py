"""Int8: ranges are those of what flows, weights the nearest steps, and both are kept on disk."""

import logging

import numpy as np
import pytest
import torch
from tests import tiny
from tests.ranges import find_ranges
from torch import nn

from mezzotint.models.backends.exporting import Exporter
from mezzotint.models.backends.openvino_backend import OpenVINONetwork, constants
from mezzotint.models.backends.quantized import Int8Network
from mezzotint.models.networks import TorchNetwork

openvino = pytest.importorskip("openvino")


@pytest.mark.parametrize("in_file", [True, False])
def test_ranges_are_the_lowest_and_the_highest_of_all_calls(tmp_path, in_file):
    with tiny.seeded(0):
        convolution, linear = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
    module = nn.Sequential(convolution, nn.SiLU(), nn.Flatten(2), linear).requires_grad_(False)
    linear.forward = lambda x: nn.functional.linear(x.transpose(1, 2), linear.weight, linear.bias)
    source = TorchNetwork(lambda _: module, lambda m, i: (m(i["x"]),), digest="d" * in_file)
    network = OpenVINONetwork(source, role="denoiser", cache=tmp_path if in_file else None)
    generator = torch.Generator().manual_seed(0)
    calls = [{"x": k * torch.randn((2, 3, 8, 8), generator=generator)} for k in (1.0, 3.0, 0.5)]
    found = sorted(find_ranges(network, calls).values())
    seen = [torch.cat([call["x"].flatten() for call in calls])]
    seen.append(torch.cat([nn.functional.silu(convolution(c["x"])).flatten() for c in calls]))
    wanted = sorted((float(values.min()), float(values.max())) for values in seen)
    assert found[0] == wanted[0]  # the input itself, bit for bit
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)


class Layers(nn.Module):
    """A convolution and a product."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)).flatten(2).transpose(1, 2))


def source(seed=0):
    with tiny.seeded(seed):
        module = Layers().requires_grad_(False)
    return TorchNetwork(lambda _: module, lambda m, i: (m(i["x"]),), digest=f"seed {seed}")


X = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
RANGES = find_ranges(OpenVINONetwork(source(), role="denoiser"), [{"x": X}])


def rounded(cache, *, seed=0, ranges=RANGES, cache_bytes=0, is_narrow=False):
    return Int8Network(
        source(seed), ranges=ranges, is_narrow=is_narrow, role="denoiser", cache=cache,
        cache_bytes=cache_bytes,
    )  # fmt: skip


def made(cache):
    """The int8 networks of a folder."""
    return sorted(path.with_suffix(".xml") for path in cache.glob("*.seal"))


def refuse(*_, **__):
    raise AssertionError("what is in the folder was made again")


@pytest.mark.parametrize(("is_narrow", "most"), [(False, 127), (True, 64)])
def test_weights_are_the_nearest_steps_of_each_output_channel(tmp_path, is_narrow, most):
    rounded(tmp_path, is_narrow=is_narrow)(x=X)
    graph = openvino.Core().read_model(made(tmp_path)[0])
    module = source().module
    wanted = [module.first.weight.flatten(1), module.second.weight]
    numbers = [n.data for n in constants(graph) if n.data.dtype == np.int8]
    assert len(numbers) == 2
    for weight in wanted:
        largest = weight.abs().amax(dim=1, keepdim=True)
        steps = (weight / (largest / most)).round().to(torch.int8)
        found = next(n for n in numbers if n.size == weight.numel())
        found = torch.as_tensor(found.copy()).reshape(len(weight), -1)
        assert torch.equal(found, steps)


def test_a_second_start_reads_what_the_first_rounded_and_answers_the_same_bytes(
    tmp_path, monkeypatch
):
    (alone,) = rounded(None)(x=X)
    (first,) = rounded(tmp_path)(x=X)
    for path in tmp_path.glob("*"):  # the float32 export is not needed
        if path.with_suffix(".xml") not in made(tmp_path):
            path.unlink()
    monkeypatch.setattr(Exporter, "export", refuse)
    monkeypatch.setattr("mezzotint.models.backends.quantized.quantize", refuse)
    again = rounded(tmp_path)
    (second,) = again(x=X)
    assert torch.equal(first, alone)
    assert torch.equal(second, alone)
    assert not again.notes


def spoil_weights(path, _):
    data = bytearray(path.with_suffix(".bin").read_bytes())
    data[len(data) // 2] ^= 1
    path.with_suffix(".bin").write_bytes(data)


def cut_weights_off(path, _):
    path.with_suffix(".bin").write_bytes(path.with_suffix(".bin").read_bytes()[:-1])


def spoil_the_graph(path, _):
    path.write_bytes(path.read_bytes().replace(b'"256"', b'"255"', 1))


def put_anothers_there(path, other):
    for suffix in (".xml", ".bin", ".seal"):
        path.with_suffix(suffix).write_bytes(other.with_suffix(suffix).read_bytes())


def lose_the_seal(path, _):
    path.with_suffix(".seal").unlink()


def write_no_json(path, _):
    path.with_suffix(".seal").write_bytes(b"\xff{")


def lose_the_weights(path, _):
    path.with_suffix(".bin").unlink()


@pytest.mark.parametrize(
    "spoil",
    [spoil_weights, cut_weights_off, spoil_the_graph, put_anothers_there, lose_the_seal,
     write_no_json, lose_the_weights],
)  # fmt: skip
def test_what_is_not_what_was_written_is_thrown_away_with_a_warning(tmp_path, caplog, spoil):
    folder, elsewhere = tmp_path / "own", tmp_path / "other"
    (wanted,) = rounded(folder)(x=X)
    rounded(elsewhere, seed=1)(x=X)
    (path,), (other,) = made(folder), made(elsewhere)
    written = path.with_suffix(".bin").read_bytes()
    spoil(path, other)
    with caplog.at_level(logging.WARNING, logger="mezzotint"):
        (found,) = rounded(folder)(x=X)
    assert torch.equal(found, wanted)
    assert [r.getMessage() for r in caplog.records] == ["network.damaged"]
    assert path.with_suffix(".bin").read_bytes() == written
    caplog.clear()
    rounded(folder)(x=X)
    assert not caplog.records


def test_other_ranges_weights_and_levels_are_other_files(tmp_path):
    wider = {layer: (low - 1, high + 1) for layer, (low, high) in RANGES.items()}
    rounded(tmp_path)(x=X)
    rounded(tmp_path, ranges=wider)(x=X)
    rounded(tmp_path, seed=1)(x=X)
    rounded(tmp_path, is_narrow=True)(x=X)
    assert len(made(tmp_path)) == 4


def test_int8_networks_take_their_share_of_the_folders_bytes(tmp_path):
    rounded(tmp_path)(x=X)
    (old,) = made(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    rounded(tmp_path, seed=1, cache_bytes=size)(x=X)
    assert len(made(tmp_path)) == 1
    assert not any(old.with_suffix(suffix).exists() for suffix in (".xml", ".bin", ".seal"))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= size * 1.01
