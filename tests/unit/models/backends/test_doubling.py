"""The rearranged last layer of a generator against torch's own transposed convolution."""

import pytest
import torch
from torch import nn

from mezzotint.models.backends.doubling import ShuffledDoubling, rearranged


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 3), (5, 1), (2, 4)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (16, 16)])
def test_it_answers_what_the_transposed_convolution_answers(inputs, outputs, bias, size):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=bias).double()
    x = torch.randn(3, inputs, *size, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ShuffledDoubling(layer)(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 4, 4, 1, 0),
        nn.ConvTranspose2d(4, 4, 3, 2, 1),
        nn.ConvTranspose2d(4, 4, 4, 2, 1, output_padding=1),
        nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=2),
    ],
)
def test_another_kind_of_layer_is_refused(layer):
    with pytest.raises(ValueError, match="kernel 4, stride 2"):
        ShuffledDoubling(layer)


def test_a_generators_last_layer_alone_is_rearranged_and_in_a_copy():
    module = nn.Sequential(
        nn.ConvTranspose2d(8, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(16, 3, 4, 2, 1)),
    )
    copy = rearranged(module)
    assert isinstance(copy[0], nn.ConvTranspose2d)
    assert isinstance(copy[2][0], ShuffledDoubling)
    assert isinstance(module[2][0], nn.ConvTranspose2d)
    x = torch.randn(2, 8, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(copy(x), module(x))


def test_a_module_without_such_layers_is_left_as_it_is():
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ConvTranspose2d(4, 64, 4, 2, 1))
    assert rearranged(module) is module


def test_making_it_draws_nothing_from_torchs_generator():
    layer = nn.ConvTranspose2d(2, 3, 4, 2, 1)
    before = torch.get_rng_state()
    ShuffledDoubling(layer)
    assert torch.equal(torch.get_rng_state(), before)
