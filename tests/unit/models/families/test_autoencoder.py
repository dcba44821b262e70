import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from tests import tiny

from mezzotint.errors import ShapeError, WorkFailed
from mezzotint.models.families.autoencoder import Autoencoder, fit_preview
from mezzotint.models.formats.components import from_components, from_pipeline
from mezzotint.models.networks import Placement
from mezzotint.models.parts import Part


def of(module, dtype=torch.float32):
    networks = {}
    part = Part(
        role="vae",
        class_name=type(module).__name__,
        config=dict(module.config),
        build=lambda wanted: type(module).from_config(module.config).to(wanted),
    )

    def build(wanted):
        own = type(module).from_config(module.config)
        own.load_state_dict(module.state_dict())
        return own.to(wanted)

    import dataclasses

    part = dataclasses.replace(part, build=build)
    return Autoencoder(part, networks, Placement("cpu", dtype)), networks


def test_decode_undoes_scale_and_shift_as_diffusers_does():
    module = tiny.vae(16, scaling=1.5305, shift=0.0609, quant=False)
    latents = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = module.decode(latents / 1.5305 + 0.0609, return_dict=False)[0].clamp(-1, 1)
    assert torch.equal(of(module)[0].decode(latents), wanted)


def test_means_and_deviations_of_latents_are_honoured():
    mean, std = [0.1, -0.2, 0.3, 0.4], [1.5, 2.0, 0.5, 1.0]
    module = tiny.vae(4, scaling=0.13025, latents_mean=mean, latents_std=std)
    ours, _ = of(module)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    table = torch.tensor(mean).view(1, 4, 1, 1), torch.tensor(std).view(1, 4, 1, 1)
    wanted = module.decode(latents * table[1] / 0.13025 + table[0], return_dict=False)[0]
    torch.testing.assert_close(ours.decode(latents), wanted.clamp(-1, 1))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    coded = module.encode(images).latent_dist.mean
    torch.testing.assert_close(ours.encode(images), (coded - table[0]) * 0.13025 / table[1])


def test_encode_draws_with_each_pictures_own_generator_as_diffusers_does():
    module = tiny.vae()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    wanted = module.encode(images).latent_dist.sample(
        [torch.Generator().manual_seed(k) for k in range(3)]
    )
    ours = of(module)[0].encode(images, [torch.Generator().manual_seed(k) for k in range(3)])
    torch.testing.assert_close(ours, wanted * 0.18215, atol=1e-6, rtol=1e-5)
    assert torch.equal(of(module)[0].encode(images), of(module)[0].encode(images, [None] * 3))


def test_overflow_in_half_precision_is_rescued_in_float32_and_reported():
    module = tiny.vae(force_upcast=False)
    module.decoder.conv_in.weight.data *= 30000.0
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents[0] = 0.0
    wanted = module.decode(latents / 0.18215, return_dict=False)[0].clamp(-1, 1)
    ours, networks = of(module, torch.float16)
    assert not bool(torch.isfinite(networks["decoder"](latents=latents / 0.18215)[0][1]).all())
    said = []
    images = ours.decode(latents, lambda row, sentence: said.append((row, sentence)))
    assert said == [(1, "the decoder overflowed; the picture was decoded again in float32")]
    assert torch.equal(images[1], wanted[1])
    assert torch.equal(images[0], networks["decoder"](latents=latents / 0.18215)[0][0].clamp(-1, 1))


def test_a_decoder_that_asks_for_float32_gets_it():
    _, networks = of(tiny.vae(force_upcast=True), torch.float16)
    assert networks["decoder"].dtype == torch.float32


def test_pictures_that_are_not_finite_in_float32_fail_and_name_their_row():
    module = tiny.vae()
    latents = torch.zeros(2, 4, 8, 8)
    latents[1, 0, 0, 0] = float("nan")
    with pytest.raises(WorkFailed, match=r"no finite picture, even in float32 \(row 1 of 2\)"):
        of(module)[0].decode(latents)
    assert of(module)[0].decode(latents[:1]).shape == (1, 3, 32, 32)


def test_latents_of_other_channels_are_refused():
    with pytest.raises(ShapeError, match=r"latents must have shape \(B, 4, h, w\)"):
        of(tiny.vae())[0].decode(torch.zeros(1, 3, 8, 8))


def test_tiny_autoencoder_takes_the_place_of_the_large_one():
    with tiny.seeded(0):
        small = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1),
            num_decoder_blocks=(1, 1, 1),
        ).eval()
    pipeline = tiny.build("sd1")
    parts = {n: getattr(pipeline, n) for n in ("tokenizer", "text_encoder", "unet", "scheduler")}
    model = from_components(vae=small, **parts)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = small.decode(latents).sample.clamp(-1, 1)
        images = torch.rand(1, 3, 32, 32)
        torch.testing.assert_close(model.decode(latents), wanted)
        torch.testing.assert_close(model.encode_image(images), small.encode(images).latents)


def test_preview_of_a_linear_decoder_is_that_decoder():
    matrix = torch.tensor([[0.1, 0.2, 0.3], [-0.3, 0.0, 0.1], [0.05, -0.1, 0.2]])

    def decode(latents):
        images = torch.einsum("bchw,cr->brhw", latents, matrix[:2]) + matrix[2].view(1, 3, 1, 1)
        return images.repeat_interleave(4, 2).repeat_interleave(4, 3)

    torch.testing.assert_close(fit_preview(decode, 2), matrix, atol=1e-6, rtol=1e-5)


def test_alone_and_together_decode_to_the_same_bits_from_two_rows_on():
    model = from_pipeline(tiny.build("sd1"))
    latents = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    together = model.decode(latents)
    assert torch.equal(model.decode(latents[2:4]), together[2:4])
    assert isinstance(tiny.vae(), AutoencoderKL)
