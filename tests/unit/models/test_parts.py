import hashlib
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny

from mezzotint.errors import CardError, WeightsError
from mezzotint.models.formats.folders import load_pipeline, read_parts
from mezzotint.models.parts import (
    check_digest,
    combine_digests,
    digest_files,
    find_weights,
    most_stored,
    read_header,
    read_json,
    stored_together,
)


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 4), "b": torch.ones(2, dtype=torch.float16)}, path)
    return path


def test_header_tells_names_types_and_shapes(weights):
    header = read_header(weights)
    assert header.tensors == {"a": ("F32", (3, 4)), "b": ("F16", (2,))}
    assert header.data_bytes == 3 * 4 * 4 + 2 * 2
    assert header.stored == "F32"


@pytest.mark.parametrize("change", [-1, 7])
def test_wrong_size_names_expected_and_found_bytes(weights, change):
    data = weights.read_bytes()
    weights.write_bytes(data[:change] if change < 0 else data + b"x" * change)
    with pytest.raises(WeightsError) as caught:
        read_header(weights)
    assert f"expected {len(data)} bytes" in str(caught.value)
    assert f"found {len(data) + change}" in str(caught.value)
    assert str(weights) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\x08\0\0\0\0\0\0\0notjson!", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_refused(weights, data):
    weights.write_bytes(data)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(weights)


def header_file(path, text):
    data = text.encode() if isinstance(text, str) else json.dumps(text).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    return path


def one_tensor(**changes):
    return {"a": {"dtype": "F32", "shape": [0, 2], "data_offsets": [0, 0]} | changes}


@pytest.mark.parametrize(
    "header",
    [
        one_tensor(shape=[1 << 63, 0]),
        one_tensor(shape=[-1, 0]),
        one_tensor(shape=[True, 0]),
        one_tensor(shape=[2, [[1]]]),
        one_tensor(shape="12"),
        one_tensor(dtype=32),
        one_tensor(data_offsets=[0.0, 0.0]),
        one_tensor(data_offsets=[2, 0]),
        one_tensor(data_offsets=[0]),
        one_tensor() | {"\ud800": one_tensor()["a"]},
        one_tensor() | {"__metadata__": {"title": "\ud800"}},
        {"a": []},
        '{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 1e999]}}',
        '{"a": ' + "[" * 200_000,
    ],
)
def test_a_header_that_says_what_cannot_be_is_refused(tmp_path, header):
    path = header_file(tmp_path / "m.safetensors", header)
    with pytest.raises(WeightsError, match="header that cannot be read"):
        read_header(path)


def test_a_header_may_be_as_long_as_its_reader_says(tmp_path):
    path = header_file(tmp_path / "m.safetensors", one_tensor())
    size = path.stat().st_size - 8
    assert read_header(path, most_bytes=size).tensors == {"a": ("F32", (0, 2))}
    with pytest.raises(WeightsError, match=f"{size} bytes, and at most {size - 1}"):
        read_header(path, most_bytes=size - 1)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match="cannot read weights"):
        read_header(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"weights missing: .* holds no"):
        find_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.bin", "x.ckpt", "y.pt"])
