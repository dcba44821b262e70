"""Folders that cannot be drawn with say why in one line, before anything is drawn.

Tests :mod:`mezzotint.models.formats.folders` and :mod:`mezzotint.models.formats.filling`.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.config import PlacementConfig
from mezzotint.models.formats.folders import load_pipeline
from mezzotint.models.store.loading import load_path

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
INDEX = "model_index.json"


def drop(path, key):
    """Take a key out of a JSON file."""
    found = json.loads(path.read_text())
    del found[key]
    path.write_text(json.dumps(found))


def sharded(folder, leave_out=0, forget=0):
    """Cut the U-Net's weights in two; the second lacks some, the index forgets some."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    shards = {
        f"diffusion_pytorch_model-0000{k}-of-00002.safetensors": names[k - 1 :: 2] for k in (1, 2)
    }
    for shard, own in shards.items():
        kept = own[leave_out:] if "00002-" in shard else own
        save_file({name: state[name] for name in kept}, folder / "unet" / shard, {"format": "pt"})
    places = {name: shard for shard, own in shards.items() for name in own}
    index = {"metadata": {}, "weight_map": {name: places[name] for name in names[forget:]}}
    file = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    file.write_text(json.dumps(index))
    return names


def test_a_shard_without_what_its_index_says_is_named_when_the_folder_is_read(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    names = sharded(folder, leave_out=1)
    with pytest.raises(WeightsError, match=r"00002-of-00002\.safetensors does not hold") as told:
        load_pipeline(folder)
    assert names[1] in str(told.value)


def test_an_index_that_forgets_weights_leaves_no_hole(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    names = sharded(folder, forget=1)
    network = load_pipeline(folder).networks["denoiser"]
    with pytest.raises(WeightsError, match=f"missing_keys {names[0]}"):
        _ = network.module


def test_whole_numbers_that_nobody_explains_are_refused(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    state = {name: tensor.to(torch.int8) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"unet: .* is stored as whole numbers \(I8\)"):
        load_pipeline(folder)


def test_weights_that_do_not_fit_name_the_keys_that_the_configuration_lacks(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    drop(folder / "vae" / "config.json", "block_out_channels")
    network = load_pipeline(folder).networks["decoder"]
    with pytest.raises(WeightsError, match=r"its config\.json lacks block_out_channels, for which"):
        _ = network.module


@pytest.mark.parametrize(
    ("family", "file", "key", "network"),
    [
        ("sd1", "vae/config.json", "up_block_types", "decoder"),
        ("flux", "transformer/config.json", "guidance_embeds", "denoiser"),
    ],
)
def test_weights_without_a_place_in_what_the_class_makes_of_a_lacking_key_are_refused(
    tmp_path, family, file, key, network
):
    folder = tiny.copy_of(family, tmp_path / "model")
    drop(folder / file, key)
    with pytest.raises(WeightsError, match=rf"unexpected_keys .*config\.json lacks .*{key}"):
        _ = load_pipeline(folder).networks[network].module


@pytest.mark.parametrize(
    ("family", "file", "key", "told"),
    [
        ("flux", "transformer/config.json", "axes_dims_rope", r"16 \+ 56 \+ 56 numbers"),
        ("sd3", "transformer/config.json", "joint_attention_dim", "text states of width 4096"),
        ("sdxl", "unet/config.json", "addition_time_embed_dim", "must have addition_time_embed"),
    ],
)
def test_parts_that_do_not_fit_for_want_of_a_key_are_refused_when_the_folder_is_read(
    tmp_path, family, file, key, told
):
    folder = tiny.copy_of(family, tmp_path / "model")
    load_pipeline(folder)
    drop(folder / file, key)
    with pytest.raises(WeightsError, match=told):
        load_pipeline(folder)


def test_weights_that_do_not_fit_a_whole_configuration_blame_no_key(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    state = load_file(folder / WEIGHTS)
    name = sorted(state)[0]
    save_file({k: v for k, v in state.items() if k != name}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"weights do not fit .* missing_keys") as told:
        _ = load_pipeline(folder).networks["denoiser"].module
    assert name in str(told.value)
    assert "lacks" not in str(told.value)


def test_an_index_without_a_scheduler_or_a_pipeline_is_not_whole(tmp_path):
    folder = tiny.copy_of("sd1", tmp_path / "model")
    drop(folder / INDEX, "scheduler")
    with pytest.raises(CardError, match=rf"is not a whole pipeline: {INDEX} names no scheduler"):
        load_path(folder)
    drop(folder / INDEX, "_class_name")
    with pytest.raises(CardError, match="names no pipeline: it has no _class_name"):
        load_path(folder)


def test_float16_on_a_cpu_is_said_to_be_float32():
    model = load_path(tiny.folder("sd1"), placement=PlacementConfig(device="cpu", dtype="float16"))
    from mezzotint.models.backends.placement import place

    told = place(model, PlacementConfig(device="cpu", dtype="float16")).notes
    assert any("dtype float16 has no effect" in note for note in told)
    assert model.networks["denoiser"].dtype == torch.float32
