"""Weights are those that were hashed, or they are refused; nothing else is stored under a digest."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

from mezzotint.errors import WeightsError
from mezzotint.files import digest_file
from mezzotint.models.adapters.lora import read_lora
from mezzotint.models.backends.openvino_backend import use_openvino
from mezzotint.models.digests import DigestCache
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.formats.folders import load_pipeline

CONFIG = GanConfig(latent_size=4, image_size=8, channels=(4,))


def overwrite(path, *, keep_times=True):
    """Put other weights of the same shapes into a file in place, and set its time back."""
    status = path.stat()
    other = {key: torch.flip(t, (0,)) + 1 for key, t in load_file(path).items()}
    other = {key: t.clone() for key, t in other.items()}
    fresh = path.with_suffix(".other")
    save_file(other, fresh, metadata={"format": "pt"})
    data = fresh.read_bytes()
    fresh.unlink()
    with path.open("r+b") as stream:
        stream.write(data)
        stream.truncate()
    if keep_times:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_file_that_was_overwritten_and_dated_back_has_its_new_digest(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"a" * 100)
    os.utime(path, ns=(10**18, 10**18))
    cache = DigestCache()
    first = cache.digest(path)
    path.write_bytes(b"b" * 100)
    os.utime(path, ns=(10**18, 10**18))
    assert cache.digest(path) == digest_file(path) != first


def test_loading_refuses_a_file_with_other_bytes_and_one_written_to_meanwhile(tmp_path):
    path, cache = tmp_path / "weights", DigestCache()
    path.write_bytes(b"a")
    pinned = {path: cache.digest(path)}
    with cache.loading(pinned):
        pass
    with pytest.raises(WeightsError, match="written to while"), cache.loading(pinned):
        path.write_bytes(b"ab")
    with pytest.raises(WeightsError, match="changed since it was read"), cache.loading(pinned):
        pass


@pytest.fixture
def gan(tmp_path):
    return write_gan(tmp_path / "gan", CONFIG, build_generator(CONFIG).state_dict())


def test_weights_overwritten_after_they_were_pinned_are_refused_and_nothing_is_stored(
    gan, tmp_path
):
    model = load_gan(gan)
    use_openvino(model, cache=tmp_path / "cache")
    overwrite(gan / "generator.safetensors")
    with pytest.raises(WeightsError, match="changed since"):
        model.networks["decoder"](latents=torch.zeros(2, 4))
    assert list(tmp_path.glob("cache/*")) == []


def test_a_pipeline_whose_weights_were_overwritten_is_refused(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    model = load_pipeline(folder)
    overwrite(next((folder / "unet").glob("*.safetensors")))
    with pytest.raises(WeightsError, match="changed since"):
        _ = model.networks["denoiser"].module


def test_weights_in_memory_stay_what_they_were_when_the_file_is_overwritten(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    module = load_pipeline(folder).networks["denoiser"].module
    before = {key: t.clone() for key, t in module.state_dict().items()}
    overwrite(next((folder / "unet").glob("*.safetensors")))
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_a_lora_in_memory_stays_what_its_digest_says(tmp_path):
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    path = tmp_path / "ink.safetensors"
    save_file(
        {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}, path
    )
    digest = digest_file(path)
    lora = read_lora(path)
    overwrite(path)
    assert lora.digest == digest
    (pair,) = lora.pairs["denoiser"].values()
    assert torch.equal(pair.down, torch.ones(2, 8))