def test_pickles_are_refused_unopened_with_a_way_out(tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was loaded",))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=r"is a pickle.*weights_only=True.*save_file"):
        read_header(tmp_path / name)
    with pytest.raises(WeightsError, match="is a pickle"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    ("role", "pickled"),
    [("text_encoder", "pytorch_model.bin"), ("unet", "diffusion_pytorch_model.bin")],
)
def test_what_the_hint_for_pickles_says_makes_a_file_that_loads(tmp_path, role, pickled):
    folder = tiny.copy_of("sd1", tmp_path / "sd1")
    (weights,) = (folder / role).glob("*.safetensors")
    torch.save(load_file(weights), folder / role / pickled)
    weights.unlink()
    with pytest.raises(WeightsError, match="is a pickle") as refused:
        load_pipeline(folder)
    exec(str(refused.value).partition("afford to lose: ")[2])
    (folder / role / pickled).unlink()
    assert load_pipeline(folder).networks["denoiser" if role == "unet" else role].module


def test_plain_weights_win_over_variants_and_a_variant_can_be_insisted_on(tmp_path):
    for name in ("model.safetensors", "model.fp16.safetensors"):
        save_file({"a": torch.ones(1)}, tmp_path / name)
    assert find_weights(tmp_path) == ([tmp_path / "model.safetensors"], None)
    assert find_weights(tmp_path, variant="fp16")[0] == [tmp_path / "model.fp16.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    assert find_weights(tmp_path) == ([tmp_path / "model.fp16.safetensors"], "fp16")
    with pytest.raises(WeightsError, match=r"bf16 weights missing.*only the variants fp16"):
        find_weights(tmp_path, variant="bf16")


def test_all_shards_of_an_index_are_needed(tmp_path):
    shards = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for name, shard in zip("ab", shards, strict=True):
        save_file({name: torch.ones(1)}, tmp_path / shard)
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert find_weights(tmp_path) == ([tmp_path / shard for shard in shards], None)
    (tmp_path / shards[1]).unlink()
    with pytest.raises(WeightsError, match="00002-of-00002"):
        find_weights(tmp_path)


def test_digest_is_compared_and_both_are_named(weights):
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert check_digest(weights, expected=found) == found
    with pytest.raises(WeightsError, match=f"expected sha256 {'0' * 64}, found {found}"):
        check_digest(weights, expected="0" * 64)


def test_a_link_to_a_hub_blob_expects_the_blobs_name(tmp_path, weights):
    blob = tmp_path / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert check_digest(weights, expected=None) == blob.name
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(WeightsError, match=f"expected sha256 {blob.name}"):
        check_digest(weights, expected=None)


def test_expected_files_must_be_there(tmp_path, weights):
    with pytest.raises(WeightsError, match=r"gone.json is missing"):
        digest_files(tmp_path, [weights], expected={"gone.json": "0" * 64})


def test_combined_digest_depends_on_names_and_contents_not_on_order():
    assert combine_digests({"a": "1", "b": "2"}) == combine_digests({"b": "2", "a": "1"})
    assert combine_digests({"a": "1", "b": "2"}) != combine_digests({"a": "2", "b": "1"})


def test_json_that_cannot_be_read_names_its_file(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(CardError, match="must hold a JSON object, got list"):
        read_json(tmp_path / "list.json")
    with pytest.raises(CardError, match="cannot read"):
        read_json(tmp_path / "none.json")
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    with pytest.raises(CardError, match=r"deep\.json is not JSON"):
        read_json(tmp_path / "deep.json")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], "F32"),
        (["F32", "F16"], "F32"),
        (["BF16", "BF16", "F32"], "BF16"),
        (["F16", "BF16", "BF16"], "BF16"),
        (["F8_E4M3"] * 3 + ["BF16"], "F8_E4M3"),
        (["I8", "I8", "F16"], "F32"),  # rows of int8 are spread out to float32
    ],
)
def test_the_type_of_most_weights(kinds, expected):
    assert most_stored(kinds) == expected


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([], "F32"),
        (["F16", "F16"], "F16"),
        (["F16", "BF16"], "BF16"),
        (["BF16", "F32"], "F32"),
        (["F8_E4M3", "F16"], "BF16"),
    ],
)
def test_a_model_computes_in_the_widest_type_of_its_networks(kinds, expected):
    assert stored_together(kinds) == expected


def test_a_folder_in_bfloat16_computes_in_bfloat16_where_a_device_follows_it(tmp_path):
    pipeline = tiny.build("sd1")
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.to(torch.bfloat16)
    pipeline.save_pretrained(tmp_path)
    assert {part.stored for part in read_parts(tmp_path).networks.values()} == {"BF16"}
    on_cpu = load_pipeline(tmp_path)
    assert on_cpu.networks["denoiser"].dtype == torch.float32
    elsewhere = load_pipeline(tmp_path, device="meta")  # nothing is read before a call
    assert {n.dtype for n in elsewhere.networks.values()} == {torch.bfloat16}
