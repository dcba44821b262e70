import pytest
import torch
from tests import tiny

from mezzotint.errors import InvalidRequest
from mezzotint.models.adapters.tiling import tiled
from mezzotint.models.backends.openvino_backend import use_openvino
from mezzotint.models.backends.placement import check_offload, place
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.config import PlacementConfig
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.store.loading import load_path
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.memory import measure
from mezzotint.planning.planner import plan
from mezzotint.request import GenerationRequest
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
    model = sd(channels_last=True, attention_slicing=True)
    denoiser = model.networks["denoiser"].module
    assert denoiser.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    kinds = {type(p).__name__ for p in denoiser.attn_processors.values()}
    assert kinds == {"SlicedAttnProcessor"}
    assert model.notes == ()


class Counted:
    """A network that notes the shapes it is called with."""

    def __init__(self, network):
        self.network = network
        self.shapes = []

    def __deepcopy__(self, memo):
        return self

    def __call__(self, **inputs):
        self.shapes.append(tuple(next(iter(inputs.values())).shape))
        return self.network(**inputs)


def counted(model, role="decoder"):
    network = Counted(model.networks[role])
    model.use_network(role, network)
    return network


def test_vae_slicing_takes_pictures_one_at_a_time():
    model = sd(vae_slicing=True)
    decoder, encoder = counted(model), counted(model, "encoder")
    run(model)
    assert [shape[0] for shape in decoder.shapes] == [1, 1]
    assert [shape[0] for shape in encoder.shapes] == [1, 1]


def test_vae_tiling_decodes_a_large_picture_in_tiles_of_one_shape():
    whole, model = sd(), sd(vae_tiling=True)
    tile = model.spec.tile_px // model.spec.latent_scale
    decoder, encoder = counted(model), counted(model, "encoder")
    small = torch.randn(1, *model.latent_shape(SIZE), generator=torch.Generator().manual_seed(3))
    assert torch.equal(model.decode(small), whole.decode(small))  # no larger than a tile
    decoder.shapes.clear()
    large = small.repeat(1, 1, 2, 3)
    picture = model.decode(large)
    assert set(decoder.shapes) == {(1, 4, tile, tile)}
    assert len(decoder.shapes) == 3 * 4
    assert picture.shape == whole.decode(large).shape
    assert (picture - whole.decode(large)).abs().mean() < 0.1
    assert (model.encode_image(picture) - whole.encode_image(picture)).abs().mean() < 0.1
    assert {shape[-1] for shape in encoder.shapes} == {model.spec.tile_px}


def test_pictures_that_tile_are_decoded_around_their_edges():
    model = tiled(sd(vae_tiling=True))
    decoder = counted(model)
    large = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(3))
    picture = model.decode(large)
    assert picture.shape[-2:] == (128, 128)
    rolled = model.decode(large.roll(16, dims=-1)).roll(-64, dims=-1)
    whole = tiled(sd()).decode(large)
    assert (picture - whole).abs().mean() < 0.1
    assert (rolled - whole).abs().mean() < 0.1
    assert len(decoder.shapes) > 8


