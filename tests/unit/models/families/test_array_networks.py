import numpy as np
import torch

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


def test_a_network_is_rebuilt_from_its_configuration():
    network = SeriesUNet(1, (8, 8), fold=2, num_classes=3)
    again = SeriesUNet(**network.config)
    again.load_state_dict(network.state_dict())
    assert again.fold == 2
