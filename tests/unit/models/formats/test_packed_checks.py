"""Packed files that say of themselves what is not so: each is refused when it is read.

Tests :mod:`mezzotint.models.formats.gguf_header`,
:mod:`mezzotint.models.formats.bitsandbytes_weights` and
:mod:`mezzotint.models.formats.packed_files`.
"""

import json
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter
from safetensors.torch import load_file, save_file

from mezzotint.errors import WeightsError
from mezzotint.models.formats.bitsandbytes_weights import code_numbers, pack_bitsandbytes
from mezzotint.models.formats.gguf_header import read_gguf_header
from mezzotint.models.formats.packed_files import apply_scales, plain_state, read_stored

FIXTURE = Path(__file__).parent / "data" / "bitsandbytes.safetensors"
U32, STRING, ARRAY = 4, 8, 9
F32, Q4_0 = 0, 2
HUGE = 1 << 60
ALIGNMENT = b"general.alignment"


def text(name):
    return struct.pack("<Q", len(name)) + name


def field(kind, value, name=b"a"):
    return text(name) + struct.pack("<I", kind) + value


def array(kind, count, values=b""):
    return field(ARRAY, struct.pack("<IQ", kind, count) + values)


def tensor(shape, *, name=b"w", kind=F32, offset=0, dimensions=None):
    shape = struct.pack(f"<I{len(shape)}Q", dimensions or len(shape), *shape)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def gguf_file(path, fields=(), tensors=(), data=b"", *, counts=None, magic=b"GGUF", version=3):
    start = magic + struct.pack("<I", version)
    start += struct.pack("<QQ", *(counts or (len(tensors), len(fields))))
    head = start + b"".join((*fields, *tensors))
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


HOSTILE = {
    "an endless array": {"fields": [array(U32, HUGE)]},
    "endless strings": {"fields": [array(STRING, HUGE)]},
    "endless arrays": {"fields": [array(ARRAY, HUGE)]},
    "a long string": {"fields": [field(STRING, struct.pack("<Q", HUGE))]},
    "a long name": {"fields": [struct.pack("<Q", HUGE)]},
    "an unknown type": {"fields": [field(77, b"\0" * 8)]},
    "arrays in arrays": {"fields": [array(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 9)]},
    "many fields": {"counts": (0, HUGE)},
    "many tensors": {"counts": (HUGE, 0)},
    "one field twice": {"fields": [field(U32, bytes(4))] * 2},
    "no alignment": {"fields": [field(U32, bytes(4), ALIGNMENT)]},
    "an odd alignment": {"fields": [field(U32, struct.pack("<I", 48), ALIGNMENT)]},
    "another magic": {"magic": b"GGML"},
    "another version": {"version": 9},
    "the other byte order": {"version": 3 << 24},
    "a name over lines": {"fields": [field(U32, bytes(4), b"a\nb")]},
    "a name of no text": {"fields": [field(U32, bytes(4), b"\xff")]},
    "many dimensions": {"tensors": [tensor([1], dimensions=1 << 31)], "data": bytes(64)},
    "five dimensions": {"tensors": [tensor([1] * 5)], "data": bytes(64)},
    "a product that overflows": {"tensors": [tensor([1 << 32] * 4)], "data": bytes(64)},
    "an empty shape": {"tensors": [tensor([0])], "data": bytes(64)},
    "half a block": {"tensors": [tensor([16, 2], kind=Q4_0)], "data": bytes(64)},
    "more than there is": {"tensors": [tensor([17])], "data": bytes(64)},
    "behind the end": {"tensors": [tensor([1], offset=64)], "data": bytes(64)},
    "an offset that overflows": {"tensors": [tensor([1], offset=(1 << 64) - 1)]},
    "one name twice": {"tensors": [tensor([1]), tensor([1], offset=32)], "data": bytes(64)},
    "one over another": {"tensors": [tensor([9]), tensor([1], name=b"b", offset=32)],
                         "data": bytes(64)},
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_is_not_so_is_refused_in_one_line(tmp_path, case):
    path = gguf_file(tmp_path / "x.gguf", **HOSTILE[case])
    with pytest.raises(WeightsError, match=r"x\.gguf is no whole GGUF file \(.*\); copy") as found:
        read_gguf_header(path)
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 500 + len(str(path))


def test_an_array_without_its_numbers_is_refused(tmp_path):
    path = tmp_path / "x.gguf"  # 49 bytes; the reader of the package never ends on it
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array(U32, HUGE))
    assert path.stat().st_size == 49
    with pytest.raises(WeightsError, match="1152921504606846976 values are expected at byte 49, 0"):
        read_stored([path], [None])