def test_a_picture_in_tiles_needs_the_memory_of_a_tile():
    plain, model = sd().spec, sd(vae_tiling=True).spec
    request = GenerationRequest(prompt="a cat", width=512, height=512, seed=1)
    abilities = Abilities(environment="here", adapter_digest=lambda kind, name: "")
    needs = [measure(plan(request, s, abilities).plans[0], s) for s in (plain, model)]
    assert needs[0].decode_bytes == (512 // model.tile_px) ** 2 * needs[1].decode_bytes


def test_tiling_is_another_picture_and_so_another_digest():
    model = sd(vae_tiling=True)
    assert model.spec.digest != sd().spec.digest
    assert sd(vae_slicing=True).spec.digest == sd().spec.digest
    assert any("tiles" in limit for limit in model.spec.limits)
    before = model.spec
    place(model, PlacementConfig(vae_tiling=True))
    assert model.spec == before  # a model that is given to two engines


def offloaded(how):
    """Offload a model as on an accelerator that this machine has not got."""
    model = sd()
    for network in model.networks.values():
        network.device = torch.device("meta")
    place(model, PlacementConfig(offload=how))
    for network in model.networks.values():
        network.device = torch.device("cpu")
    return model


@pytest.mark.parametrize("how", ["model", "sequential"])
def test_an_offloaded_network_answers_as_it_did(plain, how):
    model = offloaded(how)
    for found, expected in zip(run(model), plain, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    if how == "sequential":
        hooked = [m for m in model.networks["denoiser"].module.modules() if hasattr(m, "_hf_hook")]
        assert len(hooked) > 20
        assert all(p.is_meta for p in model.networks["denoiser"].module.parameters())


def test_one_network_at_a_time_is_on_the_device():
    networks = offloaded("model").networks
    home = [p.data_ptr() for p in networks["denoiser"].module.parameters()]
    with networks["denoiser"].offload.bring(networks["denoiser"]) as denoiser:
        there = [p.data_ptr() for p in denoiser.parameters()]
        assert not set(there) & set(home)
    with networks["denoiser"].offload.bring(networks["denoiser"]):  # it stayed between calls
        assert [p.data_ptr() for p in denoiser.parameters()] == there
    with networks["decoder"].offload.bring(networks["decoder"]) as decoder:
        assert [p.data_ptr() for p in denoiser.parameters()] == home
    with networks["encoder"].offload.bring(networks["encoder"]) as encoder:
        assert encoder is decoder  # one autoencoder


def test_a_view_of_an_offloaded_model_takes_turns_with_it(plain):
    model = offloaded("model")
    view = tiled(model)
    assert view.networks["denoiser"].offload is model.networks["denoiser"].offload
    expected = run(tiled(sd()))
    for found, known in zip(run(view), expected, strict=True):
        assert torch.allclose(found, known, atol=1e-5)
    with pytest.raises(InvalidRequest, match="offload sequential layers come and go"):
        tiled(offloaded("sequential"))


def test_offloading_needs_a_device_to_offload_from():
    for how in ("model", "sequential"):
        with pytest.raises(InvalidRequest, match="not the CPU") as caught:
            sd(offload=how)
        assert caught.value.field == "offload"
    with pytest.raises(InvalidRequest, match="offload disk needs the CPU; here it may be none, mo"):
        check_offload(PlacementConfig(offload="disk"), "cuda")


def test_openvino_cuts_as_torch_does_and_says_what_it_leaves_out():
    options = {"vae_slicing": True, "attention_slicing": True, "channels_last": True}
    model = sd(**options)
    use_openvino(model, cache=None)
    decoder = counted(model)
    assert [note.split()[0] for note in model.notes] == ["attention_slicing", "channels_last"]
    assert all("set models.backend to torch" in note for note in model.notes)
    for found, expected in zip(run(model), run(sd()), strict=True):
        assert torch.allclose(found, expected, atol=2e-3)
    assert [shape[0] for shape in decoder.shapes] == [1, 1]
    assert not decoder.network.notes


def test_what_a_model_has_no_part_for_is_said(tmp_path):
    config = GanConfig(latent_size=4, image_size=8, channels=(4,))
    folder = write_gan(tmp_path, config, build_generator(config).state_dict())
    model = place(load_gan(folder), PlacementConfig(attention_slicing=True, vae_tiling=True))
    assert [note.split()[0] for note in model.notes] == ["attention_slicing", "vae_tiling"]
    assert all("has no effect" in note for note in model.notes)
    assert set(model.notes) <= set(model.spec.limits)


def test_devices_have_the_names_that_torch_gives_them():
    for device in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        assert PlacementConfig(device=device).device == device
    for device in ("gpu", "cuda:x", "cuda:", ""):
        with pytest.raises(InvalidRequest, match="device must be"):
            PlacementConfig(device=device)
