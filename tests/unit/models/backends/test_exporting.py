import logging

import openvino
import pytest
import torch
from torch import nn

from mezzotint.models.backends.exporting import Exporter, row_key
from mezzotint.models.backends.openvino_backend import MAX_SHAPES, OpenVINONetwork
from mezzotint.models.networks import NetworkReady, TorchNetwork, preparing


class _Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        nn.init.constant_(self.layer.weight, 0.1)

    def forward(self, x):
        return nn.functional.interpolate(self.layer(x), scale_factor=2.0)


class _Placed(nn.Module):
    """Writes the size of the traced picture into its answer."""

    def forward(self, x):
        return x + torch.arange(x.shape[-1], dtype=torch.float32)[: int(x.shape[-1])] * 0.1


def network(module, cache, calls=None, **options):
    def build(dtype):
        if calls is not None:
            calls.append(dtype)
        return module

    source = TorchNetwork(build, lambda m, inputs: (m(inputs["latents"]),), digest="d")
    return OpenVINONetwork(source, role="decoder", cache=cache, **options)


def latents(height, width, rows=2):
    return torch.randn(rows, 3, height, width, generator=torch.Generator().manual_seed(height))


def test_one_export_and_one_compiled_network_serve_every_size(tmp_path):
    calls, module = [], _Convolution()
    found = network(module, tmp_path, calls)
    for height, width in ((16, 16), (32, 24), (8, 40)):
        x = latents(height, width)
        assert torch.allclose(found(latents=x)[0], module(x), atol=1e-5)
    assert len(list(tmp_path.glob("*.xml"))) == 1
    assert list(found._compiled) == [(("latents", "torch.float32", (3, -1, -1)),)]
    assert len(calls) == 1 and not found.source.is_built


def test_an_open_size_has_the_bits_of_a_network_made_for_the_size(tmp_path):
    module = _Convolution()
    opened, fixed = network(module, tmp_path / "a"), network(module, tmp_path / "b")
    fixed._exporter._fixed = True
    for rows in (1, 2, 5):
        x = latents(24, 16, rows)
        assert torch.equal(opened(latents=x)[0], fixed(latents=x)[0])
    assert list(fixed._compiled) == [(("latents", "torch.float32", (3, 24, 16)),)]


def test_a_network_that_holds_its_size_is_made_for_each_size_also_in_the_next_process(tmp_path):
    module = _Placed()
    for _ in range(2):
        found = network(module, tmp_path)
        for width in (16, 32):
            x = latents(16, width)
            assert torch.allclose(found(latents=x)[0], module(x), atol=1e-6)
        assert [key[0][2] for key in found._compiled] == [(3, 16, 16), (3, 16, 32)]
        assert found.notes == ()
    assert len(list(tmp_path.glob("*.xml"))) == 2
    assert len(list(tmp_path.glob("*.fixed"))) == 1


class _Counted(_Convolution):
    """Writes the number of the traced rows into its answer."""

    def forward(self, x):
        return super().forward(x) * len(x)


@pytest.mark.parametrize("side", [16, 9], ids=["open", "of one size"])
def test_a_network_that_holds_its_number_of_rows_runs_in_torch(tmp_path, side):
    module = _Counted()
    source = TorchNetwork(lambda _: module, lambda m, i: (m(i["latents"]),), digest="d")
    found = OpenVINONetwork(source, role="denoiser", cache=tmp_path)
    for rows in (1, 2, 4):
        x = latents(side, side, rows)
        assert torch.allclose(found(latents=x)[0], module(x), atol=1e-6)
    assert "answers others otherwise" in found.notes[0]
    assert not list(tmp_path.glob("*.xml"))


def test_sizes_that_the_levels_do_not_divide_are_made_for_themselves(tmp_path):
    source = TorchNetwork(
        lambda dtype: _Convolution(),
        lambda m, inputs: (m(inputs["latents"]),),
        digest="d",
        config={"block_out_channels": (1,) * 6},
    )
    exporter = Exporter(source, role="decoder", folder=tmp_path)
    for side, opened in ((32, -1), (64, -1), (16, 16), (40, 40)):
        key = row_key({"latents": latents(side, side)})
        assert exporter.open_key(key)[0][2] == (3, opened, opened)


def test_shapes_used_longest_ago_are_dropped_and_come_back_with_the_same_bits(tmp_path):
    found = network(_Convolution(), tmp_path)
    sizes = [(h, 9) for h in range(9, 9 + MAX_SHAPES + 2)]  # odd sides: one network each
    first = {size: found(latents=latents(*size))[0] for size in sizes}
    assert len(found._compiled) == MAX_SHAPES
    assert found.num_bytes == pytest.approx(MAX_SHAPES * 4 * (3 * 3 * 9 + 3), rel=0.1)
    assert all(torch.equal(found(latents=latents(*size))[0], first[size]) for size in sizes)
    assert len(found._compiled) == MAX_SHAPES