def test_an_unknown_type_is_named(tmp_path):
    path = gguf_file(tmp_path / "x.gguf", tensors=[tensor([1], kind=999)], data=bytes(64))
    with pytest.raises(WeightsError, match=r"x\.gguf: w is of type 999, which"):
        read_stored([path], [None])


@pytest.mark.parametrize(
    "filling",
    [
        array(0, 5_000_000, bytes(5_000_000)),
        array(STRING, 200_000, bytes(1_600_000)),
        array(ARRAY, 100_000, struct.pack("<IQ", 0, 0) * 100_000),
    ],
)
def test_a_long_header_takes_time_linear_in_it(tmp_path, filling):
    tensors = [tensor([3, 2])]
    path = gguf_file(tmp_path / "x.gguf", [filling], tensors, np.arange(6, dtype="<f4").tobytes())
    begin = time.process_time()
    assert [found.shape for found in read_gguf_header(path)] == [(2, 3)]
    assert time.process_time() - begin < 5


def test_tensors_are_found_where_the_package_finds_them(tmp_path):
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "flux")
    writer.add_custom_alignment(128)
    writer.add_array("tokens", ["a", "bc", ""])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_uint64("yes", 1)
    writer.add_tensor("a", np.ones((3, 5), np.float32))
    writer.add_tensor("b", np.zeros((4, 36), np.uint8), raw_dtype=Kind.Q4_0)
    writer.add_tensor("c", np.ones((2, 3, 4), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted = [
        (t.name, t.tensor_type.name, tuple(reversed(t.shape.tolist())), t.data_offset, t.n_bytes)
        for t in GGUFReader(tmp_path / "x.gguf").tensors
    ]
    found = read_gguf_header(tmp_path / "x.gguf")
    assert [(t.name, t.kind, t.shape, t.start, t.num_bytes) for t in found] == wanted


def changed(changes):
    """What bitsandbytes wrote, with some tensors replaced, or left out for None."""
    state = {k: v for k, v in load_file(FIXTURE).items() if not k.startswith("wanted.")}
    for name, change in changes.items():
        tensor = state.pop(name)
        if change is not None:
            state[name] = change(tensor)
    return state


def said(**changes):
    """Change what a weight says of itself; None takes it away."""

    def apply(state):
        about = json.loads(bytes(state.tolist())) | changes
        about = {key: value for key, value in about.items() if value is not None}
        return torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)

    return apply


PLAIN, NESTED = (f"{n}.weight.quant_state.bitsandbytes__nf4" for n in ("plain_nf4", "nf4"))
LIES = {
    "a short table": {"plain_nf4.weight.quant_map": lambda t: t[:15]},
    "a long table": {"plain_nf4.weight.quant_map": lambda t: t.repeat(2)},
    "no table": {"plain_nf4.weight.quant_map": None},
    "a table of NaN": {"plain_nf4.weight.quant_map": lambda t: t * torch.nan},
    "few scales": {"plain_nf4.weight.absmax": lambda t: t[:2]},
    "no scales": {"plain_nf4.weight.absmax": None},
    "endless scales": {"plain_nf4.weight.absmax": lambda t: t / 0},
    "few codes": {"plain_nf4.weight": lambda t: t[:-1]},
    "many codes": {"plain_nf4.weight": lambda t: t.repeat(2, 1)},
    "no codes": {"plain_nf4.weight": None},
    "codes of floats": {"plain_nf4.weight": lambda t: t.float()},
    "no state": {PLAIN: lambda _: torch.zeros(3, dtype=torch.uint8)},
    "a state of floats": {PLAIN: lambda t: t.float()},
    "a deep state": {PLAIN: lambda _: torch.full((60_000,), ord("["), dtype=torch.uint8)},
    **{
        f"blocks of {size}": {PLAIN: said(blocksize=size)}
        for size in (0, -64, 16, 63, 8192, 1 << 70, 64.0, "64", None)
    },
    **{
        f"shape {shape}": {PLAIN: said(shape=shape)}
        for shape in ([3, 65], [1 << 40, 1 << 40], [-3, -64], [0], [], [3.0, 64], "3", None)
    },
    "a short nested table": {"nf4.weight.nested_quant_map": lambda t: t[:255]},
    "no nested table": {"nf4.weight.nested_quant_map": None},
    "many nested scales": {"nf4.weight.nested_absmax": lambda t: t.repeat(2)},
    "few nested codes": {"nf4.weight.absmax": lambda t: t[:-1]},
    "no nested blocks": {NESTED: said(nested_blocksize=0)},
    "huge nested blocks": {NESTED: said(nested_blocksize=1 << 40)},
    "no nested offset": {NESTED: said(nested_offset=None)},
    "a nested offset of NaN": {NESTED: said(nested_offset=float("nan"))},
    "a huge nested offset": {NESTED: said(nested_offset=10**400)},
    "few rows of scales": {"rows.SCB": lambda t: t[:-1]},
    "one scale for all rows": {"rows.SCB": lambda t: t[:1]},
    "scales of whole numbers": {"rows.SCB": lambda t: t.int()},
    "scales of no rows": {"rows.weight": None},
    "rows of floats": {"rows.weight": lambda t: t.float()},
    "rows of one dimension": {"rows.weight": lambda t: t.reshape(-1)[:5]},
    "rows in tiles": {"rows.weight_format": lambda t: t + 2},
}


@pytest.mark.parametrize("case", LIES)
def test_weights_of_bitsandbytes_are_held_against_what_they_say(tmp_path, case):
    state = {name: tensor.contiguous() for name, tensor in changed(LIES[case]).items()}
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match=r"x: .*(nf4|rows)\.weight") as found:
        plain_state([tmp_path / "x.safetensors"], torch.float32, where="x")
    assert "\n" not in str(found.value)


