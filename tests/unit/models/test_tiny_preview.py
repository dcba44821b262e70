"""Previews by a tiny decoder, where the model's folder brings one.

Tests mezzotint.models.formats.folders.
"""

import pytest
import torch
from diffusers import AutoencoderTiny
from tests import tiny

from mezzotint.errors import CardError
from mezzotint.models.formats.folders import load_pipeline


def tiny_decoder(channels=4):
    with tiny.seeded(3):
        return AutoencoderTiny(
            latent_channels=channels,
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
        ).eval()  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    tiny.build("sd1").save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_with_a_tiny_decoder_previews_with_it_and_draws_the_same(folder):
    plain = load_pipeline(folder)
    decoder = tiny_decoder(plain.spec.latent_channels)
    decoder.save_pretrained(folder / "preview_decoder")
    model = load_pipeline(folder)
    latents = torch.randn(1, plain.spec.latent_channels, 8, 8)
    with torch.no_grad():
        expected = decoder.decode(latents).sample[0]
    shown = model.preview(latents)
    assert torch.allclose(shown, expected, atol=1e-5)
    assert shown.shape == (3, 32, 32)
    assert plain.preview(latents).shape == (3, 8, 8)  # the linear map of a folder without
    assert model.spec.digest == plain.spec.digest
    assert torch.equal(model.decode(latents), plain.decode(latents))


def test_a_tiny_decoder_of_another_latent_space_is_refused(folder):
    tiny_decoder(16).save_pretrained(folder / "preview_decoder")
    with pytest.raises(CardError, match="16 channels"):
        load_pipeline(folder)
