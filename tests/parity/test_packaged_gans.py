"""Two GANs that PyPI packages carry, through Mezzotint and run directly: the same pixels."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mezzotint.images.codec import to_pixels
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.gan import load_gan
from mezzotint.models.formats.checkpoint_scan import import_gan
from mezzotint.types import Size

SEEDS = [0, 1, 2, 3, 7, 42, 1234, 2**31, 2**53 + 1, 2**64 - 1]


def package_file(package, name):
    spec = importlib.util.find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed (./dev setup installs it)")
    return Path(spec.submodule_search_locations[0]) / name


class TutorialGenerator(nn.Module):
    """The network of gan-face-generate, written down once more."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(100, 512, 4, 1, 0, bias=False),
            nn.BatchNorm2d(512),
            nn.ReLU(True),
            nn.ConvTranspose2d(512, 256, 4, 2, 1, bias=False),
            nn.BatchNorm2d(256),
            nn.ReLU(True),
            nn.ConvTranspose2d(256, 128, 4, 2, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(True),
            nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(True),
            nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, latents):
        return self.main(latents[:, :, None, None])


class FacesGenerator(nn.Module):
    """generateme's DCGAN: the same layers under other names."""

    def __init__(self):
        super().__init__()
        widths = [100, 512, 256, 128, 64, 3]
        for k in range(5):
            stride, padding = (1, 0) if k == 0 else (2, 1)
            layer = nn.ConvTranspose2d(widths[k], widths[k + 1], 4, stride, padding, bias=False)
            setattr(self, f"convTr{k + 1}", layer)
            if k < 4:
                setattr(self, f"batchNorm{k + 1}", nn.BatchNorm2d(widths[k + 1]))

    def forward(self, latents):
        x = latents[:, :, None, None]
        for k in range(1, 5):
            x = F.relu(getattr(self, f"batchNorm{k}")(getattr(self, f"convTr{k}")(x)))
        return torch.tanh(self.convTr5(x))


class GreyPerceptron(nn.Module):
    """generateme's linear generator: 64x64 grey."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(100, 256)
        self.fc2 = nn.Linear(256, 512)
        self.fc3 = nn.Linear(512, 1024)
        self.fc4 = nn.Linear(1024, 64 * 64)

    def forward(self, latents):
        x = F.leaky_relu(self.fc1(latents), 0.2)
        x = F.leaky_relu(self.fc2(x), 0.2)
        x = F.leaky_relu(self.fc3(x), 0.2)
        return torch.tanh(self.fc4(x)).reshape(-1, 1, 64, 64).expand(-1, 3, -1, -1)


CASES = {
    "faces": ("gan_face_generate", "weights.tar", TutorialGenerator, "netG_state_dict"),
    "people": ("generateme", "static/Models/dcGanGeneratorModel.pt", FacesGenerator, None),
    "grey": ("generateme", "static/Models/linearGanGeneratorModel.pt", GreyPerceptron, None),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """The network as its authors run it, and the model that we made of its file."""
    package, name, network, key = CASES[request.param]
    path = package_file(package, name)
    state = torch.load(path, weights_only=True, map_location="cpu")
    oracle = network()
    oracle.load_state_dict(state[key] if key else state)
    folder = import_gan(path, tmp_path_factory.mktemp(request.param))
    return oracle.eval(), load_gan(folder, name=request.param)


def latents_of(model, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *model.latent_shape(Size(64, 64)), generator=generator)


def test_ten_seeds_give_the_pixels_of_the_network_itself(pair):
    oracle, model = pair
    for seed in SEEDS:
        noise = torch.randn(1, 100, 1, 1, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = oracle(noise[:, :, 0, 0])
        picture = model.decode(latents_of(model, seed), model.encode([Prompt()])[0])
        assert np.array_equal(to_pixels(picture.numpy()), to_pixels(expected.numpy()))


def test_an_image_of_a_batch_is_that_seeds_image_alone(pair):
    _, model = pair
    latents = torch.cat([latents_of(model, 5 + k) for k in range(7)])
    together = model.decode(latents, Conditioning.stack(model.encode([Prompt()] * 7)))
    alone = [model.decode(latents[k : k + 1], model.encode([Prompt()])[0]) for k in range(7)]
    assert torch.equal(together, torch.cat(alone))
    assert together.shape == (7, 3, 64, 64)


def test_pictures_differ_from_seed_to_seed_and_fill_the_range(pair):
    _, model = pair
    first, second = (model.decode(latents_of(model, seed)) for seed in (1, 2))
    assert (first - second).abs().mean() > 0.05
    assert first.std() > 0.2