def test_thousands_of_weights_of_bitsandbytes_take_time_linear_in_them():
    one = {k: v for k, v in load_file(FIXTURE).items() if k.startswith("plain_nf4.")}
    state = {
        f"layer{i}{name.removeprefix('plain_nf4')}": tensor
        for i in range(1000)
        for name, tensor in one.items()
    }
    begin = time.process_time()
    assert len(pack_bitsandbytes(state, "x")) == 1000
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert code_numbers(shapes) == 1000 * 3 * 64
    assert time.process_time() - begin < 2


def scaled(weight, scale, name="a.weight_scale"):
    state = {"a.weight": torch.tensor(weight).to(torch.float8_e4m3fn)}
    return apply_scales({**state, name: torch.tensor(scale)}, where="x")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ([[1.0, 2.0]], "of a kind that is not read"),  # one a column
        ([1.0, 2.0, 3.0], "of a kind that is not read"),
        ([1, 2], "of a kind that is not read"),
        (float("nan"), "has NaN or infinity"),
        ([1.0, float("inf")], "has NaN or infinity"),
        (0.0, r"is 0 where a\.weight is not"),
        ([0.0, 1.0], r"is 0 where a\.weight is not"),
    ],
)
def test_scales_of_8_bit_floats_fit_their_weights(scale, message):
    with pytest.raises(WeightsError, match=rf"x: a\.weight_scale .*{message}"):
        scaled([[1.0, 2.0], [3.0, 4.0]], scale)


def test_a_row_of_nothing_may_have_a_scale_of_nothing():
    found = scaled([[0.0, -0.0], [3.0, 4.0]], [[0.0], [2.0]])
    assert found["a.weight"].tolist() == [[0, 0], [6, 8]]


def test_8_bit_floats_that_lack_their_scale_are_refused():
    good = {"a.weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "a.weight_scale": torch.ones(())}
    kept = {**good, "b.weight": torch.full((2, 2), 3.0).to(torch.float8_e4m3fn)}
    assert apply_scales(kept, where="x")["b.weight"].float().tolist() == [[3, 3], [3, 3]]
    for kind, largest in ((torch.float8_e4m3fn, 448.0), (torch.float8_e5m2, -57344.0)):
        lost = {**good, "b.weight": torch.tensor([[1.0, largest]]).to(kind)}
        with pytest.raises(WeightsError, match=r"x: b\.weight lacks its scale"):
            apply_scales(lost, where="x")
