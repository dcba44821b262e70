"""Weights are those that were hashed, or they are refused; nothing else is stored under a digest."""

import json
import os
import shutil

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from tests import tiny

from mezzotint.errors import WeightsError
from mezzotint.files import digest_file
from mezzotint.gates import aesthetic
from mezzotint.models.adapters.lora import read_lora
from mezzotint.models.backends.openvino_backend import use_openvino
from mezzotint.models.digests import DigestCache
from mezzotint.models.families import upscalers
from mezzotint.models.families.gan import GanConfig, build_generator, load_gan, write_gan
from mezzotint.models.families.runs import RUN_FILE, RunDescription
from mezzotint.models.families.whole import load_foreign
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.store.loading import load_path

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


def make_run(folder):
    """Write what the trainer leaves of a small U-Net on pixels."""
    pipeline = tiny.build("ddpm")
    pipeline.unet.save_pretrained(folder / "network")
    scheduler = {"_class_name": "DDPMScheduler", **pipeline.scheduler.config}
    about = RunDescription(
        network="UNet2DModel", data="pixels", shape=(3, 32, 32), scheduler=scheduler
    )
    (folder / RUN_FILE).write_text(json.dumps(about.to_plain()))
    return folder


def test_a_run_folder_written_to_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    weights = folder / "network" / "diffusion_pytorch_model.safetensors"
    shutil.copy(weights, tmp_path / "kept.safetensors")
    from_pretrained = UNet2DModel.from_pretrained

    def meanwhile(*given, **options):
        network = from_pretrained(*given, **options)
        overwrite(weights)
        return network

    network = load_path(folder).networks["denoiser"].module
    monkeypatch.setattr(UNet2DModel, "from_pretrained", meanwhile)
    with pytest.raises(WeightsError, match="written to while"):
        load_path(folder)
    stored = load_file(folder.parent / "kept.safetensors")
    for key, tensor in network.state_dict().items():  # what is in memory is no view of the file
        assert torch.equal(tensor, stored[key]), key


def test_a_whole_pipeline_overwritten_after_it_was_pinned_is_refused(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    model = load_foreign(folder)
    overwrite(next((folder / "unet").glob("*.safetensors")))
    with pytest.raises(WeightsError, match="changed since"):
        model.networks["pipeline"].run()


def test_an_upscaler_is_made_of_the_bytes_that_its_digest_is_of(tmp_path):
    param, weights = tmp_path / "x.param", tmp_path / "x.bin"
    param.write_bytes(b"7767517\n1 1\nInput in 0 1 in\n")
    weights.write_bytes(b"")
    pinned = upscalers._digest(param, weights)
    weights.write_bytes(b"1234")
    with pytest.raises(WeightsError, match="changed since"):
        upscalers._load(param, weights)
    assert upscalers._digest(param, weights) == pinned


def test_a_gate_s_head_written_to_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "head.safetensors"
    save_file({"weight": torch.ones(1, 4)}, path)
    ((weight, _),) = aesthetic.read_head(path)
    overwrite(path)
    assert torch.equal(weight, torch.ones(1, 4))

    def meanwhile(path):
        state = load_file(path)
        overwrite(path)
        return state

    monkeypatch.setattr(aesthetic, "load_file", meanwhile)
    with pytest.raises(WeightsError, match="written to while"):
        aesthetic.read_head(path)


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
