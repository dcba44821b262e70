"""A denoiser's file and the folder of its model's other parts make one model."""

import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file, save_file
from tests import tiny
from tests.unit.models.formats.test_packed_files import WEIGHTS, packed_folder

import mezzotint
from mezzotint.errors import InvalidRequest, UnknownName, WeightsError
from mezzotint.models.config import ModelsConfig
from mezzotint.models.formats.archive import inspect_archive, pack
from mezzotint.models.formats.identify import identify
from mezzotint.models.store.store import ModelStore

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


def open_store(home):
    return ModelStore(ModelsConfig(home=str(home)))


def draw(home, model):
    with mezzotint.Engine(device="cpu", home=home, backend="torch") as engine:
        request = mezzotint.GenerationRequest(
            model=model, prompt="a red apple", seed=3, num_inference_steps=2, width=64, height=48
        )
        return engine.generate(request).images[0].pixels


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder put together by hand, the file in it, and the folder that it came from."""
    root = tmp_path_factory.mktemp("packed")
    folder = packed_folder("flux", root / "by-hand", Kind.Q8_0)
    file = root / "tiny-Q8_0.gguf"
    (folder / "transformer" / "tiny-Q4_0.gguf").rename(file)
    (folder / "transformer" / "tiny-Q8_0.gguf").symlink_to(file)
    return folder, file, tiny.copy_of("flux", root / "base")


def test_a_file_draws_with_the_parts_of_its_base_as_in_a_folder_put_together_by_hand(
    tmp_path, packed
):
    by_hand, file, base = packed
    store = open_store(tmp_path / "home")
    store.add("whole", base)
    store.add("small", file, base="whole")
    wanted = draw(tmp_path / "home", str(by_hand))
    assert np.array_equal(draw(tmp_path / "home", "small"), wanted)
    assert not np.array_equal(draw(tmp_path / "home", "whole"), wanted)


def test_the_base_needs_no_weights_of_the_denoiser_and_may_be_a_path(tmp_path, packed):
    _, file, base = packed
    lean = tmp_path / "lean"
    for part in sorted(base.iterdir()):
        (lean / part.name).parent.mkdir(exist_ok=True)
        (lean / part.name).symlink_to(part)
    (lean / "transformer").unlink()
    (lean / "transformer").mkdir()
    (lean / "transformer" / "config.json").symlink_to(base / "transformer" / "config.json")
    entry = open_store(tmp_path / "home").add("small", file, base=str(lean))
    assert entry.is_owned
    assert identify(entry.path) == "pipeline"
    assert any("stay Q8_0" in limit for limit in open_store(tmp_path / "home").spec("small").limits)


def test_a_denoiser_in_safetensors_of_any_name_takes_the_place_too(tmp_path, packed):
    _, _, base = packed
    state = {name: tensor * 0.5 for name, tensor in load_file(base / WEIGHTS).items()}
    file = tmp_path / "tuned.safetensors"
    save_file(state, file, {"format": "pt"})
    store = open_store(tmp_path / "home")
    store.add("tuned", file, base=str(base))
    by_hand = tiny.copy_of("flux", tmp_path / "by-hand")
    save_file(state, by_hand / WEIGHTS, {"format": "pt"})
    found, wanted = (store.load(name) for name in ("tuned", str(by_hand)))
    layers = [m.networks["denoiser"].module.proj_out.weight for m in (found, wanted)]
    assert torch.equal(*layers)


def test_removing_it_leaves_both_and_adding_it_again_works(tmp_path, packed):
    _, file, base = packed
    store = open_store(tmp_path / "home")
    for _ in range(2):
        store.add("small", file, base=str(base), keep=False)
        store.remove("small")
        store.add("small", file, base=str(base))
        store.remove("small")
    assert file.is_file()
    assert (base / WEIGHTS).is_file()


def test_an_archive_of_it_holds_the_files_themselves(tmp_path, packed):
    _, _, base = packed
    file = tmp_path / "tuned.safetensors"
    save_file(load_file(base / WEIGHTS), file, {"format": "pt"})
    entry = open_store(tmp_path / "home").add("tuned", file, base=str(base))
    pack(entry.path, tmp_path / "tuned.mzt", name="tuned", version="1.0", licence="MIT")
    names = set(inspect_archive(tmp_path / "tuned.mzt").files)
    assert {"transformer/tuned.safetensors", "text_encoder_2/model.safetensors"} <= names
    assert WEIGHTS not in names


def test_what_cannot_be_combined_is_said_in_one_line(tmp_path, packed):
    _, file, base = packed
    store = open_store(tmp_path / "home")
    with pytest.raises(UnknownName, match="unknown model source"):
        store.add("small", tmp_path / "nothing.gguf", base=str(base))
    with pytest.raises(UnknownName, match=r"unknown model .nobody."):
        store.add("small", file, base="nobody")
    with pytest.raises(InvalidRequest, match=r"a base is a diffusers folder .* is none"):
        store.add("small", file, base="plate-gan")
    with pytest.raises(WeightsError, match="cannot stand in for a denoiser"):
        store.add("small", base, base=str(base))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(WeightsError, match=r"broken\.gguf is no whole GGUF file"):
        store.add("small", broken, base=str(base))
    index = json.loads((base / "model_index.json").read_text())
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InvalidRequest, match=r"transformer/config\.json .* has no such file"):
        store.add("small", file, base=str(empty))
    assert not (tmp_path / "home").exists()
