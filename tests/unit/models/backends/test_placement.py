import pytest
import torch
from tests import tiny

from mezzotint.errors import InvalidRequest
from mezzotint.models.backends.placement import OffloadedNetwork, offload, place
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.config import PlacementConfig
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.networks import TorchNetwork
from mezzotint.models.store.loading import load_path
from mezzotint.types import Size

SIZE = Size(64, 64)


def sd(**options):
    return place(load_path(tiny.folder("sd1"), name="tiny"), PlacementConfig(**options))


def run(model):
    """Estimate once, decode, encode again."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, *model.latent_shape(SIZE), generator=generator)
    conditioning = Conditioning.stack(model.encode([Prompt(text="a cat", size=SIZE)] * 2))
    denoised = model.denoiser(latents, torch.tensor([2.0, 0.5]), conditioning)
    pictures = model.decode(denoised)
    return denoised, pictures, model.encode_image(pictures)


@pytest.fixture(scope="module")
def plain():
    return run(sd())


@pytest.mark.parametrize(
    "options",
    [{"channels_last": True}, {"attention_slicing": True}, {"vae_slicing": True}],
    ids=lambda o: next(iter(o)),
)
def test_options_leave_the_mathematics_as_it_is(plain, options):
    for found, expected in zip(run(sd(**options)), plain, strict=True):
        assert torch.allclose(found, expected, atol=2e-4)


def test_options_reach_the_modules():
    model = sd(channels_last=True, vae_slicing=True, vae_tiling=True)
    assert model.networks["decoder"].module.use_slicing
    assert model.networks["decoder"].module.use_tiling
    weight = model.networks["denoiser"].module.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_tiling_is_another_picture_and_so_another_digest():
    assert sd(vae_tiling=True).spec.digest != sd().spec.digest
    assert sd(vae_slicing=True).spec.digest == sd().spec.digest
    assert any("tiles" in limit for limit in sd(vae_tiling=True).spec.limits)


@pytest.mark.parametrize("by_layer", [False, True])
def test_an_offloaded_network_answers_as_it_did(plain, by_layer):
    model = offload(sd(), torch.device("cpu"), by_layer=by_layer)
    assert all(isinstance(network, OffloadedNetwork) for network in model.networks.values())
    assert model.num_bytes == sd().num_bytes
    for found, expected in zip(run(model), plain, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_offloading_needs_a_device_to_offload_from():
    with pytest.raises(InvalidRequest, match="not the CPU") as caught:
        sd(offload="model")
    assert caught.value.field == "offload"


def test_what_a_model_has_no_part_for_is_said(tmp_path):
    config = GanConfig(latent_size=4, image_size=8, channels=(4,))
    folder = write_gan(tmp_path, config, build_generator(config).state_dict())
    model = place(load_gan(folder), PlacementConfig(attention_slicing=True, vae_tiling=True))
    assert sum("no effect" in limit for limit in model.spec.limits) == 2
    assert isinstance(model.networks["decoder"], TorchNetwork)


def test_devices_have_the_names_that_torch_gives_them():
    for device in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        assert PlacementConfig(device=device).device == device
    for device in ("gpu", "cuda:x", "cuda:", ""):
        with pytest.raises(InvalidRequest, match="device must be"):
            PlacementConfig(device=device)