def test_the_folder_stays_within_its_bytes_and_what_is_new_is_kept(tmp_path):
    found = network(_Convolution(), tmp_path)
    found(latents=latents(9, 9))
    one = sum(p.stat().st_size for p in tmp_path.iterdir())
    bounded = network(_Convolution(), tmp_path, cache_bytes=int(2.5 * one))
    for height in range(10, 14):
        bounded(latents=latents(height, 9))
    exports = sorted(tmp_path.glob("*.xml"))
    assert len(exports) == 2 and all(p.with_suffix(".bin").is_file() for p in exports)


def test_preparing_an_open_size_computes_nothing(tmp_path):
    found = network(_Convolution(), tmp_path)
    with preparing(), pytest.raises(NetworkReady):
        found(latents=latents(16, 16))
    assert list(found._compiled)


def test_an_export_without_a_folder_stays_in_memory():
    source = TorchNetwork(
        lambda dtype: _Convolution(), lambda m, inputs: (m(inputs["latents"]),), digest="d"
    )
    exporter = Exporter(source, role="decoder", folder=None)
    model, key = exporter.export(openvino.Core(), {"latents": latents(16, 16)})
    assert isinstance(model, openvino.Model) and key[0][2] == (3, -1, -1)


class _SquaresAlone(_Convolution):
    def forward(self, x):
        if x.shape[-1] != x.shape[-2]:
            raise RuntimeError("shape is invalid for input")
        return super().forward(x)


def test_a_network_that_takes_squares_alone_is_made_for_each_size(tmp_path):
    module = _SquaresAlone()
    found = network(module, tmp_path)
    x = latents(16, 16)
    assert torch.allclose(found(latents=x)[0], module(x), atol=1e-5)
    assert found.notes == ()
    assert [key[0][2] for key in found._compiled] == [(3, 16, 16)]


class _Talking(nn.Module):
    """Has a property that logs when it is read, as networks of transformers do."""

    @property
    def loss_function(self):
        logging.getLogger("transformers.made_up").warning("unrecognized")
        return torch.sum

    def forward(self, x):
        return x + 1


def test_what_a_network_says_when_the_tracer_looks_at_it_is_not_heard(tmp_path):
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    try:
        _Talking().loss_function  # noqa: B018 - it is heard otherwise
        x = latents(16, 16)
        assert torch.equal(network(_Talking(), tmp_path)(latents=x)[0], x + 1)
        assert logger.level == logging.WARNING
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert heard == ["unrecognized"]


def test_inputs_are_read_anew_by_every_call_whatever_their_size(tmp_path):
    module = _Convolution()
    found = network(module, tmp_path)
    small, large = latents(16, 16), latents(96, 96)  # the latter are read where they lie
    expected = {small: module(small), large: module(large)}
    for x in (small, large, small, large, small):
        assert torch.allclose(found(latents=x)[0], expected[x], atol=1e-5)
    other = small + 1
    assert torch.allclose(found(latents=other)[0], module(other), atol=1e-5)
    before = other.clone()
    assert torch.allclose(found(latents=small)[0], expected[small], atol=1e-5)
    assert torch.equal(other, before)


def test_a_disk_without_room_keeps_the_network_in_memory_and_says_so(tmp_path, monkeypatch):
    module = _Convolution()
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr("mezzotint.models.backends.exporting.shutil.disk_usage", lambda _: usage)
    found = network(module, tmp_path)
    for width in (16, 24, 9):
        x = latents(16, width)
        assert torch.allclose(found(latents=x)[0], module(x), atol=1e-6)
    assert "the disk has 1 MB left; it stays in memory" in found.notes[0]
    assert "torch" not in found.notes[0]
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_a_network_is_written_leaves_no_part_of_it(tmp_path, monkeypatch):
    import openvino

    def save(model, path, **options):
        path.with_suffix(".bin").write_bytes(b"half")
        raise RuntimeError("basic_ios::clear: iostream error")

    monkeypatch.setattr(openvino, "save_model", save)
    module, x = _Convolution(), latents(16, 16)
    found = network(module, tmp_path)
    assert torch.allclose(found(latents=x)[0], module(x), atol=1e-6)
    assert "iostream error; it stays in memory" in found.notes[0]
    assert not list(tmp_path.iterdir())
