import numpy as np
import torch
from torch.nn import functional as F

from mezzotint.models.families.array_networks import SeriesUNet


def test_a_folded_series_is_a_shorter_one_of_more_channels():
    folded = SeriesUNet(2, (8, 8), fold=4)
    plain = SeriesUNet(8, (8, 8))
    plain.load_state_dict(folded.state_dict())
    sample = torch.randn(3, 2, 32, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([1.0, 500.0, 999.0])
    # value 4 i + j of channel c is value i of channel 4 c + j
    by_hand = np.stack([sample.numpy()[:, c, j::4] for c in range(2) for j in range(4)], 1)
    wanted = plain(torch.from_numpy(by_hand), timestep).detach().numpy()
    answer = folded(sample, timestep).detach().numpy()
    for c in range(2):
        for j in range(4):
            np.testing.assert_array_equal(answer[:, c, j::4], wanted[:, 4 * c + j])


def test_a_gated_block_is_wavenets_equation():
    network = SeriesUNet(1, (8, 8), fold=4, num_classes=3, gated=True)
    block = network.middle
    stream = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    vector = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    normal = F.group_norm(stream, 8, block.norm.weight, block.norm.bias)
    both = F.conv1d(normal, block.conv_1.weight, block.conv_1.bias, padding=2)
    both = both + F.linear(F.silu(vector), block.inject.weight, block.inject.bias)[:, :, None]
    passed = both[:, :8] * torch.sigmoid(both[:, 8:])
    wanted = stream + F.conv1d(passed, block.conv_2.weight, block.conv_2.bias)
    torch.testing.assert_close(block(stream, vector), wanted)


def test_gates_that_are_shut_leave_a_linear_network():
    network = SeriesUNet(1, (8, 8), fold=4, num_classes=3, gated=True)
    for part in network.modules():
        if hasattr(part, "inject"):
            part.inject.bias.data[part.inject.bias.shape[0] // 2 :] = -1e4
    label, timestep = torch.tensor([1]), torch.tensor([500.0])
    first, second = torch.randn(2, 1, 1, 32, generator=torch.Generator().manual_seed(0))
    answers = [network(x, timestep, label) for x in (first, second, first + second, 0 * first)]
    torch.testing.assert_close(answers[2] + answers[3], answers[0] + answers[1])


def test_a_network_is_rebuilt_from_its_configuration():
    network = SeriesUNet(1, (8, 8), fold=2, num_classes=3)
    again = SeriesUNet(**network.config)
    again.load_state_dict(network.state_dict())
    assert again.fold == 2


def test_a_configuration_from_before_the_gates_is_read():
    config = SeriesUNet(1, (8, 8), gated=True).config
    assert config.pop("gated") is True
    assert SeriesUNet(**config).config["gated"] is False
